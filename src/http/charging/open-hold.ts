import { setTimeout as sleep } from 'node:timers/promises'
import type { FastifyBaseLogger } from 'fastify'
import { HoldClosedError, UnavailableError } from '../../errors.js'
import type { Metadata } from '../../ledger/metadata.js'
import type { Usage } from '../../ledger/prices/types.js'
import type { Capture, Credits, Hold } from '../../ledger/types.js'

const FIRST_PAUSE = 100 // milliseconds before the second attempt, doubled with each further one
const LONGEST_PAUSE = 5000

/** What an open hold works with. */
export interface HoldSettings {
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
  private attempted: Spending | undefined
  private capture: Capture | undefined

  constructor (readonly hold: Hold, private readonly settings: HoldSettings) {
    this.lapsesAt = performance.now() + settings.ttl
    this.extendIn(settings.ttl / 2)
  }

  /** What a line of the log calls it. */
  get names () {
    return { holdId: this.hold.id, userId: this.hold.userId, operation: this.hold.operation }
  }

  /** The credits that `captureOnce` took; undefined: none. */
  get captured (): number | undefined {
    return this.capture && this.attempted!.credits
  }

  /** Lets the hold live no longer than it is to live now. */
  stopExtending (): void {
    clearTimeout(this.timer)
    this.timer = undefined
  }

  /** The same, and calls back when it is about to lapse. */
  letLapse (callback: () => void): void {
    this.stopExtending()
    this.timer = setTimeout(callback, this.lapsesAt - performance.now()).unref()
  }

  /** Turns credits into spending, now or not at all. */
  async captureOnce (spending: Spending): Promise<void> {
    this.attempted = spending
    this.capture = await this.spend(spending, 'reject')
    this.stopExtending()
  }

  /** Makes what is spent be this, whatever was captured before; is repeated while the hold lives. */
  async settle (spending: Spending): Promise<void> {
    const { credits } = spending
    await this.persist({ credits }, async () => {
      if (this.capture !== undefined) await this.giveBack(this.capture, credits)
      else if (credits > 0) await this.captureInTheEnd(spending)
      else await this.release()
    })
  }

  private async captureInTheEnd (spending: Spending) {
    const { credits } = spending
    const { uncollected } = await this.spend(spending, 'partial')
    if (uncollected > 0) this.settings.log.warn({ ...this.names, credits, uncollected }, 'A request cost more than the account had')
  }

  private async release () {
    try {
      await this.settings.ledger.release(this.hold.id, { userId: this.hold.userId })
    } catch (error) {
      if (!(error instanceof HoldClosedError) || this.attempted === undefined) throw error
      // The capture was made although nobody was told: repeated, it says which usage record is to be given back.
      await this.giveBack(await this.spend(this.attempted, 'reject'), 0)
    }
  }

  private async giveBack ({ id }: Capture, due: number) {
    const credits = this.attempted!.credits - due
    if (credits <= 0) return
    const { id: holdId, userId } = this.hold
    await this.settings.ledger.refund({ userId, usageId: id, credits, reason: 'not delivered', idempotencyKey: `hold ${holdId}` })
  }

  private async spend ({ credits, usage, metadata }: Spending, shortfall: 'partial' | 'reject'): Promise<Capture> {
    const { id, userId, operation } = this.hold
    const about = { userId, shortfall, ...metadata && { metadata } }
    return await this.settings.ledger.capture(id, usage === undefined ? { ...about, credits } : { ...about, operation, usage })
  }

  private async persist (about: object, call: () => Promise<void>) {
    let pause = FIRST_PAUSE
    while (!await this.attempt(about, call, pause)) pause = Math.min(pause * 2, LONGEST_PAUSE)
  }

  // Returns whether that was the last attempt.
  private async attempt (about: object, call: () => Promise<void>, pause: number): Promise<boolean> {
    try {
      await call()
    } catch (err) {
      if (this.settings.gaveUp()) return true // it is in the log
      const wait = pause * (0.5 + Math.random())
      if (err instanceof UnavailableError && performance.now() + wait < this.lapsesAt) {
        await sleep(wait, undefined, { ref: false })
        return false
      }
      this.settings.log.error({ err, ...this.names, ...about }, 'A charged request could not be settled')
    }
    return true
  }

  private extendIn (milliseconds: number) {
    this.timer = setTimeout(() => this.extend(), milliseconds).unref()
  }

  private async extend () {
    const { ledger, log, ttl } = this.settings
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
}
