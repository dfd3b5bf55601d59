import { showCost, showCostInTrailer, showRemaining, withdrawCost, withdrawTrailerOfKnownLength } from './headers.js'
import { andThen, isThenable, type MaybePromise } from './maybe-promise.js'
import type { OpenHold, Spending } from './open-hold.js'
import { discard, isStream, statusOf } from './payload.js'
import { payable, whatWasUsed, type ChargeFacts } from './payable.js'
import { isTimeout, ReplyWatch } from './reply-watch.js'
import { RequestCost, type CostContext } from './request-cost.js'

/** Everything that the charge of one request needs. */
export interface ChargeContext extends CostContext {
  hold: OpenHold
}

/** The charge of one request. It collects the facts, and settles the hold once they decide what is paid: see `payable`. */
export class RequestCharge {
  /** Resolves once the charge is settled. */
  readonly settled: Promise<void>
  private resolve!: () => void
  private isSettled = false

  private readonly watch: ReplyWatch
  private readonly cost: RequestCost
  private readonly maxDurationTimer: NodeJS.Timeout

  private isHandlerAtWork = false
  private hasFailed = false
  private hasTimedOut = false
  private hasReturnedNothing = false
  /** The status of a reply whose headers are not yet written. They never are if the client goes before. */
  private expectedStatus: number | undefined
  /** The status that the reply had when its cost was put into the headers. */
  private shownStatus: number | undefined
  private capturing: Promise<number> | undefined

  constructor (private readonly context: ChargeContext) {
    const { reply, rules: { maxDuration } } = context
    this.settled = new Promise(resolve => { this.resolve = resolve })
    this.cost = new RequestCost(context)
    this.maxDurationTimer = setTimeout(() => this.giveUpWaiting(), maxDuration).unref()
    this.watch = new ReplyWatch(reply, {
      beforeHeaders: status => this.correctHeaders(status),
      changed: () => this.settleIfDecided()
    })
    if (reply.sent) this.settleIfDecided() // handlerTimeout passed while the hold was being taken: no handler will run
  }

  /** The fields that identify the charge in a line of the log. */
  get logFields () {
    return this.context.hold.logFields
  }

  /** Runs the handler, follows its promise if it returns one, and returns or throws what the handler does. */
  runHandler (handler: () => unknown): unknown {
    try {
      const result = handler()
      return result === this.context.reply || !isThenable(result) ? result : this.followPromise(result)
    } catch (error) {
      this.handlerThrew()
      throw error
    }
  }

  /** Notes that Fastify is about to reply an error, in place of what the handler sent. */
  failed (error: unknown): void {
    if (this.watch.status !== undefined) return // the reply is on its way, and stays as it is
    this.hasFailed = true
    this.hasTimedOut ||= isTimeout(error)
    withdrawCost(this.context.reply)
    this.settleIfDecided()
  }

  /** Puts the cost of a reply that is about to be sent into its headers; with `capture: 'before'` captures it first. */
  beforeSending (payload: unknown): MaybePromise<void> {
    const status = statusOf(payload, this.context.reply.statusCode)
    return andThen(this.announceCost(status, payload), () => {
      // The headers of a stream are written with its first chunk.
      if (this.watch.kind === 'stream') this.expectStatus(status)
    })
  }

  private announceCost (status: number, payload: unknown): MaybePromise<void> {
    const { reply, hold, rules } = this.context
    if (status >= 400 || this.isSettled) return
    this.shownStatus = status
    showRemaining(reply, hold.hold.balance)
    if (rules.capture === 'before') return this.showOnceKnown(this.captureBefore(status, payload))
    const credits = this.creditsIfWhole(status)
    if (credits !== undefined) return this.showOnceKnown(credits)
    if (isStream(payload)) showCostInTrailer(reply, payload, status, () => this.creditsInTheEnd(status))
  }

  private showOnceKnown (credits: MaybePromise<number>): MaybePromise<void> {
    const known = isThenable(credits) ? this.watch.pause(credits) : credits
    return andThen(known, cost => showCost(this.context.reply, cost))
  }

  // Returns what the request pays if its reply is written to its end; undefined for a stream whose cost is not known yet.
  private creditsIfWhole (status: number): MaybePromise<number> | undefined {
    const due = payable({ ...this.facts(status), whole: true })
    if (due !== 'cost') return due
    return this.watch.kind === 'stream' ? this.cost.known : this.cost.compute()
  }

