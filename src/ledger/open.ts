import { inspect } from 'node:util'
import type { Call, Context } from './context.js'
import { Database } from './database/database.js'
import { migrate } from './database/migrate.js'
import type { MigrateInput } from './database/adopt.js'
import type { Pool } from './database/types.js'
import { readCaptures } from './events/captures.js'
import { readChanges } from './events/changes.js'
import { Emitter, type ListenerErrorHandler } from './events/emitter.js'
import { Events } from './events/events.js'
import { setAllowance } from './operations/allowance.js'
import { balance } from './operations/balance.js'
import { budgets, removeBudget, setBudget } from './operations/budgets.js'
import { canAfford, canAffordChecked, type Affordability } from './operations/can-afford.js'
import { capture } from './operations/capture.js'
import { deduct, deductChecked, type DeductInput, type Deduction } from './operations/deduct.js'
import { extend } from './operations/extend.js'
import { grant } from './operations/grant.js'
import { history, type History, type HistoryInput } from './operations/history.js'
import { hold } from './operations/hold.js'
import { setOverdraft } from './operations/overdraft.js'
import { prune } from './operations/prune.js'
import { reconcile } from './operations/reconcile.js'
import { refund } from './operations/refund.js'
import { release } from './operations/release.js'
import { revoke } from './operations/revoke.js'
import { writeSampleData } from './operations/sample-data.js'
import { statement } from './operations/statement.js'
import type { ParsedLedgerOptions } from './options.js'
import type { Balance } from './posting/balance.js'
import { openOwners } from './posting/owners.js'
import { openPostings } from './posting/postings.js'
import { openTelemetry } from './telemetry.js'
import type { Credits, Ledger } from './types.js'

/** A ledger with the further methods that the plugin needs. */
export interface PluginLedger extends Ledger {
  /** The methods that `fastify.credits` has. */
  credits: Credits
  /**
   * Does what `migrate` of a ledger does. `seconds`: the time that an adoption may take; undefined: no limit. Throws
   * AdoptionTooLongError if there are too many records for that time, before it adopts them.
   */
  migrate (input?: { seconds?: number | undefined, onProgress?: MigrateInput['onProgress'] | undefined }): Promise<void>
  /** Checks the database, and changes nothing. Throws if its tables are missing or do not fit this version or the options. */
  start (): Promise<void>
  /** Writes the sample data if the default user has no account yet. */
  writeSampleData (): Promise<void>
  /** Returns a page of history, and the balance at the same moment. */
  read (userId: string, input?: HistoryInput): Promise<History & { balance: Balance }>
  /** Does what `deduct` does, without checking the input, because a route's schema has checked it. */
  deductChecked (input: DeductInput): Promise<Deduction>
  /** Does what `canAfford` does, without checking the input, because a route's schema has checked it. */
  canAffordChecked (input: DeductInput): Promise<Affordability>
}

/**
 * Opens a ledger on a pool. `onConnectionLost` is called if an idle connection of the pool breaks, `onListenerError` if a
 * listener throws or rejects.
 */
export function openLedger (
  pool: Pool, options: ParsedLedgerOptions, onConnectionLost = ignore, onListenerError = warn
): PluginLedger {
  handlePoolErrors(pool, onConnectionLost)
  const emitter = new Emitter(onListenerError)
  const events: Events = new Events({
    emitter,
    low: options.low,
    budgetLow: options.budgetLow,
    readCaptures: captures => readCaptures(database, captures, options.timeout),
    readChanges: settled => readChanges(database, settled, options.timeout),
    onError: onListenerError
  })
  const database = new Database(pool, options, ({ settled, counted }) => {
    if (settled) events.accountsSettled(settled)
    if (counted) events.budgetsCounted(counted)
  })
  const telemetry = openTelemetry({ emitter, queueLength: () => context.postings.length, hasPrice: options.prices.has })
  const allowance = JSON.stringify(typeof options.allowance === 'number' ? { credits: options.allowance } : options.allowance)
  const context: Context = {
    database,
    postings: openPostings(database, { options, allowance, onSend: telemetry.sent, tellsOfBudgets: () => events.tellsOfBudgets }),
    owners: openOwners(database, options.maxQueue),
    events,
    options,
    allowance
  }
  const asCall = callsOf(context)
  const credits: Credits = {
    ...telemetry.measured(operations(context, asCall)),
    quote: (operation, usage) => options.prices.quote(operation, usage),
    ...subscriptions(emitter)
  }
  return {
    ...credits,
    credits,
    read: telemetry.measured({ history: asCall(history) }).history,
    deductChecked: telemetry.measured({ deduct: asCall(deductChecked) }).deduct,
    canAffordChecked: telemetry.measured({ canAfford: asCall(canAffordChecked) }).canAfford,
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
    writeSampleData: asCall(writeSampleData),
    async close () {
      await database.close()
      await events.flush()
      emitter.clear()
      telemetry.close()
    }
  }
}

type AsCall = ReturnType<typeof callsOf>

// Makes an operation a method of the ledger. Each call of it gets a deadline. `close` waits for the calls under way, and
// later calls are refused. The fields are written out, because an object that is made by spreading another is slow to make and
// to read: it took a fifth of the calls on one account.
function callsOf ({ database, postings, owners, events, options, allowance }: Context) {
  return <Input extends unknown[], Result>(operation: (call: Call, ...input: Input) => Promise<Result>) =>
    (...input: Input) => database.call(deadline =>
      operation({ database, postings, owners, events, options, allowance, deadline }, ...input))
}

// `reconcile` and `prune` make a call for each batch.
function operations (context: Context, asCall: AsCall): Omit<Credits, 'quote' | keyof Subscriptions> {
  return {
    deduct: asCall(deduct),
    canAfford: asCall(canAfford),
    balance: asCall(balance),
    history: asCall(async (call: Call, userId?: string, input?: HistoryInput) => {
      const { entries, cursor } = await history(call, userId, input)
      return { entries, cursor }
    }),
    hold: asCall(hold),
    capture: asCall(capture),
    release: asCall(release),
    extend: asCall(extend),
    grant: asCall(grant),
    revoke: asCall(revoke),
    refund: asCall(refund),
    setAllowance: asCall(setAllowance),
    setOverdraft: asCall(setOverdraft),
    setBudget: asCall(setBudget),
    removeBudget: asCall(removeBudget),
    budgets: asCall(budgets),
    statement: asCall(statement),
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

const handledPools = new WeakSet<Pool>()

// A pool emits 'error' when an idle connection is terminated. Without a listener, that would end the host's process. The
// pool replaces the connection itself.
function handlePoolErrors (pool: Pool, listener: (error: Error) => void) {
  if (handledPools.has(pool)) return
  handledPools.add(pool)
  pool.on('error', listener)
  // A server that shuts down may send that error right after it accepts a connection, before the pool hands it over.
  pool.on('connect', connection => connection.on('error', ignore))
}

function ignore (_error: Error) {}

// A listener can throw anything, also a value that has no string form.
const warn: ListenerErrorHandler = (error, event) => {
  const text = typeof error === 'string' ? error : inspect(error, { customInspect: false })
  process.emitWarning(`A listener of ${event} failed: ${text}`, 'CreditsListenerWarning')
}
