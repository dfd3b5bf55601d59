import type { FastifyReply, FastifyRequest } from 'fastify'
import type { PriceBook } from '../../ledger/prices/book.js'
import type { Usage } from '../../ledger/prices/types.js'
import { costOf, quoteOf } from './amounts.js'
import type { ChargeRules } from './config.js'
import { showCost, showCostInTheEnd, showRemaining, withdraw, withdrawTrailerOfKnownLength } from './headers.js'
import { andThen, isThenable, type MaybePromise } from './maybe-promise.js'
import type { OpenHold, Spending } from './open-hold.js'
import { discard, isStream, statusOf } from './payload.js'
import { payable, whatWasUsed, type Facts } from './payable.js'
import { isTimeout, ReplyWatch } from './reply-watch.js'
import type { HandlerReport } from './request-credits.js'

/** What a charge is about. */
export interface ChargeSubject {
  rules: ChargeRules
  request: FastifyRequest
  reply: FastifyReply
  hold: OpenHold
  report: HandlerReport
  prices: PriceBook
  /** The cost, where it was known before the handler ran. */
  fixed: number | undefined
}

/** The charge of one request. It collects the facts, and settles once they decide what is paid: see `payable`. */
export class RequestCharge {
  /** Resolves once it is settled. */
  readonly settled: Promise<void>
  private resolve!: () => void
  private isSettled = false

  private readonly watch: ReplyWatch
  private readonly longest: NodeJS.Timeout

  private isHandlerAtWork = false
  private hasFailed = false
  private hasTimedOut = false
  private hasReturnedNothing = false
  /** The status of a reply whose headers are not written yet, and never will be where the client goes before. */
  private expectedStatus: number | undefined
  /** The status for which the headers say a cost. */
  private shownStatus: number | undefined
  /** The cost, once it is known. */
  private cost: number | undefined
  /** The quantities that the cost was computed from, if it was. */
  private quantities: Usage | undefined
  private capturing: Promise<number> | undefined

  constructor (private readonly subject: ChargeSubject) {
    const { reply, fixed, rules: { maxDuration } } = subject
    this.settled = new Promise(resolve => { this.resolve = resolve })
    this.cost = fixed
    this.longest = setTimeout(() => this.giveUpWaiting(), maxDuration).unref()
    this.watch = new ReplyWatch(reply, {
      beforeHeaders: status => this.correctHeaders(status),
      changed: () => this.settleIfDecided()
    })
    if (reply.sent) this.settleIfDecided() // handlerTimeout came while the hold was being taken: no handler will run
  }

  /** What a line of the log calls it. */
  get names () {
    return this.subject.hold.names
  }

  /** Runs the handler, and returns what it returned. */
  runHandler (handler: () => unknown): unknown {
    try {
      const result = handler()
      return result === this.subject.reply || !isThenable(result) ? result : this.follow(result)
    } catch (error) {
      this.handlerThrew()
      throw error
    }
  }

  /** An error is to be replied, in place of what the handler sent. */
  failed (error: unknown): void {
    if (this.watch.status !== undefined) return // the reply is on its way, and stays as it is
    this.hasFailed = true
    this.hasTimedOut ||= isTimeout(error)
    withdraw(this.subject.reply)
    this.settleIfDecided()
  }

  /** Says what a reply costs that is about to be sent; with `capture: 'before'` it is paid first. */
  beforeSending (payload: unknown): MaybePromise<void> {
    const status = statusOf(payload, this.subject.reply.statusCode)
    return andThen(this.price(status, payload), () => {
      // The headers of a stream are written with its first chunk.
      if (this.watch.kind === 'stream') this.expect(status)
    })
  }

  private price (status: number, payload: unknown): MaybePromise<void> {
    const { reply, hold, rules } = this.subject
    if (status >= 400 || this.isSettled) return
    this.shownStatus = status
    showRemaining(reply, hold.hold.balance)
    if (rules.capture === 'before') return this.show(this.captureBefore(status, payload))
    const credits = this.creditsIfWhole(status)
    if (credits !== undefined) return this.show(credits)
    if (isStream(payload)) showCostInTheEnd(reply, payload, status, () => this.creditsInTheEnd(status))
  }

  private show (credits: MaybePromise<number>): MaybePromise<void> {
    const known = isThenable(credits) ? this.watch.pause(credits) : credits
    return andThen(known, cost => showCost(this.subject.reply, cost))
  }

  // Of a stream whose cost is not known yet: nothing.
  private creditsIfWhole (status: number): MaybePromise<number> | undefined {
    const due = payable({ ...this.facts(status), whole: true })
    if (due !== 'cost') return due
    return this.watch.kind === 'stream' ? this.cost : this.finalCost()
  }

  private creditsInTheEnd (status: number): MaybePromise<number> {
    const due = payable({ ...this.facts(status), whole: true })
    return due === 'cost' ? this.finalCost() : due
  }

