import { randomUUID } from 'node:crypto'
import { readFile } from 'node:fs/promises'
import pg from 'pg'
import type { Test } from 'tap'
import { migrations } from '../../src/sql/index.js'
import { startPglite } from './pglite.js'
import { sharedConnectionString } from './shared-server.js'

/** Whether this run tests on PGlite, which has one backend, instead of a PostgreSQL server. */
export const pglite = process.env.TEST_PGLITE !== undefined

/** Creates an empty database and answers its connection string; it is gone after the test and its later teardowns. */
export async function createDatabase (t: Test): Promise<string> {
  const { connectionString, drop } = pglite ? await startPglite() : await createOnServer()
  t.teardown(drop)
  if (process.env.TEST_PARTITIONED !== undefined) await migratePartitioned(connectionString)
  return connectionString
}

/** A pool that is ended after the test, and that a database going away does not make crash the process. */
export function createPool (t: Test, connectionString: string, options: pg.PoolConfig = {}): pg.Pool {
  const pool = new pg.Pool({ connectionString, ...options })
  pool.on('error', () => {})
  t.teardown(async () => {
    if (!pool.ending) await pool.end()
  })
  return pool
}

/** The script that partitions the usage records by month. */
export const partitionScript = new URL('../../docs/partition-usage.sql', import.meta.url)

// All migrations and the script: what a test's ledger then finds is to behave as without the script.
async function migratePartitioned (connectionString: string) {
  for (const { sql } of migrations) await query(connectionString, sql)
  await query(connectionString, await readFile(partitionScript, 'utf8'))
}

async function createOnServer () {
  const server = await sharedConnectionString()
  const name = `test_${randomUUID().replaceAll('-', '')}`
  await query(server, `create database ${name}`)
  const url = new URL(server)
  url.pathname = name
  return { connectionString: url.href, drop: () => query(server, `drop database ${name} with (force)`) }
}

async function query (connectionString: string, sql: string): Promise<void> {
  const client = new pg.Client({ connectionString })
  await client.connect()
  try {
    await client.query(sql)
  } finally {
    await client.end()
  }
}
