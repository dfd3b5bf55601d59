import { balanceOf } from './balance.js'
import type { CaptureFacts, CaptureIds } from './captures.js'
import type { CreditsEvents, LowThreshold } from './credits-events.js'
import type { Emitter, EventName, ListenerErrorHandler } from './emitter.js'
import { crossed, type Level } from './thresholds.js'
import type { Balance, StatementEntry } from './types.js'
import type { Verdict } from './verdict.js'
import { setImmediate } from './timers.js'

/** What a ledger's events are made with. */
export interface EventsOptions {
  emitter: Emitter
  /** The thresholds of `low`. */
  low: readonly LowThreshold[]
  /** Reads what captures were for. */
  readCaptures: (captures: CaptureIds[]) => Promise<Array<CaptureFacts | undefined>>
  /** Reads what time has changed. */
  readChanges: (settled: Settled) => Promise<Change[]>
  /** Is told of captures and changes that could not be read, and so are not told of. */
  onError: ListenerErrorHandler
}

/** What a call was about, as far as listeners are told. */
export interface Charge {
  userId: string
  credits: number
  operation: string
}

/** An account that time has changed, as the SQL function ai_credit_report_settled leaves word of it. */
type SettledAccount = [userId: string, total: number, used: number, held: number, after: number, to: number]

/** A change, as the SQL function ai_credit_changes returns it. */
export type Change = [
  kind: string, at: string, amount: number, reference: string | null, details: StatementEntry['details'] | null,
  total: number, used: number, held: number
]

/** An account's changes from one seq to another, and the balance before them. */
export interface Settled {
  userId: string
  before: Balance
  after: number
  to: number
}

interface Told<E extends EventName = EventName> {
  event: E
  payload: CreditsEvents[E]
}

interface Captured extends CaptureIds {
  userId: string
  credits: number
  balance: Balance
}

type Item = Told | Captured | Settled

/**
 * Tells listeners what the answers of a ledger's calls mean. They hear of it after the callers, and together with what
 * else has been answered by then. While nobody listens, nothing is made.
 */
export class Events {
  private waiting: Item[] = []
  private delivering: Promise<void> | undefined

  constructor (private readonly options: EventsOptions) {}

  /** A deduct was answered. `metadata` is JSON. */
  deduct (row: Verdict & { id: unknown }, charge: Charge, metadata: string): void {
    this.refuse(row, charge)
    if (row.verdict !== 'accepted') return
    if (this.hears('deducted')) {
      const payload = { ...charge, id: String(row.id), metadata: JSON.parse(metadata), balance: balanceOf(row) }
      this.push({ event: 'deducted', payload })
    }
    this.takeAway(row, charge)
  }

  /** A hold was answered. */
  hold (row: Verdict, charge: Charge): void {
    this.refuse(row, charge)
    if (row.verdict === 'accepted') this.takeAway(row, charge)
  }

  /** A capture was answered. */
  capture (row: Verdict & Record<string, unknown>, userId: string, holdId: string): void {
    const refused = row.verdict === 'insufficient'
    if (refused ? !this.hears('refused') : row.verdict !== 'accepted' || !this.hears('deducted', 'low', 'exhausted')) return
    this.push({
      userId,
      holdId,
      id: refused ? null : String(row.id),
      credits: Number(refused ? row.required : row.credits),
      balance: balanceOf(row)
    })
  }

  /** A grant was answered. */
  grant (row: Verdict, granted: Omit<CreditsEvents['granted'], 'balance'>): void {
    if (row.verdict === 'accepted' && this.hears('granted')) {
      this.push({ event: 'granted', payload: { ...granted, balance: balanceOf(row) } })
    }
  }

  /** A revocation was answered. */
  revoke (row: Verdict & { user_id: string, credits: unknown }): void {
    if (row.verdict !== 'accepted' || !this.hears('low', 'exhausted')) return
    const after = balanceOf(row)
    const credits = Number(row.credits)
    this.push(...this.falls(row.user_id, { available: after.available + credits, total: after.total + credits }, after))
  }

