import { setTimeout as sleep } from 'node:timers/promises'
import pg from 'pg'

/** The address of a node, as the nodes know each other. */
export interface Address {
  host: string
  port: number
}

/** How long a session may take to end, in milliseconds. */
const PATIENCE = 30_000

const PAUSE = 20

/** Makes CREATE DATABASE and DROP DATABASE apply to this node only. */
const apart = 'set citus.enable_create_database_propagation to off'

/**
 * A Citus cluster, on which databases are created and dropped: on each node, as Citus would not copy a template on the others.
 */
export class Cluster {
  readonly #url: URL

  private constructor (url: URL, readonly nodes: Address[]) {
    this.#url = url
  }

  /**
   * Finds the nodes of the cluster whose coordinator the connection string names; the first is the coordinator. They are
   * reached as they reach each other, and by the user that is named.
   */
  static async find (connectionString: string): Promise<Cluster> {
    const url = new URL(connectionString)
    const rows: Array<Address & { group: number }> = await query(connectionString, `
      select nodename as host, nodeport as port, groupid as group from pg_dist_node
      where noderole = 'primary' and isactive order by groupid`)
    if (rows[0]?.group !== 0) rows.unshift({ host: url.hostname, port: Number(url.port || 5432), group: 0 })
    return new Cluster(url, rows.map(({ host, port }) => ({ host, port })))
  }

  /** Returns the connection string of a database on a node. Default: on the coordinator. */
  at (database: string, node: Address = this.nodes[0]!): string {
    const url = new URL(this.#url)
    url.pathname = database
    url.hostname = node.host.includes(':') ? `[${node.host}]` : node.host
    url.port = String(node.port)
    return url.href
  }

  /** Creates an empty database, all nodes of which know each other. */
  async create (name: string): Promise<void> {
    await this.#onAll(client => client.query(`create database ${name}`))
    await Promise.all(this.nodes.map(node => query(this.at(name, node), 'create extension citus')))
    const [coordinator, ...workers] = this.nodes
    await query(this.at(name), `select citus_set_coordinator_host(${argumentsOf(coordinator!)})`,
      ...workers.map(worker => `select citus_add_node(${argumentsOf(worker)})`))
  }

  /** Creates a copy of a database that is closed. */
  async copy (name: string, template: string): Promise<void> {
    await this.#onAll(client => client.query(`create database ${name} template ${template}`))
  }

  /** Closes a database, so that it can be copied. */
  async close (name: string): Promise<void> {
    await this.#onAll(client => endSessions(client, name))
  }

  /** Drops a database, with its sessions and with what a failure has left prepared there. */
  async drop (name: string): Promise<void> {
    await this.#onAll(async (client, node) => {
      const { rows } = await client.query(`select gid from pg_prepared_xacts where database = '${name}'`)
      for (const { gid } of rows) await query(this.at(name, node), `rollback prepared ${pg.escapeLiteral(gid)}`)
      await endSessions(client, name)
      await client.query(`drop database if exists ${name} with (force)`)
    })
  }

  /** Drops all databases whose name begins so. */
  async dropAll (prefix: string): Promise<void> {
    const names = new Set<string>()
    await this.#onAll(async client => {
      const { rows } = await client.query(`select datname as name from pg_database where starts_with(datname, '${prefix}')`)
      for (const { name } of rows) names.add(name)
    })
    for (const name of names) await this.drop(name)
  }

  // In the database that the connection string names. Citus is in it, so it is on all nodes; and where Citus is, DROP DATABASE also
  // gives back what its daemon has of shared memory, which has room for as many databases as there are worker processes.
  async #onAll (work: (client: pg.Client, node: Address) => Promise<unknown>): Promise<void> {
    await Promise.all(this.nodes.map(node => withClient(this.at(this.#url.pathname.slice(1), node), async client => {
      await client.query(apart)
      await work(client, node)
    })))
  }
}

// Citus has sessions in each database, of its daemon and of other nodes. They would come back, so first nobody may connect any more.
async function endSessions (client: pg.Client, name: string): Promise<void> {
  const { rowCount } = await client.query('select from pg_database where datname = $1', [name])
  if (rowCount === 0) return
  await client.query(`alter database ${name} with allow_connections false`)
  const until = Date.now() + PATIENCE
  for (;;) {
    const { rows: sessions } = await client.query(`
      select pg_terminate_backend(pid), backend_type, application_name, query from pg_stat_activity where datname = '${name}'`)
    if (sessions.length === 0) return
    if (Date.now() > until) throw new Error(`There are still sessions in ${name}: ${JSON.stringify(sessions)}`)
    await sleep(PAUSE)
  }
}

function argumentsOf ({ host, port }: Address): string {
  return `${pg.escapeLiteral(host)}, ${port}`
}

/** Runs statements in a session of their own, and returns the rows of the last one. */
export async function query (connectionString: string, ...statements: string[]): Promise<any[]> {
  return await withClient(connectionString, async client => {
    let rows: any[] = []
    for (const statement of statements) ({ rows } = await client.query(statement))
    return rows
  })
}

async function withClient<T> (connectionString: string, work: (client: pg.Client) => Promise<T>): Promise<T> {
  const client = new pg.Client({ connectionString })
  client.on('error', () => {})
  await client.connect()
  try {
    return await work(client)
  } finally {
    await client.end()
  }
}
