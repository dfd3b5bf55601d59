import type { Test } from 'tap'
import pg from 'pg'
import { citus } from './citus.js'
import { clockedPath, clockSchema, setFunctionsClock, setNodeClocks, withClock } from './clock-schema.js'
import { createDatabase, createLedgerDatabase, pglite } from './database.js'
import { ledgerScripts } from '../../bench/ledger-scripts.js'

/** A database whose clock the test sets. */
export interface ClockedDatabase {
  /** The connection string of connections that use the test's clock. */
  connectionString: string
  /** Sets the clock to an ISO 8601 time, for all connections, and for functions that were created since. */
  setClock: (time: string) => Promise<void>
}

/** Creates a database with the ledger's tables, whose clock the test sets. */
export async function createClockedLedgerDatabase (t: Test, time: string): Promise<ClockedDatabase> {
  const plain = await createLedgerDatabase(t, 'clocked')
  const { setClock } = await clocked(t, plain, time, ledgerScripts)
  return { connectionString: plain, setClock }
}

/**
 * Creates an empty database whose clock the test sets. It applies to older functions, and to those that are there when it is
 * set.
 */
export async function createClockedDatabase (t: Test, time: string): Promise<ClockedDatabase> {
  return await clocked(t, await createDatabase(t), time)
}

// Runs `scripts` if the database is not a copy of one that has the clock.
async function clocked (t: Test, plain: string, time: string, scripts: string[] = []): Promise<ClockedDatabase> {
  const client = new pg.Client({ connectionString: plain })
  client.on('error', () => {})
  await client.connect()
  t.teardown(() => client.end())
  const { rows: [{ present }] } = await client.query("select to_regclass('test_clock.clock') is not null as present")
  if (!present && citus) throw new Error('There is no clock on Citus for older functions')
  if (!present) for (const script of [...scripts, clockSchema]) await client.query(script)
  const setClock = async (instant: string) => {
    const { rows: failed } = await client.query(citus ? setNodeClocks : 'update test_clock.clock set instant = $1', [instant])
    if (failed.length > 0) throw new Error(`A clock was not set: ${JSON.stringify(failed)}`)
    await client.query(setFunctionsClock)
  }
  await setClock(time)
  // PGlite ignores the options of a connection, and all connections share its one session.
  if (pglite) await client.query(`set search_path to ${clockedPath}`)
  return { connectionString: withClock(plain), setClock }
}
