import { parseLedgerOptions, type LedgerOptions, type ParsedLedgerOptions } from '../options.js'
import { sampleData } from '../sql/index.js'
import { balance } from './balance.js'
import type { Context } from './context.js'
import { Database, type Pool } from './database.js'
import { deduct } from './deduct.js'
import { grant, revoke } from './grant.js'
import { history } from './history.js'
import { openHoldAccounts } from './hold-accounts.js'
import { capture, extend, hold, release } from './hold.js'
import { migrate } from './migrate.js'
import { openPostings } from './postings.js'
import { reconcile } from './reconcile.js'
import { refund } from './refund.js'
import { statement } from './statement.js'
import { setAllowance, setOverdraft } from './terms.js'
import type { Balance, Credits, History, HistoryInput, Ledger } from './types.js'

/** A ledger with what the plugin needs besides. */
export interface PluginLedger extends Ledger {
  /** The methods that callers get. */
  credits: Credits
  /** Throws what `migrate` would, where the tables are not there or not the right ones. */
  start (): Promise<void>
  /** Gives the default user the sample data, where it has no account yet. */
  writeSampleData (): Promise<void>
  /** A page of history with the balance at that moment. */
  read (userId: string, input?: HistoryInput): Promise<History & { balance: Balance }>
}

/**
 * A ledger without Fastify: for a worker, a script, a webhook. `pool` is a pool of `pg`, which stays the caller's.
 * Throws InvalidOptionError.
 */
export function createLedger (pool: Pool, options: LedgerOptions = {}): Ledger {
  const { credits, migrate, close } = openLedger(pool, parseLedgerOptions(options))
  return { ...credits, migrate, close }
}

/** The same, with options that were parsed before. `onConnectionLost` hears of idle connections of the pool that broke. */
export function openLedger (pool: Pool, options: ParsedLedgerOptions, onConnectionLost = ignore): PluginLedger {
  hearErrors(pool, onConnectionLost)
  const database = new Database(pool, options)
  const allowance = JSON.stringify(typeof options.allowance === 'number' ? { credits: options.allowance } : options.allowance)
  const context: Context = {
    database,
    postings: openPostings(database, { ...options, allowance }),
    holdAccounts: openHoldAccounts(database, options.maxQueue),
    options,
    allowance
  }
  const credits = operations(context)
  return {
    ...credits,
    credits,
    read: (userId, input) => history(context, userId, input),
    async migrate () {
      await database.lend(migrate)
      await database.start()
    },
    async start () {
      await database.start()
    },
    async writeSampleData () {
      await database.row({
        name: 'ai_credit_sample_data',
        text: sampleData,
        values: () => [options.defaultUser, options.timeZone],
        repeatable: true
      })
    },
    close: () => database.close()
  }
}

function operations (context: Context): Credits {
  return {
    quote: (operation, usage) => context.options.prices.quote(operation, usage),
    deduct: input => deduct(context, input),
    balance: userId => balance(context, userId),
    async history (userId, input) {
      const { entries, cursor } = await history(context, userId, input)
      return { entries, cursor }
    },
    hold: input => hold(context, input),
    capture: (holdId, input) => capture(context, holdId, input),
    release: (holdId, input) => release(context, holdId, input),
    extend: (holdId, input) => extend(context, holdId, input),
    grant: input => grant(context, input),
    revoke: (grantId, input) => revoke(context, grantId, input),
    refund: input => refund(context, input),
    setAllowance: (userId, allowance, input) => setAllowance(context, userId, allowance, input),
    setOverdraft: (userId, overdraft, input) => setOverdraft(context, userId, overdraft, input),
    statement: (userId, input) => statement(context, userId, input),
    reconcile: (userId, input) => reconcile(context, userId, input)
  }
}

const heard = new WeakSet<Pool>()

// A pool tells of idle connections that were terminated by an event; unheard, it would end the host's process. The
// pool replaces such a connection by itself.
function hearErrors (pool: Pool, listener: (error: Error) => void) {
  if (heard.has(pool)) return
  heard.add(pool)
  pool.on('error', listener)
}

function ignore (_error: Error) {}
