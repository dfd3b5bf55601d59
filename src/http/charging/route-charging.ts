import type { FastifyInstance, FastifyReply, FastifyRequest, HookHandlerDoneFunction, RouteOptions } from 'fastify'
import { InsufficientCreditsError, NothingRejectedError, RouteTooEarlyError, UnavailableError } from '../../errors.js'
import type { Hold, HoldInput } from '../../ledger/types.js'
import { accountBehind } from '../identity.js'
import { costBefore, holdOf, metadataOf } from './amounts.js'
import { rulesOf, type ChargeRules, type RuleOptions } from './config.js'
import { showCost } from './headers.js'
import { isThenable } from './maybe-promise.js'
import { OpenHold } from './open-hold.js'
import { withDetails } from './refusal.js'
import { RequestCharge, type ChargeSubject } from './request-charge.js'
import { HandlerReport } from './request-credits.js'

type Options = RuleOptions & { timeout: number }
type DoneSending = (error: null, payload: unknown) => void

/** Where an instance, and the config of a charged route, has its RouteCharging. */
export const CHARGING = Symbol('fastify-ai-credits.charging')

/** An instance, or the config of a route. */
export type Marked = { [CHARGING]?: RouteCharging }

/** Charges the routes of one registration. */
export class RouteCharging {
  private readonly charges = new WeakMap<FastifyRequest, RequestCharge>()
  private readonly refusals = new WeakMap<FastifyRequest, InsufficientCreditsError>()
  private readonly inFlight = new Set<RequestCharge>()
  private gaveUp = false

  constructor (private readonly fastify: FastifyInstance, private readonly options: Options) {}

  /** Charges a route that is being declared. */
  charge (route: RouteOptions): void {
    const rules = rulesOf(route, this.options)
    route.config = { ...route.config, [CHARGING]: this } as typeof route.config
    if ((route as { websocket?: unknown }).websocket === true) return
    route.handler = this.followed(route.handler)
    const isSocket = 'wsHandler' in route ? isUpgrade : () => false
    const hold = (request: FastifyRequest, reply: FastifyReply, done: HookHandlerDoneFunction) => {
      if (isSocket(request) || isPreflight(request, rules)) return done()
      // As on a route that waits for nothing, the handler runs before promises go on: Fastify may send another reply otherwise.
      this.hold(rules, request, reply).then(() => process.nextTick(done), error => process.nextTick(done, error || new NothingRejectedError()))
    }
    route.preHandler = [route.preHandler ?? [], hold].flat()
    route.onError = [this.onError, route.onError ?? []].flat()
    route.onSend = [this.addDetails, route.onSend ?? [], this.beforeSending].flat()
  }

  /** The error of a request to a route that was declared too early to be charged. */
  missed ({ routeOptions: { config, url, method } }: FastifyRequest): RouteTooEarlyError | undefined {
    if (config?.credits === undefined) return undefined
    const by = (config as Marked)[CHARGING]
    return by === this || (by !== undefined && by.isWithin(this)) ? undefined : new RouteTooEarlyError(String(method), url)
  }

  /** Waits for the charges in flight, no longer than for a call of the ledger; those that are left are in the log. */
  async close (): Promise<void> {
    let timer: NodeJS.Timeout | undefined
    const late = new Promise(resolve => { timer = setTimeout(resolve, this.options.timeout) })
    await Promise.race([Promise.all([...this.inFlight].map(({ settled }) => settled)), late])
    clearTimeout(timer)
    this.gaveUp = true
    for (const { names } of this.inFlight) {
      this.fastify.log.error(names, 'The gateway closes before a charged request is settled: its hold is left to lapse')
    }
  }

  private isWithin (outer: RouteCharging) {
    return Object.prototype.isPrototypeOf.call(outer.fastify, this.fastify)
  }

  // No hook tells when a handler's promise has settled: not after `hijack`, and not where it returned nothing to a client
  // that had gone.
  private followed (handler: RouteOptions['handler']): RouteOptions['handler'] {
    const charges = this.charges
    return function (request, reply) {
      const run = () => handler.call(this, request, reply)
      const charge = charges.get(request)
      return charge === undefined ? run() : charge.runHandler(run)
    }
  }

  private async hold (rules: ChargeRules, request: FastifyRequest, reply: FastifyReply): Promise<void> {
    const userId = await accountBehind(request, rules.user)
    const fixed = await costBefore(rules, request, reply)
    const credits = await holdOf(rules, request) ?? fixed!
    const asked = { userId, credits, operation: rules.operation, metadata: await metadataOf(rules, request) }
    if (credits === 0 || fixed === 0) {
      showCost(reply, 0)
      request.credits = new HandlerReport({ ...asked, id: null, credits: 0 })
      return
    }
    const hold = await this.take(rules, request, asked)
    const report = new HandlerReport({ ...asked, ...hold === undefined ? { id: null, credits: 0 } : { id: hold.id } })
    request.credits = report
    if (hold !== undefined) this.begin(hold, { rules, request, reply, report, fixed })
  }

  private async take (rules: ChargeRules, request: FastifyRequest, asked: HoldInput): Promise<Hold | undefined> {
    try {
      return await this.fastify.credits.hold({ ...asked, ttl: rules.ttl })
    } catch (error) {
      if (!(error instanceof UnavailableError) || rules.onUnavailable === 'refuse') throw error
      const { userId, operation } = asked
      request.log.warn({ err: error, userId, operation }, 'A request is served without charge, as the credits are unavailable')
      return undefined
    }
  }

  private begin (hold: Hold, subject: Omit<ChargeSubject, 'hold' | 'prices'>) {
    const { request, rules: { ttl } } = subject
    const openHold = new OpenHold(hold, { ledger: this.fastify.credits, log: request.log, ttl, gaveUp: () => this.gaveUp })
    const charge = new RequestCharge({ ...subject, hold: openHold, prices: this.options.prices })
    this.charges.set(request, charge)
    this.inFlight.add(charge)
    charge.settled.then(() => this.inFlight.delete(charge))
  }

  // Before the host's hooks of the route, which may compress the body.
  private readonly addDetails = (request: FastifyRequest, reply: FastifyReply, payload: unknown, done: DoneSending): void => {
    done(null, withDetails(request, reply, this.refusals.get(request), payload))
  }

  // After the host's hooks. Where nothing has to be waited for, the reply is sent at once, as without this hook.
  private readonly beforeSending = (request: FastifyRequest, _reply: FastifyReply, payload: unknown, done: DoneSending) => {
    const wait = this.charges.get(request)?.beforeSending(payload)
    if (!isThenable(wait)) return done(null, payload)
    return wait.then(() => payload)
  }

  private readonly onError = (request: FastifyRequest, _reply: FastifyReply, error: Error, done: () => void): void => {
    if (error instanceof InsufficientCreditsError) this.refusals.set(request, error)
    this.charges.get(request)?.failed(error)
    done()
  }
}

// A request that @fastify/websocket upgrades. What a client says in its headers makes no websocket of another route.
function isUpgrade (request: FastifyRequest) {
  return Boolean((request as { ws?: unknown }).ws)
}

// Browsers ask with OPTIONS whether they may send the request, without saying who is asking.
function isPreflight ({ method }: FastifyRequest, { chargesOptions }: ChargeRules) {
  return method === 'OPTIONS' && !chargesOptions
}
