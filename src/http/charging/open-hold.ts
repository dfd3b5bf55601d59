import { setTimeout as sleep } from 'node:timers/promises'
import type { FastifyBaseLogger } from 'fastify'
import { HoldClosedError, UnavailableError } from '../../errors.js'
import type { Metadata } from '../../ledger/metadata.js'
import type { Usage } from '../../ledger/prices/types.js'
import type { Capture, Credits, Hold } from '../../ledger/types.js'

const FIRST_PAUSE = 100 // milliseconds before the second attempt, doubled with each further one
const LONGEST_PAUSE = 5000

/** What an open hold works with. */
export interface Keeper {
  ledger: Credits
  log: FastifyBaseLogger
  ttl: number
  /** Whether the gateway waits no longer. */
  gaveUp: () => boolean
}

/** What is to become of a hold. */
export interface Spending {
  credits: number
  /** The quantities that the credits were computed from. */
  usage: Usage | undefined
  metadata: Metadata | undefined
}

/** A hold that is kept alive while its request is in flight, and then captured or released. */
export class OpenHold {
  // By the process's own clock: the database's may be another.
  private lapsesAt: number
  private timer: NodeJS.Timeout | undefined

  constructor (readonly hold: Hold, private readonly keeper: Keeper) {
    this.lapsesAt = performance.now() + keeper.ttl
    this.extendIn(keeper.ttl / 2)
  }

  /** Lets the hold live no longer than it is to live now. */
  stopExtending (): void {
    clearTimeout(this.timer)
    this.timer = undefined
  }

  /** Turns credits into spending, now or not at all. */
  async captureOnce (spending: Spending): Promise<void> {
    await this.capture(spending, 'reject')
  }

  /** Turns credits into spending; is repeated while the hold lives. */
  async captureInTheEnd (spending: Spending): Promise<void> {
    const { credits } = spending
    await this.persist({ credits }, async () => {
      const { uncollected } = await this.capture(spending, 'partial')
      if (uncollected > 0) this.keeper.log.warn({ ...this.names, credits, uncollected }, 'A request cost more than the account had')
    })
  }

  /** Gives the hold back; is repeated while it lives. `attempted`: a capture that gave no answer. */
  async release (attempted: Spending | undefined): Promise<void> {
    await this.persist({ credits: 0 }, async () => {
      try {
        await this.keeper.ledger.release(this.hold.id, { userId: this.hold.userId })
      } catch (error) {
        if (!(error instanceof HoldClosedError) || attempted === undefined) throw error
        await this.giveBack(attempted)
      }
    })
  }

  // The capture was made although nobody was told: repeated, it says which usage record is to be given back.
  private async giveBack (spending: Spending) {
    const { userId } = this.hold
    const { id } = await this.capture(spending, 'reject')
    await this.keeper.ledger.refund({ userId, usageId: id, reason: 'not delivered', idempotencyKey: `hold ${this.hold.id}` })
  }

  private async capture ({ credits, usage, metadata }: Spending, shortfall: 'partial' | 'reject'): Promise<Capture> {
    const { id, userId, operation } = this.hold
    const about = { userId, shortfall, ...metadata && { metadata } }
    return await this.keeper.ledger.capture(id, usage === undefined ? { ...about, credits } : { ...about, operation, usage })
  }

  private async persist (about: object, call: () => Promise<void>) {
    let pause = FIRST_PAUSE
    while (!await this.attempt(about, call, pause)) pause = Math.min(pause * 2, LONGEST_PAUSE)
  }

  // Answers whether that was the last attempt.
  private async attempt (about: object, call: () => Promise<void>, pause: number): Promise<boolean> {
    try {
      await call()
    } catch (err) {
      if (this.keeper.gaveUp()) return true // it is in the log
      const wait = pause * (0.5 + Math.random())
      if (err instanceof UnavailableError && performance.now() + wait < this.lapsesAt) {
        await sleep(wait, undefined, { ref: false })
        return false
      }
      this.keeper.log.error({ err, ...this.names, ...about }, 'A charged request could not be settled')
    }
    return true
  }

  private extendIn (milliseconds: number) {
    this.timer = setTimeout(() => this.extend(), milliseconds).unref()
  }

  private async extend () {
    const { ledger, log, ttl } = this.keeper
    const timer = this.timer
    let next = ttl / 2
    try {
      await ledger.extend(this.hold.id, { userId: this.hold.userId, ttl })
      this.lapsesAt = performance.now() + ttl
    } catch (err) {
      log.warn({ err, ...this.names }, 'The hold of a request in flight could not be extended')
      if (!(err instanceof UnavailableError)) return // it has lapsed, and is charged all the same
      next = ttl / 8
    }
    if (this.timer === timer) this.extendIn(next)
  }

  /** What a line of the log calls it. */
  get names () {
    return { holdId: this.hold.id, userId: this.hold.userId, operation: this.hold.operation }
  }
}