  private async captureBefore (status: number, payload: unknown) {
    try {
      return await (this.capturing ??= this.capture(status))
    } catch (error) {
      discard(payload)
      throw error
    }
  }

  private async capture (status: number) {
    const { hold } = this.subject
    const credits = await (this.creditsIfWhole(status) ?? hold.hold.credits)
    if (credits > 0 && !this.isSettled) await hold.captureOnce(this.spending(credits))
    return credits
  }

  // A later hook may have made another reply of it.
  private correctHeaders (status: number) {
    const { reply } = this.subject
    if (this.shownStatus !== undefined && status !== this.shownStatus) withdraw(reply)
    else withdrawTrailerOfKnownLength(reply)
  }

  // A promise of our own for other thenables, as some run twice where `then` is called twice.
  private follow (result: PromiseLike<unknown>) {
    const promise = result instanceof Promise ? result : Promise.resolve(result)
    this.isHandlerAtWork = true
    promise.then(value => this.handlerReturned(value), () => this.handlerThrew())
    return promise
  }

  private handlerReturned (value: unknown) {
    const { watch, subject: { reply } } = this
    this.isHandlerAtWork = false
    if (watch.isClosed && value === undefined && !watch.isAwaited && !watch.isHijacked) {
      this.hasReturnedNothing = true // which Fastify would send to a client that is there
      this.expect(reply.statusCode)
    }
    this.settleIfDecided()
  }

  private handlerThrew () {
    this.isHandlerAtWork = false
    // Otherwise Fastify replies the error, which `failed` is told, or has sent the reply.
    if (this.watch.isHijacked && this.watch.status === undefined) this.hasFailed = true
    this.settleIfDecided()
  }

  private expect (status: number) {
    this.expectedStatus = status
    if (this.watch.isClosed) setImmediate(() => this.settleIfDecided()) // hooks that run after ours may still fail
  }

  private settleIfDecided () {
    if (this.isSettled || !this.watch.isClosed) return
    const isAtWork = (this.isHandlerAtWork && !this.watch.isAwaitedInVain) || this.watch.sources > 0
    if (this.paysNothing || (!isAtWork && this.status !== undefined)) this.settle()
    else if (!isAtWork) this.subject.hold.letLapse(() => this.settle()) // nothing tells whether a reply is still to come
  }

  // Whatever the handler still does.
  private get paysNothing () {
    const { watch, subject: { report } } = this
    const isRefused = watch.isWhole && Number(watch.status) >= 400
    return report.cancelled || this.hasFailed || this.hasTimedOut || watch.isTimedOut || isRefused
  }

  private get status () {
    return this.watch.status ?? this.expectedStatus ?? this.watch.droppedStatus
  }

  private facts (status = this.status): Facts {
    const { subject: { rules, report, hold, fixed }, watch } = this
    return {
      cancelled: report.cancelled,
      timedOut: this.hasTimedOut || watch.isTimedOut,
      failed: this.hasFailed,
      status,
      captured: hold.captured,
      whole: watch.isWhole || this.hasReturnedNothing,
      brokenOff: watch.isBrokenOff,
      reportsUse: report.reported || rules.usage !== undefined,
      byUsage: rules.usage !== undefined,
      used: report.used,
      minimum: rules.minimum,
      fixed
    }
  }

  private giveUpWaiting () {
    this.subject.request.log.warn(this.names, 'A charged request takes longer than maxDuration; it pays what it used so far')
    this.settle()
  }

  private async settle () {
    this.isSettled = true
    clearTimeout(this.longest)
    this.watch.stop()
    const { hold } = this.subject
    hold.stopExtending()
    await hold.settle(this.spending(await this.creditsDue()))
    this.resolve()
  }

  private spending (credits: number): Spending {
    return { credits, usage: this.quantities, metadata: this.subject.report.facts }
  }

  private async creditsDue (): Promise<number> {
    const facts = this.facts()
    const due = payable(facts)
    if (due !== 'cost') return due
    try {
      return await this.finalCost()
    } catch (err) {
      this.subject.request.log.error({ err, ...this.names }, 'The cost of a request is not known; what it used is charged')
      return whatWasUsed({ ...facts, byUsage: false }) as number
    }
  }

  private finalCost (): MaybePromise<number> {
    return this.cost ?? andThen(this.costNow(), cost => (this.cost = cost))
  }

  private costNow (): MaybePromise<number> {
    const { rules, request, reply, prices, report } = this.subject
    if (rules.usage !== undefined) {
      return andThen(quoteOf(rules, prices, request, reply), ({ credits, usage }) => {
        this.quantities = usage
        return credits
      })
    }
    return rules.cost === undefined ? Math.max(rules.minimum, report.used) : costOf(rules, request, reply)
  }
}