  /** A statement has found accounts that were due. */
  settled (json: string): void {
    if (!this.hears('lapsed', 'renewed', 'low', 'exhausted')) return
    const accounts: SettledAccount[] = JSON.parse(`[${json}]`)
    this.push(...accounts.map(([userId, total, used, held, after, to]) =>
      ({ userId, before: balanceOf({ total, used, held }), after, to })))
  }

  /** Resolves when listeners have been told of all that was answered before. */
  async flush (): Promise<void> {
    await new Promise(resolve => setImmediate(resolve)) // the last callers have their answers, and so have we
    await this.delivering
  }

  private hears (...events: EventName[]) {
    return events.some(event => this.options.emitter.hears(event))
  }

  private refuse (row: Verdict, charge: Charge) {
    if (row.verdict === 'insufficient' && this.hears('refused')) {
      this.push({ event: 'refused', payload: { ...charge, balance: balanceOf(row) } })
    }
  }

  private takeAway (row: Verdict, { userId, credits }: Charge) {
    if (!this.hears('low', 'exhausted')) return
    const after = balanceOf(row)
    this.push(...this.falls(userId, { available: after.available + credits, total: after.total }, after))
  }

  private falls (userId: string, before: Level, balance: Balance): Told[] {
    const lows = crossed(this.options.low, before, balance)
      .map((threshold): Told => ({ event: 'low', payload: { userId, threshold, balance } }))
    return before.available > 0 && balance.available <= 0 ? [...lows, { event: 'exhausted', payload: { userId, balance } }] : lows
  }

  private push (...items: Item[]) {
    if (items.length === 0) return
    this.waiting.push(...items)
    this.delivering ??= this.deliver()
  }

  private async deliver () {
    while (this.waiting.length > 0) {
      await new Promise(resolve => setImmediate(resolve)) // the callers first
      const items = this.waiting
      this.waiting = []
      const facts = await this.factsOf(items.filter(item => 'holdId' in item))
      for (const item of items) {
        const told = 'event' in item ? [item] : 'holdId' in item ? this.ofCapture(item, facts.get(item)) : await this.ofTime(item)
        for (const { event, payload } of told) this.options.emitter.tell(event, payload)
      }
    }
    this.delivering = undefined
  }

  private async factsOf (captures: Captured[]): Promise<Map<Captured, CaptureFacts | undefined>> {
    if (captures.length === 0) return new Map()
    try {
      const facts = await this.options.readCaptures(captures)
      if (facts.includes(undefined)) {
        this.options.onError(new Error('A capture was pruned before listeners were told of it'), 'deducted')
      }
      return new Map(captures.map((capture, index) => [capture, facts[index]]))
    } catch (error) {
      this.options.onError(error, 'deducted')
      return new Map()
    }
  }

  private async ofTime (settled: Settled): Promise<Told[]> {
    const told: Told[] = []
    let { userId, before } = settled
    for (const [kind, time, amount, reference, details, total, used, held] of await this.changesOf(settled)) {
      const balance = balanceOf({ total, used, held })
      const at = new Date(time)
      if (kind === 'lapse') {
        told.push({ event: 'lapsed', payload: { userId, holdId: reference!, credits: amount, at, balance } })
      } else if (kind === 'renewal') {
        told.push({ event: 'renewed', payload: { userId, at, details: details!, balance } })
      }
      told.push(...this.falls(userId, before, balance))
      before = balance
    }
    return told
  }

  private async changesOf (settled: Settled): Promise<Change[]> {
    try {
      return await this.options.readChanges(settled)
    } catch (error) {
      this.options.onError(error, 'lapsed')
      return []
    }
  }

  private ofCapture ({ userId, holdId, id, credits, balance }: Captured, facts: CaptureFacts | undefined): Told[] {
    if (facts === undefined) return []
    const { operation, metadata, amount } = facts
    if (id === null) return [{ event: 'refused', payload: { userId, credits, operation, balance } }]
    return [
      { event: 'deducted', payload: { userId, id, credits, operation, metadata, balance, holdId } },
      ...this.falls(userId, { available: balance.available - amount, total: balance.total }, balance)
    ]
  }
}
