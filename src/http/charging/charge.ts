import { finished, type Readable } from 'node:stream'
import type { FastifyReply, FastifyRequest } from 'fastify'
import type { PriceBook } from '../../ledger/prices/book.js'
import type { Usage } from '../../ledger/prices/types.js'
import { costOf, quoteOf } from './amounts.js'
import type { Plan } from './config.js'
import { showCost, showCostInTheEnd, showRemaining } from './headers.js'
import type { OpenHold, Spending } from './open-hold.js'
import { discard, isStream, statusOf, watch } from './payload.js'
import type { Report } from './request-credits.js'

/** What a charge is about. */
export interface Subject {
  plan: Plan
  request: FastifyRequest
  reply: FastifyReply
  hold: OpenHold
  report: Report
  prices: PriceBook
  /** The cost, where it was known before the handler ran. */
  fixed: number | undefined
}

/** The charge of one request: settled once, when the raw response has closed and the handler has ended. */
export class Charge {
  /** Resolves once it is settled. */
  readonly settled: Promise<void>
  private resolve!: () => void
  private isSettled = false

  /** What is still at work: the handler, a stream that nobody receives. */
  private atWork = 0
  private replied = false
  private answeredNothing = false
  private threw = false
  private streaming = false
  private upstreamFailed = false
  /** The end of the raw response. */
  private closed: { delivered: boolean, headersSent: boolean } | undefined
  /** The cost, once it is known. */
  private cost: number | undefined
  /** The quantities that the cost was computed from, if it was. */
  private quantities: Usage | undefined
  private attempted: Spending | undefined
  private expiry: NodeJS.Timeout | undefined

  constructor (private readonly subject: Subject) {
    this.settled = new Promise(resolve => { this.resolve = resolve })
    this.cost = subject.fixed
    // Not onResponse, which is not called where the client has gone.
    const { raw } = subject.reply
    if (raw.destroyed) this.close()
    else raw.once('close', () => this.close())
  }

  /** Runs the handler. */
  run (handler: () => unknown): unknown {
    try {
      const result = handler()
      return isThenable(result) ? this.follow(result) : result
    } catch (error) {
      this.threw = true
      throw error
    }
  }

  /** Waits for a stream that is read to its end although nobody receives it: the reply to a HEAD request. */
  waitFor (stream: Readable): void {
    this.streaming = true
    this.atWork++
    finished(stream, () => this.endOfWork())
  }

  /** Prices a reply that is about to be sent; answers its payload. */
  async send (payload: unknown): Promise<unknown> {
    const { reply } = this.subject
    if (statusOf(payload, reply.statusCode) < 400) {
      const stream = isStream(payload) ? payload : undefined
      this.streaming ||= stream !== undefined
      try {
        await this.price(payload)
      } catch (error) {
        if (stream !== undefined) discard(stream)
        throw error
      }
      if (stream !== undefined) payload = watch(stream, () => { this.upstreamFailed = this.closed === undefined })
    }
    this.replied = true
    this.check()
    return payload
  }

  /** What a line of the log calls it. */
  get names () {
    return this.subject.hold.names
  }

  private async price (payload: unknown) {
    const { plan, reply, hold } = this.subject
    showRemaining(reply, hold.hold.balance)
    if (plan.capture === 'before') return await this.captureBefore()
    if (this.isForNothing) showCost(reply, 0)
    else if (!this.streaming) showCost(reply, await this.finalCost())
    else if (this.cost !== undefined) showCost(reply, this.cost)
    else showCostInTheEnd(reply, payload, () => this.finalCost())
  }

  private async captureBefore () {
    const { hold, reply, fixed } = this.subject
    const credits = this.isForNothing ? 0 : this.streaming ? fixed ?? hold.hold.credits : await this.finalCost()
    if (credits > 0 && !this.isSettled) {
      this.attempted = this.spend(credits)
      await hold.captureOnce(this.attempted)
      this.end()
    }
    showCost(reply, credits)
  }

