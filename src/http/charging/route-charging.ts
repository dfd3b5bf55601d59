import type { FastifyInstance, FastifyReply, FastifyRequest, HookHandlerDoneFunction, RouteOptions } from 'fastify'
import { NothingRejectedError, RouteTooEarlyError, UnavailableError } from '../../errors.js'
import type { Hold, HoldInput } from '../../ledger/operations/hold.js'
import { isShortage, type Shortage } from '../../ledger/posting/verdict.js'
import { ownBudget, payerBehind } from '../identity.js'
import { budgetOf, costBefore, holdOf, metadataOf } from './amounts.js'
import { rulesOf, type ChargeRules, type RuleOptions } from './config.js'
import { showCost } from './headers.js'
import { isThenable } from './maybe-promise.js'
import { OpenHold } from './open-hold.js'
import { withDetails } from './refusal.js'
import { RequestCharge, type ChargeContext } from './request-charge.js'
import { ReportedUsage } from './request-credits.js'

type Options = RuleOptions & { timeout: number }
type DoneSending = (error: null, payload: unknown) => void

/** The key of the RouteCharging in an instance, and in the config of a charged route. */
export const CHARGING = Symbol('fastify-ai-credits.charging')

/** An instance, or the config of a route, that may have a RouteCharging. */
export type HasCharging = { [CHARGING]?: RouteCharging }

/** Charges the routes of one registration of the plugin. */
export class RouteCharging {
  private readonly charges = new WeakMap<FastifyRequest, RequestCharge>()
  private readonly refusals = new WeakMap<FastifyRequest, Shortage>()
  private readonly inFlight = new Set<RequestCharge>()
  private gaveUp = false

  constructor (private readonly fastify: FastifyInstance, private readonly options: Options) {}

  /**
   * Makes a route that is being declared a charged one. A preHandler holds the credits, after the route's own preHandlers.
   * The other hooks and the handler follow what becomes of the request. Throws InvalidOptionError if its config is wrong.
   */
  chargeRoute (route: RouteOptions): void {
    const rules = rulesOf(route, this.options)
    route.config = { ...route.config, [CHARGING]: this } as typeof route.config
    if ((route as { websocket?: unknown }).websocket === true) return
    route.handler = this.trackHandler(route.handler) // replaced, because no hook runs when its promise settles
    const isSocket = 'wsHandler' in route ? isUpgrade : () => false
    const hold = (request: FastifyRequest, reply: FastifyReply, done: HookHandlerDoneFunction) => {
      if (isSocket(request) || isPreflight(request, rules)) return done()
      // `done` runs in a tick of its own, not in a promise's callback. So the handler runs before other promises continue,
      // as it does on a route that waits for nothing. Otherwise Fastify may send another reply.
      this.holdCredits(rules, request, reply).then(
        () => process.nextTick(done), error => process.nextTick(done, error || new NothingRejectedError()))
    }
    route.preHandler = [route.preHandler ?? [], hold].flat()
    route.onError = [this.onError, route.onError ?? []].flat()
    route.onSend = [this.addDetails, route.onSend ?? [], this.beforeSending].flat()
  }

  /** Returns the error for a request to a route that was declared too early to be charged; undefined for other requests. */
  tooEarlyError ({ routeOptions: { config, url, method } }: FastifyRequest): RouteTooEarlyError | undefined {
    if (config?.credits === undefined) return undefined
    const charging = (config as HasCharging)[CHARGING]
    if (charging === this || charging?.isWithin(this)) return undefined
    return new RouteTooEarlyError(String(method), url)
  }

  /** Waits for the charges in flight, at most `timeout` milliseconds, like a call of the ledger. Logs those that are left. */
  async close (): Promise<void> {
    let timer: NodeJS.Timeout | undefined
    const late = new Promise(resolve => { timer = setTimeout(resolve, this.options.timeout) })
    await Promise.race([Promise.all([...this.inFlight].map(({ settled }) => settled)), late])
    clearTimeout(timer)
    this.gaveUp = true
    for (const { logFields } of this.inFlight) {
      this.fastify.log.error(logFields, 'The gateway closes before a charged request is settled: its hold is left to lapse')
    }
  }

