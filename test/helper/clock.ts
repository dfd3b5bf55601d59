import type { Test } from 'tap'
import pg from 'pg'
import { clockedPath, clockSchema, setFunctionsClock, withClock } from './clock-schema.js'
import { createDatabase, createLedgerDatabase, pglite } from './database.js'
import { ledgerScripts } from './templates.js'

/** A database whose clock the test sets. */
export interface ClockedDatabase {
  /** Connects with the test's clock. */
  connectionString: string
  /** Sets what time it is, for every connection and for functions that have come meanwhile: an ISO 8601 time. */
  setClock: (time: string) => Promise<void>
}

/** A database with the ledger's tables, whose clock says what the test says. */
export async function createClockedLedgerDatabase (t: Test, time: string): Promise<ClockedDatabase> {
  const plain = await createLedgerDatabase(t, 'clocked')
  const { setClock } = await clocked(t, plain, time, ledgerScripts)
  return { connectionString: plain, setClock }
}

/** The same, empty: its clock is for the functions of before, and for those that are there when it is set. */
export async function createClockedDatabase (t: Test, time: string): Promise<ClockedDatabase> {
  return await clocked(t, await createDatabase(t), time)
}

// `scripts`: run where the database is no copy of one that has the clock.
async function clocked (t: Test, plain: string, time: string, scripts: string[] = []): Promise<ClockedDatabase> {
  const client = new pg.Client({ connectionString: plain })
  client.on('error', () => {})
  await client.connect()
  t.teardown(() => client.end())
  const { rows: [{ present }] } = await client.query("select to_regclass('test_clock.clock') is not null as present")
  if (!present) for (const script of [...scripts, clockSchema]) await client.query(script)
  const setClock = async (instant: string) => {
    await client.query('update test_clock.clock set instant = $1', [instant])
    await client.query(setFunctionsClock)
  }
  await setClock(time)
  // PGlite takes no options from a connection, and all connections share its one session.
  if (pglite) await client.query(`set search_path to ${clockedPath}`)
  return { connectionString: withClock(plain), setClock }
}
