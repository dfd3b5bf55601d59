import { inspect } from 'node:util'
import { parseLedgerOptions, type LedgerOptions, type ParsedLedgerOptions } from '../options.js'
import { balance } from './balance.js'
import { readCaptures } from './captures.js'
import { readChanges } from './changes.js'
import type { Context } from './context.js'
import { Database, type Pool } from './database.js'
import { deduct } from './deduct.js'
import { Emitter, type ListenerErrorHandler } from './emitter.js'
import { Events } from './events.js'
import { functionCall } from './function-call.js'
import { grant, revoke } from './grant.js'
import { history } from './history.js'
import { openHoldAccounts } from './hold-accounts.js'
import { capture, extend, hold, release } from './hold.js'
import { migrate } from './migrate.js'
import { openPostings } from './postings.js'
import { prune } from './prune.js'
import { reconcile } from './reconcile.js'
import { refund } from './refund.js'
import { statement } from './statement.js'
import { openTelemetry } from './telemetry.js'
import { setAllowance, setOverdraft } from './terms.js'
import type { Balance, Credits, History, HistoryInput, Ledger, MigrateInput } from './types.js'

const SAMPLE_DATA = functionCall('ai_credit_write_sample_data', ['varchar', 'varchar'])

/** A ledger with what the plugin needs besides. */
export interface PluginLedger extends Ledger {
  /** The methods that callers get. */
  credits: Credits
  /** As the ledger's, within so many seconds (undefined: any number), or it throws AdoptionTooLongError at once. */
  migrate (input?: { seconds?: number | undefined, onProgress?: MigrateInput['onProgress'] | undefined }): Promise<void>
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
  return { ...credits, migrate: ({ onProgress } = {}) => migrate({ onProgress }), close }
}

/**
 * The same, with options that were parsed before. `onConnectionLost` hears of idle connections of the pool that broke,
 * `onListenerError` of listeners that threw or rejected.
 */
export function openLedger (
  pool: Pool, options: ParsedLedgerOptions, onConnectionLost = ignore, onListenerError = warn
): PluginLedger {
  hearErrors(pool, onConnectionLost)
  const emitter = new Emitter(onListenerError)
  const events: Events = new Events({
    emitter,
    low: options.low,
    readCaptures: captures => readCaptures(database, captures, options.timeout),
    readChanges: settled => readChanges(database, settled, options.timeout),
    onError: onListenerError
  })
  const database = new Database(pool, options, settled => events.settled(settled))
  const telemetry = openTelemetry({ emitter, queueLength: () => context.postings.length, hasPrice: options.prices.has })
  const allowance = JSON.stringify(typeof options.allowance === 'number' ? { credits: options.allowance } : options.allowance)
  const context: Context = {
    database,
    postings: openPostings(database, { options, allowance, onSend: telemetry.sent }),
    holdAccounts: openHoldAccounts(database, options.maxQueue),
    events,
    options,
    allowance
  }
  const credits: Credits = {
    ...telemetry.measured(operations(context)),
    quote: (operation, usage) => options.prices.quote(operation, usage),
    ...subscriptions(emitter)
  }
  return {
    ...credits,
    credits,
    read: telemetry.measured({ history: (userId: string, input?: HistoryInput) => history(context, userId, input) }).history,
    async migrate ({ seconds, onProgress } = {}) {
      const { schema, timeZone } = options
      await database.lend(connection => migrate(connection, { schema, timeZone, seconds, onProgress }))
      await database.start()
      await telemetry.ready
    },
    async start () {
      await database.start()
      await telemetry.ready
    },
    async writeSampleData () {
      await database.row({
        name: 'ai_credit_sample_data',
        text: SAMPLE_DATA,
        values: () => [options.defaultUser, options.timeZone],
        repeatable: true
      })
    },
    async close () {
      await database.close()
      await events.flush()
      emitter.clear()
      telemetry.close()
    }
  }
}

function operations (context: Context): Omit<Credits, 'quote' | keyof Subscriptions> {
  return {
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
    reconcile: (userId, input) => reconcile(context, userId, input),
    prune: input => prune(context, input)
  }
}

type Subscriptions = Pick<Credits, 'on' | 'once' | 'off'>

function subscriptions (emitter: Emitter): Subscriptions {
  return {
    on: (event, listener) => emitter.add(event, listener, false),
    once: (event, listener) => emitter.add(event, listener, true),
    off: (event, listener) => emitter.remove(event, listener)
  }
}

const heard = new WeakSet<Pool>()

// A pool tells of idle connections that were terminated by an event; unheard, it would end the host's process. The
// pool replaces such a connection by itself.
function hearErrors (pool: Pool, listener: (error: Error) => void) {
  if (heard.has(pool)) return
  heard.add(pool)
  pool.on('error', listener)
  // A server that goes away may say so in one breath with its welcome, before the pool has handed the connection over.
  pool.on('connect', connection => connection.on('error', ignore))
}

function ignore (_error: Error) {}

// Anything can be thrown, also what cannot be made a string.
const warn: ListenerErrorHandler = (error, event) => {
  const text = typeof error === 'string' ? error : inspect(error, { customInspect: false })
  process.emitWarning(`A listener of ${event} failed: ${text}`, 'CreditsListenerWarning')
}
