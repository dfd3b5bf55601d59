import type { Test } from 'tap'
import pg from 'pg'
import { clockedPath, clockSchema, withClock } from './clock-schema.js'
import { createDatabase, createLedgerDatabase, pglite } from './database.js'

/** A database whose clock the test sets. */
export interface ClockedDatabase {
  /** Connects with the test's clock; a connection string without `options` has the real one. */
  connectionString: string
  /** Sets what time it is, for every connection: an ISO 8601 time. */
  setClock: (time: string) => Promise<void>
}

/** A database in which `statement_timestamp()` is what the test says; it may have the ledger's tables already. */
export async function createClockedLedgerDatabase (t: Test, time: string): Promise<ClockedDatabase> {
  return await clocked(t, await createLedgerDatabase(t, 'clocked'), time)
}

/** The same, empty. */
export async function createClockedDatabase (t: Test, time: string): Promise<ClockedDatabase> {
  return await clocked(t, await createDatabase(t), time)
}

async function clocked (t: Test, plain: string, time: string): Promise<ClockedDatabase> {
  const client = new pg.Client({ connectionString: plain })
  client.on('error', () => {})
  await client.connect()
  t.teardown(() => client.end())
  const { rows: [{ present }] } = await client.query("select to_regclass('test_clock.clock') is not null as present")
  if (!present) await client.query(clockSchema)
  const setClock = async (instant: string) => {
    await client.query('update test_clock.clock set instant = $1', [instant])
  }
  await setClock(time)
  // PGlite takes no options from a connection, and all connections share its one session.
  if (pglite) await client.query(`set search_path to ${clockedPath}`)
  return { connectionString: withClock(plain), setClock }
}
