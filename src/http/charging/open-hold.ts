import { setTimeout as sleep } from 'node:timers/promises'
import type { FastifyBaseLogger } from 'fastify'
import { HoldClosedError, UnavailableError } from '../../errors.js'
import type { Metadata } from '../../ledger/input/metadata.js'
import type { Usage } from '../../ledger/prices/types.js'
import type { Capture } from '../../ledger/operations/capture.js'
import type { Hold } from '../../ledger/operations/hold.js'
import type { Credits } from '../../ledger/types.js'

const FIRST_PAUSE = 100 // milliseconds before the second attempt, doubled with each further one
const LONGEST_PAUSE = 5000

/** The settings of an open hold. */
export interface HoldSettings {
  ledger: Credits
  log: FastifyBaseLogger
  /** How long the hold lives from each extension, in milliseconds. */
  ttl: number
  /** Returns true once the gateway, which is closing, no longer waits for the hold. */
  gaveUp: () => boolean
}

/** What is captured from a hold. */
export interface Spending {
  credits: number
  /** The quantities that the credits were computed from. */
  usage: Usage | undefined
  metadata: Metadata | undefined
}

/** A hold that is extended while its request is in flight, and then captured or released. */
export class OpenHold {
  // On the process's own clock, because the database's clock may differ.
  private lapsesAt: number
  private timer: NodeJS.Timeout | undefined
  private attempted: Spending | undefined
  private capture: Capture | undefined

  constructor (readonly hold: Hold, private readonly settings: HoldSettings) {
    this.lapsesAt = performance.now() + settings.ttl
    this.extendIn(settings.ttl / 2)
  }

  /** The fields that identify the hold in a line of the log. */
  get logFields () {
    return { holdId: this.hold.id, userId: this.hold.userId, operation: this.hold.operation }
  }

  /** The credits that `captureOnce` took; undefined: none. */
  get captured (): number | undefined {
    return this.capture && this.attempted!.credits
  }

  /** Stops extending the hold: it lapses at the deadline that it has now. */
  stopExtending (): void {
    clearTimeout(this.timer)
    this.timer = undefined
  }

  /** Stops extending the hold, and calls back when it is about to lapse. */
  letLapse (callback: () => void): void {
    this.stopExtending()
    this.timer = setTimeout(callback, this.lapsesAt - performance.now()).unref()
  }

  /** Captures credits in a single attempt. Throws if the account cannot pay, or if the ledger fails. */
  async captureOnce (spending: Spending): Promise<void> {
    this.attempted = spending
    this.capture = await this.spend(spending, 'reject')
    this.stopExtending()
  }

  /**
   * Settles the hold: captures these credits, or what the account has of them; releases the hold if they are 0; or refunds
   * what `captureOnce` took beyond them. Retries while the database is unavailable, until the hold lapses. Never rejects:
   * the last error is logged.
   */
  async settle (spending: Spending): Promise<void> {
    const { credits } = spending
    await this.retryUntilLapse({ credits }, async () => {
      if (this.capture !== undefined) await this.giveBack(this.capture, credits)
      else if (credits > 0) await this.captureAvailable(spending)
      else await this.release()
    })
  }

  private async captureAvailable (spending: Spending) {
    const { credits } = spending
    const { uncollected } = await this.spend(spending, 'partial')
    if (uncollected === 0) return
    this.settings.log.warn({ ...this.logFields, credits, uncollected }, 'A request cost more than the account had')
  }

  private async release () {
    try {
      await this.settings.ledger.release(this.hold.id, { userId: this.hold.userId })
    } catch (error) {
      if (!(error instanceof HoldClosedError) || this.attempted === undefined) throw error
      // The attempted capture was made, but its reply was lost. Repeated, it returns the usage record to refund.
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
    const input = { userId, shortfall, ...metadata && { metadata } }
    return await this.settings.ledger.capture(id, usage === undefined ? { ...input, credits } : { ...input, operation, usage })
  }

  private async retryUntilLapse (logged: object, call: () => Promise<void>) {
    let pause = FIRST_PAUSE
    while (!await this.attempt(logged, call, pause)) pause = Math.min(pause * 2, LONGEST_PAUSE)
  }

  // Returns true if this was the last attempt; otherwise it has waited for the next one.
  private async attempt (logged: object, call: () => Promise<void>, pause: number): Promise<boolean> {
    try {
      await call()
    } catch (err) {
      if (this.settings.gaveUp()) return true // RouteCharging.close has logged it
      const wait = pause * (0.5 + Math.random())
      if (err instanceof UnavailableError && performance.now() + wait < this.lapsesAt) {
        await sleep(wait, undefined, { ref: false })
        return false
      }
      this.settings.log.error({ err, ...this.logFields, ...logged }, 'A charged request could not be settled')
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
      log.warn({ err, ...this.logFields }, 'The hold of a request in flight could not be extended')
      if (!(err instanceof UnavailableError)) return // the hold has lapsed; the request is charged nevertheless
      next = ttl / 8
    }
    if (this.timer === timer) this.extendIn(next)
  }
}