  // A promise of our own, as calling `then` twice runs some thenables twice.
  private async follow (result: PromiseLike<unknown>) {
    this.atWork++
    let payload: unknown
    try {
      payload = await result
    } catch (error) {
      this.threw = true
      this.endOfWork()
      throw error
    }
    this.answeredNothing = payload === undefined
    this.endOfWork()
    return payload
  }

  private endOfWork () {
    this.atWork--
    this.check()
  }

  private close () {
    const { raw } = this.subject.reply
    this.closed = { delivered: raw.writableEnded, headersSent: raw.headersSent }
    this.subject.hold.stopExtending()
    this.check()
  }

  private check () {
    if (this.closed === undefined || this.isSettled) return
    if (this.isRefusal || (this.atWork === 0 && this.hasAnswered)) this.settle()
    else if (this.atWork === 0) this.settleWithHold()
  }

  // Whatever the handler still does.
  private get isRefusal () {
    const { reply, report } = this.subject
    return report.cancelled || isTimedOut(reply) || (this.closed!.delivered && reply.statusCode >= 400)
  }

  // Whether no reply is still to come; one that was hijacked counts as sent.
  private get hasAnswered () {
    return this.replied || this.threw || this.answeredNothing || this.subject.reply.sent
  }

  // The client has gone, and a handler without a promise may reply yet, or never.
  private settleWithHold () {
    this.expiry ??= setTimeout(() => {
      this.threw ||= !this.hasAnswered
      this.settle()
    }, this.subject.plan.ttl).unref()
  }

  private async settle () {
    const { hold } = this.subject
    this.end(false)
    const credits = await this.due()
    if (credits > 0) await hold.captureInTheEnd(this.spend(credits))
    else await hold.release(this.attempted)
    this.resolve()
  }

  private spend (credits: number): Spending {
    return { credits, usage: this.quantities, metadata: this.subject.report.facts }
  }

  private end (resolve = true) {
    this.isSettled = true
    clearTimeout(this.expiry)
    this.subject.hold.stopExtending()
    if (resolve) this.resolve()
  }

  private async due (): Promise<number> {
    const { plan, reply, request, report, fixed = Infinity } = this.subject
    if (this.isForNothing || this.isRefusal || reply.statusCode >= 400) return 0
    const tellsUsage = plan.usage === undefined && (report.reported || this.upstreamFailed)
    if (this.isCutOff && tellsUsage) return Math.min(this.used, fixed)
    try {
      return await this.finalCost()
    } catch (err) {
      request.log.error({ err, ...this.names }, 'The cost of a request is not known; what it used is charged')
      return this.used
    }
  }

  // A client that goes away makes handlers throw; what was sent is paid all the same.
  private get isForNothing () {
    return this.subject.report.cancelled || (this.threw && !this.isCutOff)
  }

  private get isCutOff () {
    return this.closed !== undefined && !this.closed.delivered && (this.closed.headersSent || this.streaming)
  }

  private get used () {
    return Math.max(this.subject.plan.minimum, this.subject.report.used)
  }

  private async finalCost (): Promise<number> {
    this.cost ??= await this.costNow()
    return this.cost
  }

  private async costNow () {
    const { plan, request, reply, prices } = this.subject
    if (plan.usage === undefined) return plan.cost === undefined ? this.used : await costOf(plan, request, reply)
    const { credits, usage } = await quoteOf(plan, prices, request, reply)
    this.quantities = usage
    return credits
  }
}

function isThenable (value: unknown): value is PromiseLike<unknown> {
  return typeof (value as PromiseLike<unknown> | null | undefined)?.then === 'function'
}

// Where the headers were sent before, Fastify destroys the response.
function isTimedOut ({ raw }: FastifyReply) {
  return (raw.errored as { code?: string } | null | undefined)?.code === 'FST_ERR_HANDLER_TIMEOUT'
}
