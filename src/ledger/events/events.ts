import type { BudgetPeriod } from '../budgets/types.js'
import { balanceOf, type Balance } from '../posting/balance.js'
import type { CaptureFacts, CaptureIds } from './captures.js'
import type { CreditsEvents, LowThreshold, RenewalDetails } from './types.js'
import type { Emitter, EventName, ListenerErrorHandler } from './emitter.js'
import { crossed, type Level } from './thresholds.js'
import { budgetRefusalOf, type Verdict } from '../posting/verdict.js'
import { setImmediate } from '../timers.js'

/** The options of `Events`. */
export interface EventsOptions {
  emitter: Emitter
  /** The thresholds of the event `low`. */
  low: readonly LowThreshold[]
  /** The thresholds of the event `budget_low`. */
  budgetLow: readonly LowThreshold[]
  /** Reads the facts about captures. */
  readCaptures: (captures: CaptureIds[]) => Promise<Array<CaptureFacts | undefined>>
  /** Reads the due changes (lapses, expiries, renewals) that a statement has applied to an account. */
  readChanges: (settled: Settled) => Promise<Change[]>
  /** Handles the error if captures or changes cannot be read. Their events are then not emitted. */
  onError: ListenerErrorHandler
}

/** The facts about a deduct or a hold that its events contain. */
export interface SpendingFacts {
  userId: string
  credits: number
  operation: string
}

/** An account to which a statement applied due changes, in the form of the SQL function ai_credit_settled. */
type SettledAccount = [userId: string, total: number, used: number, held: number, after: number, to: number]

/** A limit of a budget that has less left than before, in the form of the SQL function ai_credit_count. */
type CountedLimit = [
  userId: string, budget: string, period: BudgetPeriod, limit: number, used: number, held: number, before: number,
  resetsAt: string | null
]

/** A change of an account, in the form that the SQL function ai_credit_changes returns. */
export type Change = [
  kind: string, at: string, amount: number, reference: string | null, details: RenewalDetails | null,
  total: number, used: number, held: number
]

/** A range of an account's changes: those with a seq above `after` and up to `to`. `before`: the balance before them. */
export interface Settled {
  userId: string
  before: Balance
  after: number
  to: number
}

interface Announcement<E extends EventName = EventName> {
  event: E
  payload: CreditsEvents[E]
}

interface Captured extends CaptureIds {
  userId: string
  credits: number
  balance: Balance
}

type Item = Announcement | Captured | Settled

/**
 * Makes events from the results of a ledger's calls, and emits them after the calls have returned to their callers. Results
 * that arrive meanwhile are handled together. If an event has no listeners, it is not made.
 */
export class Events {
  private waiting: Item[] = []
  private delivering: Promise<void> | undefined

  constructor (private readonly options: EventsOptions) {}

  /** Makes the events of a deduct. `row`: the row of its statement. `metadata`: JSON. */
  deductReturned (row: Verdict & { id: unknown }, charge: SpendingFacts, metadata: string): void {
    this.pushRefusal(row, charge)
    if (row.verdict !== 'accepted') return
    if (this.hasListeners('deducted')) {
      const payload = { ...charge, id: String(row.id), metadata: JSON.parse(metadata), balance: balanceOf(row) }
      this.push({ event: 'deducted', payload })
    }
    this.pushFall(row, charge)
  }

  /** Makes the events of a hold. `row`: the row of its statement. */
  holdReturned (row: Verdict, charge: SpendingFacts): void {
    this.pushRefusal(row, charge)
    if (row.verdict === 'accepted') this.pushFall(row, charge)
  }

  /** Makes the events of a capture. `row`: the row of its statement. */
  captureReturned (row: Verdict & Record<string, unknown>, userId: string, holdId: string): void {
    const refused = row.verdict === 'insufficient'
    if (!refused && row.verdict !== 'accepted') return
    if (!(refused ? this.hasListeners('refused') : this.hasListeners('deducted', 'low', 'exhausted'))) return
    this.push({
      userId,
      holdId,
      id: refused ? null : String(row.id),
      credits: Number(refused ? row.required : row.credits),
      balance: balanceOf(row)
    })
  }

  /** Makes the event of a grant. `row`: the row of its statement. */
  grantReturned (row: Verdict, granted: Omit<CreditsEvents['granted'], 'balance'>): void {
    if (row.verdict === 'accepted' && this.hasListeners('granted')) {
      this.push({ event: 'granted', payload: { ...granted, balance: balanceOf(row) } })
    }
  }

  /** Makes the events of a revocation. `row`: the row of its statement. */
  revokeReturned (row: Verdict & { user_id: string, credits: unknown }): void {
    if (row.verdict !== 'accepted' || !this.hasListeners('low', 'exhausted')) return
    const after = balanceOf(row)
    const credits = Number(row.credits)
    this.push(...this.announceFall(row.user_id, { available: after.available + credits, total: after.total + credits }, after))
  }

  /** Makes the events of due changes that a statement has applied. `json`: the column `settled` of its row. */
  accountsSettled (json: string): void {
    if (!this.hasListeners('lapsed', 'renewed', 'low', 'exhausted')) return
    const accounts: SettledAccount[] = JSON.parse(`[${json}]`)
    this.push(...accounts.map(([userId, total, used, held, after, to]) =>
      ({ userId, before: balanceOf({ total, used, held }), after, to })))
  }

