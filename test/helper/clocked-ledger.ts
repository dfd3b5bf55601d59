import type pg from 'pg'
import type { Test } from 'tap'
import { createLedger, type Ledger, type LedgerOptions } from '../../src/index.js'
import { createClockedLedgerDatabase } from './clock.js'
import { createPool, pglite } from './database.js'

/** A ledger on a database whose clock the test sets. */
export interface ClockedLedger {
  credits: Ledger
  pool: pg.Pool
  connectionString: string
  /** Sets what time it is. */
  at: (time: string) => Promise<void>
  /** Another ledger on the same database, as another process with other options would have it. */
  open: (options: LedgerOptions) => Ledger
}

/** A test that begins at `time` with a ledger that no account is in. At its end every account must reconcile. */
export function onLedger (
  time: string, options: LedgerOptions, body: (t: Test, ledger: ClockedLedger) => Promise<void>
) {
  return async (t: Test) => {
    const { connectionString, setClock } = await createClockedLedgerDatabase(t, time)
    const pool = createPool(t, connectionString)
    const open = (options: LedgerOptions) => createLedger(pool, { prepare: !pglite, ...options })
    const credits = open(options)
    await credits.migrate()
    await body(t, { credits, pool, connectionString, at: setClock, open })
    t.match(await credits.reconcile(), { ok: true, differences: [] }, 'every account reconciles')
  }
}

/** The last microsecond before a time. */
export function justBefore (time: string): string {
  return new Date(Date.parse(time) - 1).toISOString().replace('Z', '999Z')
}
