import { randomUUID } from 'node:crypto'
import pg from 'pg'
import type { Test } from 'tap'
import { citus, createOnCluster } from './citus.js'
import { startPglite } from './pglite.js'
import { sharedConnectionString } from './shared-server.js'
import { copyOf, type Template } from './templates.js'

/** Whether this run uses PGlite, which has one backend, instead of a PostgreSQL server. */
export const pglite = process.env.TEST_PGLITE !== undefined

/** The view of the server's sessions; on a cluster, of those on all nodes. */
export const activity = citus ? 'citus_stat_activity' : 'pg_stat_activity'

/** Creates an empty database and returns its connection string. It is dropped after the test and its later teardowns. */
export async function createDatabase (t: Test): Promise<string> {
  return await create(t)
}

/**
 * Creates a database and returns its connection string. It has the ledger's tables already if the server has a template of
 * them: creating them takes longer than most tests.
 */
export async function createLedgerDatabase (t: Test, template: Template = 'ledger'): Promise<string> {
  return await create(t, template)
}

/** Pool options that keep idle sessions. By default a pool ends them after 10 seconds, which slow tests exceed. */
export const keepSessions = { idleTimeoutMillis: 0 }

/** Creates a pool that is ended after the test. A lost connection does not crash the process. */
export function createPool (t: Test, connectionString: string, options: pg.PoolConfig = {}): pg.Pool {
  const pool = new pg.Pool({ connectionString, ...keepSessions, ...options })
  pool.on('error', () => {})
  t.teardown(async () => {
    if (!pool.ending) await pool.end()
  })
  return pool
}

async function create (t: Test, template?: Template) {
  const { connectionString, drop } = await (pglite ? startPglite() : citus ? createOnCluster(template) : createOnServer(template))
  t.teardown(drop)
  return connectionString
}

async function createOnServer (template?: Template) {
  const server = await sharedConnectionString()
  const name = `test_${randomUUID().replaceAll('-', '')}`
  await withClient(server, async client => client.query(`create database ${name}${await copyOf(client, template)}`))
  const url = new URL(server)
  url.pathname = name
  const drop = () => withClient(server, client => client.query(`drop database ${name} with (force)`))
  return { connectionString: url.href, drop }
}

async function withClient (connectionString: string, work: (client: pg.Client) => Promise<unknown>): Promise<void> {
  const client = new pg.Client({ connectionString })
  await client.connect()
  try {
    await work(client)
  } finally {
    await client.end()
  }
}