  private isWithin (outer: RouteCharging) {
    return Object.prototype.isPrototypeOf.call(outer.fastify, this.fastify)
  }

  // Returns a handler that also tells the request's charge when the handler's promise settles. The charge must wait for it,
  // because a handler may report usage after its client has gone. No hook of Fastify runs then: not after `reply.hijack()`,
  // and not if the handler returned nothing to a client that had gone.
  private trackHandler (handler: RouteOptions['handler']): RouteOptions['handler'] {
    const charges = this.charges
    return function (request, reply) {
      const run = () => handler.call(this, request, reply)
      const charge = charges.get(request)
      return charge === undefined ? run() : charge.runHandler(run)
    }
  }

  private async holdCredits (rules: ChargeRules, request: FastifyRequest, reply: FastifyReply): Promise<void> {
    const payer = await payerBehind(request, rules.user)
    const budget = ownBudget(payer.budget, await budgetOf(rules, request))
    const fixed = await costBefore(rules, request, reply)
    const credits = await holdOf(rules, request) ?? fixed!
    const metadata = await metadataOf(rules, request)
    const holdInput = { userId: payer.userId, credits, operation: rules.operation, metadata, budget }
    if (credits === 0 || fixed === 0) {
      showCost(reply, 0)
      request.credits = new ReportedUsage({ ...holdInput, id: null, credits: 0 })
      return
    }
    const hold = await this.takeHold(rules, request, holdInput)
    const reported = new ReportedUsage({ ...holdInput, ...hold === undefined ? { id: null, credits: 0 } : { id: hold.id } })
    request.credits = reported
    if (hold !== undefined) this.startCharge(hold, { rules, request, reply, reported, fixed })
  }

  private async takeHold (rules: ChargeRules, request: FastifyRequest, holdInput: HoldInput): Promise<Hold | undefined> {
    try {
      return await this.fastify.credits.hold({ ...holdInput, ttl: rules.ttl })
    } catch (error) {
      if (!(error instanceof UnavailableError) || rules.onUnavailable === 'refuse') throw error
      const { userId, operation } = holdInput
      request.log.warn({ err: error, userId, operation },
        'A request is served without charge, because the credits are unavailable')
      return undefined
    }
  }

  private startCharge (hold: Hold, context: Omit<ChargeContext, 'hold' | 'prices'>) {
    const { request, rules: { ttl } } = context
    const openHold = new OpenHold(hold, { ledger: this.fastify.credits, log: request.log, ttl, gaveUp: () => this.gaveUp })
    const charge = new RequestCharge({ ...context, hold: openHold, prices: this.options.prices })
    this.charges.set(request, charge)
    this.inFlight.add(charge)
    charge.settled.then(() => this.inFlight.delete(charge))
  }

  // An onSend hook that runs before the route's own ones, because they may compress the body.
  private readonly addDetails = (request: FastifyRequest, reply: FastifyReply, payload: unknown, done: DoneSending): void => {
    done(null, withDetails(request, reply, this.refusals.get(request), payload))
  }

  // An onSend hook that runs after the route's own ones. If it need not wait, the reply is sent at once, as without it.
  private readonly beforeSending = (request: FastifyRequest, _reply: FastifyReply, payload: unknown, done: DoneSending) => {
    const wait = this.charges.get(request)?.beforeSending(payload)
    if (!isThenable(wait)) return done(null, payload)
    return wait.then(() => payload)
  }

  private readonly onError = (request: FastifyRequest, _reply: FastifyReply, error: Error, done: () => void): void => {
    if (isShortage(error)) this.refusals.set(request, error)
    this.charges.get(request)?.failed(error)
    done()
  }
}

// Returns true for a request that @fastify/websocket upgrades. The request's headers alone prove nothing: a client may send
// them to any route.
function isUpgrade (request: FastifyRequest) {
  return Boolean((request as { ws?: unknown }).ws)
}

// Returns true for a CORS preflight: browsers send OPTIONS, without credentials, before the request itself.
function isPreflight ({ method }: FastifyRequest, { chargesOptions }: ChargeRules) {
  return method === 'OPTIONS' && !chargesOptions
}