  /** Whether anybody wants to hear of limits of budgets that have less left. */
  get tellsOfBudgets (): boolean {
    return this.options.budgetLow.length > 0 && this.hasListeners('budget_low')
  }

  /**
   * Makes the events of limits of budgets that have less left. `json`: the column `counted` of a statement's row. The calls of a
   * shared statement get their results a moment later, and listeners are called after them.
   */
  budgetsCounted (json: string): void {
    const limits: CountedLimit[] = JSON.parse(json)
    const announcements = limits.flatMap(limit => this.announceCounted(limit))
    setImmediate(() => this.push(...announcements))
  }

  /** Resolves when the events of all earlier results have been emitted. */
  async flush (): Promise<void> {
    await new Promise(resolve => setImmediate(resolve)) // until the last results have arrived here too
    await this.delivering
  }

  private hasListeners (...events: EventName[]) {
    return events.some(event => this.options.emitter.hasListeners(event))
  }

  private pushRefusal (row: Verdict, charge: SpendingFacts) {
    if (row.verdict === 'insufficient' && this.hasListeners('refused')) {
      this.push({ event: 'refused', payload: { ...charge, balance: balanceOf(row) } })
    }
    if (row.verdict === 'budget' && this.hasListeners('budget_exceeded')) {
      const { userId, credits: required, operation } = charge
      this.push({
        event: 'budget_exceeded',
        payload: { userId, ...budgetRefusalOf(row), required, operation, balance: balanceOf(row) }
      })
    }
  }

  private pushFall (row: Verdict, { userId, credits }: SpendingFacts) {
    if (!this.hasListeners('low', 'exhausted')) return
    const after = balanceOf(row)
    this.push(...this.announceFall(userId, { available: after.available + credits, total: after.total }, after))
  }

  // The events `low` and `exhausted`, if the balance has fallen to a threshold or to 0.
  private announceFall (userId: string, before: Level, balance: Balance): Announcement[] {
    const lows = crossed(this.options.low, before, balance)
      .map((threshold): Announcement => ({ event: 'low', payload: { userId, threshold, balance } }))
    return before.available > 0 && balance.available <= 0 ? [...lows, { event: 'exhausted', payload: { userId, balance } }] : lows
  }

  // The event `budget_low`, if what is left of the limit has fallen to a threshold.
  private announceCounted ([userId, budget, period, limit, used, held, before, time]: CountedLimit): Announcement[] {
    const left = limit - used - held
    const resetsAt = time === null ? null : new Date(time)
    return crossed(this.options.budgetLow, { available: limit - before, total: limit }, { available: left, total: limit })
      .map(threshold => ({ event: 'budget_low', payload: { userId, budget, period, limit, used, held, left, resetsAt, threshold } }))
  }

  private push (...items: Item[]) {
    if (items.length === 0) return
    this.waiting.push(...items)
    this.delivering ??= this.deliver()
  }

  private async deliver () {
    while (this.waiting.length > 0) {
      await new Promise(resolve => setImmediate(resolve)) // the callers get their results first
      const items = this.waiting
      this.waiting = []
      const facts = await this.factsOf(items.filter(item => 'holdId' in item))
      for (const item of items) {
        const announcements = 'event' in item
          ? [item]
          : 'holdId' in item ? this.announceCapture(item, facts.get(item)) : await this.announceChanges(item)
        for (const { event, payload } of announcements) this.options.emitter.emit(event, payload)
      }
    }
    this.delivering = undefined
  }

  private async factsOf (captures: Captured[]): Promise<Map<Captured, CaptureFacts | undefined>> {
    if (captures.length === 0) return new Map()
    try {
      const facts = await this.options.readCaptures(captures)
      if (facts.includes(undefined)) {
        this.options.onError(new Error('A capture was pruned before its events were emitted'), 'deducted')
      }
      return new Map(captures.map((capture, index) => [capture, facts[index]]))
    } catch (error) {
      this.options.onError(error, 'deducted')
      return new Map()
    }
  }

  private async announceChanges (settled: Settled): Promise<Announcement[]> {
    const announcements: Announcement[] = []
    let { userId, before } = settled
    for (const [kind, time, amount, reference, details, total, used, held] of await this.changesOf(settled)) {
      const balance = balanceOf({ total, used, held })
      const at = new Date(time)
      if (kind === 'lapse') {
        announcements.push({ event: 'lapsed', payload: { userId, holdId: reference!, credits: amount, at, balance } })
      } else if (kind === 'renewal') {
        announcements.push({ event: 'renewed', payload: { userId, at, details: details!, balance } })
      }
      announcements.push(...this.announceFall(userId, before, balance))
      before = balance
    }
    return announcements
  }

  private async changesOf (settled: Settled): Promise<Change[]> {
    try {
      return await this.options.readChanges(settled)
    } catch (error) {
      this.options.onError(error, 'lapsed')
      return []
    }
  }

  private announceCapture ({ userId, holdId, id, credits, balance }: Captured, facts: CaptureFacts | undefined): Announcement[] {
    if (facts === undefined) return []
    const { operation, metadata, amount } = facts
    if (id === null) return [{ event: 'refused', payload: { userId, credits, operation, balance } }]
    return [
      { event: 'deducted', payload: { userId, id, credits, operation, metadata, balance, holdId } },
      ...this.announceFall(userId, { available: balance.available - amount, total: balance.total }, balance)
    ]
  }
}