  private creditsInTheEnd (status: number): MaybePromise<number> {
    const due = payable({ ...this.facts(status), whole: true })
    return due === 'cost' ? this.cost.compute() : due
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
    const { hold } = this.context
    const credits = await (this.creditsIfWhole(status) ?? hold.hold.credits)
    if (credits > 0 && !this.isSettled) await hold.captureOnce(this.spending(credits))
    return credits
  }

  // A later hook may have replaced the reply that the headers were made for.
  private correctHeaders (status: number) {
    const { reply } = this.context
    if (this.shownStatus !== undefined && status !== this.shownStatus) withdrawCost(reply)
    else withdrawTrailerOfKnownLength(reply)
  }

  // Other thenables are wrapped in one promise, because some run twice if `then` is called twice.
  private followPromise (result: PromiseLike<unknown>) {
    const promise = result instanceof Promise ? result : Promise.resolve(result)
    this.isHandlerAtWork = true
    promise.then(value => this.handlerReturned(value), () => this.handlerThrew())
    return promise
  }

  private handlerReturned (value: unknown) {
    const { watch, context: { reply } } = this
    this.isHandlerAtWork = false
    if (watch.isClosed && value === undefined && !watch.isAwaited && !watch.isHijacked) {
      this.hasReturnedNothing = true // to a client that is there, Fastify would send an empty reply
      this.expectStatus(reply.statusCode)
    }
    this.settleIfDecided()
  }

  private handlerThrew () {
    this.isHandlerAtWork = false
    // Otherwise Fastify replies the error and calls `failed`, or it has already sent the reply.
    if (this.watch.isHijacked && this.watch.status === undefined) this.hasFailed = true
    this.settleIfDecided()
  }

  private expectStatus (status: number) {
    this.expectedStatus = status
    if (this.watch.isClosed) setImmediate(() => this.settleIfDecided()) // not yet: hooks that run after ours may still fail
  }

  private settleIfDecided () {
    if (this.isSettled || !this.watch.isClosed) return
    const isAtWork = (this.isHandlerAtWork && !this.watch.isAwaitedInVain) || this.watch.sources > 0
    if (this.paysNothing || (!isAtWork && this.status !== undefined)) this.settle()
    else if (!isAtWork) this.context.hold.letLapse(() => this.settle()) // a reply may still come, and nothing would say so
  }

  // True if the request pays nothing, whatever its handler still does.
  private get paysNothing () {
    const { watch, context: { reported } } = this
    const isRefused = watch.isWhole && Number(watch.status) >= 400
    return reported.cancelled || this.hasFailed || this.hasTimedOut || watch.isTimedOut || isRefused
  }

  private get status () {
    return this.watch.status ?? this.expectedStatus ?? this.watch.droppedStatus
  }

  private facts (status = this.status): ChargeFacts {
    const { context: { rules, reported, hold, fixed }, watch } = this
    return {
      cancelled: reported.cancelled,
      timedOut: this.hasTimedOut || watch.isTimedOut,
      failed: this.hasFailed,
      status,
      captured: hold.captured,
      whole: watch.isWhole || this.hasReturnedNothing,
      brokenOff: watch.isBrokenOff,
      reportsUse: reported.useWasCalled || rules.usage !== undefined,
      byUsage: rules.usage !== undefined,
      used: reported.used,
      minimum: rules.minimum,
      fixed
    }
  }

  private giveUpWaiting () {
    this.context.request.log.warn(this.logFields, 'A charged request takes longer than maxDuration; it pays what it used so far')
    this.settle()
  }

  private async settle () {
    this.isSettled = true
    clearTimeout(this.maxDurationTimer)
    this.watch.stop()
    const { hold } = this.context
    hold.stopExtending()
    await hold.settle(this.spending(await this.creditsDue()))
    this.resolve()
  }

  private spending (credits: number): Spending {
    return { credits, usage: this.cost.quantities, metadata: this.context.reported.addedMetadata }
  }

  private async creditsDue (): Promise<number> {
    const facts = this.facts()
    const due = payable(facts)
    if (due !== 'cost') return due
    try {
      return await this.cost.compute()
    } catch (err) {
      this.context.request.log.error({ err, ...this.logFields }, 'The cost of a request is not known; what it used is charged')
      return whatWasUsed({ ...facts, byUsage: false }) as number
    }
  }
}
