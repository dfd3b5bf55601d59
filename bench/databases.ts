import pg from 'pg'
import { startPostgres } from '../test/helper/postgres.js'

/** Accounts of a spread load. */
export const ACCOUNTS = 10_000

/** What every account begins with: never used up. */
export const PLENTY = 1e15

/** Connections of every contender's pool. */
export const POOL = 10

/** The account of a hot load. */
export const HOT = 'hot'

/** One of the accounts of a spread load. */
export const anyUser = () => `user${Math.floor(Math.random() * ACCOUNTS)}`

/** A PostgreSQL server of the benchmark's own, as durable as PostgreSQL is by default. */
export async function startServer (settings: Record<string, string> = {}) {
  const server = await startPostgres({ settings: { fsync: 'on', synchronous_commit: 'on', max_connections: 600, ...settings } })
  return {
    stop: () => server.stop(),
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

/** A pool as every contender has it. */
export function openPool (connectionString: string): pg.Pool {
  const pool = new pg.Pool({ connectionString, max: POOL })
  pool.on('error', () => {}) // the server stops as soon as the last one is done with it
  return pool
}

/** Runs SQL on a connection of its own. */
export async function query (connectionString: string, sql: string): Promise<any[]> {
  const client = new pg.Client(connectionString)
  await client.connect()
  try {
    return (await client.query(sql)).rows
  } finally {
    await client.end()
  }
}

/** Gives the library's accounts what they begin with. */
export const fillAccounts = `
  insert into ai_credits (user_id, total_credits, opening_total)
  select user_id, ${PLENTY}, ${PLENTY}
  from (select 'user' || n from generate_series(0, ${ACCOUNTS - 1}) n union all select '${HOT}') users (user_id)`
