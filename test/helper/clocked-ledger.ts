import type pg from 'pg'
import t, { type Test } from 'tap'
import { createLedger, type Ledger, type LedgerOptions, type Queryable } from '../../src/index.js'
import { createClockedLedgerDatabase } from './clock.js'
import { citus, useTimeZone } from './citus.js'
import { createPool, pglite } from './database.js'

/** A ledger on a database whose clock the test sets. */
export interface ClockedLedger {
  credits: Ledger
  pool: pg.Pool
  connectionString: string
  /** Sets the clock to an ISO 8601 time. */
  at: (time: string) => Promise<void>
  /** Opens another ledger on the same database, like another process with other options. */
  open: (options: LedgerOptions) => Ledger
  /** Runs the work on a client of the host, in a transaction that ends with this command. */
  transaction: <T>(end: 'commit' | 'rollback', work: (client: Queryable) => Promise<T>) => Promise<T>
}

type Body = (t: Test, ledger: ClockedLedger) => Promise<void>

/** The time at which a test of `ledgerTest` begins. */
export const start = '2030-01-01T00:00:00.000Z'

/** Declares a test with `onLedger`. The allowance is 100 unless the options say another. */
export function ledgerTest (name: string, body: Body, options: LedgerOptions = {}): void {
  t.test(name, onLedger(start, { allowance: 100, ...options }, body))
}

/** Returns a test that begins at `time` with a ledger without accounts. At its end all accounts must reconcile. */
export function onLedger (time: string, options: LedgerOptions, body: Body): (t: Test) => Promise<void> {
  return async (t: Test) => {
    const { connectionString, setClock } = await createClockedLedgerDatabase(t, time)
    const pool = createPool(t, connectionString)
    const open = (options: LedgerOptions) => createLedger(pool, { prepare: !pglite, ...options })
    if (citus !== undefined && options.timeZone !== undefined) await useTimeZone(pool, options.timeZone)
    const credits = open(options)
    await credits.migrate()
    await body(t, { credits, pool, connectionString, at: setClock, open, transaction: (end, work) => transaction(pool, end, work) })
    t.match(await credits.reconcile(), { ok: true, differences: [] }, 'every account reconciles')
  }
}

async function transaction<T> (pool: pg.Pool, end: string, work: (client: Queryable) => Promise<T>): Promise<T> {
  const client = await pool.connect()
  try {
    await client.query('begin')
    const result = await work(client)
    await client.query(end)
    return result
  } finally {
    client.release()
  }
}

/** Returns the time one microsecond earlier. */
export function justBefore (time: string): string {
  return new Date(Date.parse(time) - 1).toISOString().replace('Z', '999Z')
}
