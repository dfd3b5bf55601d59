import pg from 'pg'
import { startPostgres } from './postgres/postgres.js'
import { startSynchronousStandby } from './postgres/synchronous-standby.js'

/** How many accounts a spread load charges. */
export const ACCOUNTS = 10_000

/** The credits of every account: more than a load can spend. */
export const PLENTY = 1e15

/** How many connections every contender's pool has. */
export const POOL = 10

/** The single account of a hot load. */
export const HOT = 'hot'

/** Returns a random account of a spread load. */
export const anyUser = () => `user${Math.floor(Math.random() * ACCOUNTS)}`

/**
 * Starts a PostgreSQL server for the benchmark, as durable as PostgreSQL is by default. `synchronous`: with a standby that has
 * what is committed.
 */
export async function startServer (settings: Record<string, string> = {}, synchronous = false) {
  const all = { fsync: 'on', synchronous_commit: 'on', max_connections: 600, ...settings }
  const server = await startPostgres({ settings: all })
  const standby = synchronous ? await startSynchronousStandby(server, all) : undefined
  return {
    async stop () {
      await server.stop()
      await standby?.stop()
    },
    /** Creates an empty database, and returns its connection string. */
    async createDatabase (name: string): Promise<string> {
      const admin = new pg.Client(server.connectionString)
      await admin.connect()
      await admin.query(`create database "${name}"`)
      await admin.end()
      return Object.assign(new URL(server.connectionString), { pathname: `/${name}` }).href
    }
  }
}

/** Opens the pool that every contender uses. */
export function openPool (connectionString: string, options: pg.PoolConfig = {}): pg.Pool {
  const pool = new pg.Pool({ connectionString, max: POOL, ...options })
  pool.on('error', () => {}) // the server may stop before an idle connection is closed
  return pool
}

/** Runs SQL on a new connection, and returns the rows. */
export async function query (connectionString: string, sql: string): Promise<any[]> {
  const client = new pg.Client(connectionString)
  await client.connect()
  try {
    return (await client.query(sql)).rows
  } finally {
    await client.end()
  }
}

/** Returns SQL that makes the library's accounts, with their credits. */
export const fillAccounts = (accounts = ACCOUNTS) => `
  insert into ai_credits (user_id, total_credits, opening_total)
  select user_id, ${PLENTY}, ${PLENTY}
  from (select 'user' || n from generate_series(0, ${accounts - 1}) n union all select '${HOT}') users (user_id)`
