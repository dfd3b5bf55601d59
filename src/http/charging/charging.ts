import type { FastifyInstance, FastifyReply, FastifyRequest, RouteOptions } from 'fastify'
import { InsufficientCreditsError, RouteTooEarlyError, UnavailableError } from '../../errors.js'
import type { Hold, HoldInput } from '../../ledger/types.js'
import { accountBehind } from '../identity.js'
import { costBefore, holdOf, metadataOf } from './amounts.js'
import { Charge, type Subject } from './charge.js'
import { planOf, type Plan, type PlanOptions } from './config.js'
import { showCost } from './headers.js'
import { OpenHold } from './open-hold.js'
import { isReadable } from './payload.js'
import { withDetails } from './refusal.js'
import { Report } from './request-credits.js'

type Options = PlanOptions & { timeout: number }

/** Where an instance, and the config of a charged route, has its Charging. */
export const CHARGING = Symbol('fastify-ai-credits.charging')

/** An instance, or the config of a route. */
export type Marked = { [CHARGING]?: Charging }

/** The charging of the routes of one registration. */
export class Charging {
  private readonly states = new WeakMap<FastifyRequest, Charge | InsufficientCreditsError>()
  private readonly inFlight = new Set<Charge>()
  private gaveUp = false

  constructor (private readonly fastify: FastifyInstance, private readonly options: Options) {}

  /** Charges a route that is being declared. */
  charge (route: RouteOptions): void {
    const plan = planOf(route, this.options)
    route.config = { ...route.config, [CHARGING]: this } as typeof route.config
    if ((route as { websocket?: unknown }).websocket === true) return
    const { handler } = route
    const states = this.states
    route.handler = function (request, reply) {
      const state = states.get(request)
      const run = () => handler.call(this, request, reply)
      return state instanceof Charge ? state.run(run) : run()
    }
    route.preHandler = [route.preHandler ?? [], (request: FastifyRequest, reply: FastifyReply) => this.hold(plan, request, reply)].flat()
    route.onSend = [
      route.method === 'HEAD' ? this.waitForStream : [],
      route.onSend ?? [],
      (request: FastifyRequest, reply: FastifyReply, payload: unknown) => this.send(request, reply, payload)
    ].flat()
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

  private isWithin (outer: Charging) {
    return Object.prototype.isPrototypeOf.call(outer.fastify, this.fastify)
  }

  private async hold (plan: Plan, request: FastifyRequest, reply: FastifyReply): Promise<void> {
    if ((request as { ws?: unknown }).ws) return // a websocket, on a route that answers requests too
    const userId = await accountBehind(request, plan.user)
    const fixed = await costBefore(plan, request, reply)
    const credits = await holdOf(plan, request) ?? fixed!
    const asked = { userId, credits, operation: plan.operation, metadata: await metadataOf(plan, request) }
    if (credits === 0 || fixed === 0) {
      showCost(reply, 0)
      request.credits = new Report({ ...asked, id: null, credits: 0 })
      return
    }
    const hold = await this.take(plan, request, asked)
    const report = new Report({ ...asked, ...hold === undefined ? { id: null, credits: 0 } : { id: hold.id } })
    request.credits = report
    if (hold !== undefined) this.begin(hold, { plan, request, reply, report, fixed })
  }

  private async take (plan: Plan, request: FastifyRequest, asked: HoldInput): Promise<Hold | undefined> {
    try {
      return await this.fastify.credits.hold({ ...asked, ttl: plan.ttl })
    } catch (error) {
      if (error instanceof InsufficientCreditsError) this.states.set(request, error)
      if (!(error instanceof UnavailableError) || plan.onUnavailable === 'refuse') throw error
      const { userId, operation } = asked
      request.log.warn({ err: error, userId, operation }, 'A request is served without charge, as the credits are unavailable')
      return undefined
    }
  }

  private begin (hold: Hold, subject: Omit<Subject, 'hold' | 'prices'>) {
    const { request, plan: { ttl } } = subject
    const keeper = { ledger: this.fastify.credits, log: request.log, ttl, gaveUp: () => this.gaveUp }
    const charge = new Charge({ ...subject, hold: new OpenHold(hold, keeper), prices: this.options.prices })
    this.states.set(request, charge)
    this.inFlight.add(charge)
    charge.settled.then(() => this.inFlight.delete(charge))
  }

  private async send (request: FastifyRequest, reply: FastifyReply, payload: unknown): Promise<unknown> {
    const state = this.states.get(request)
    return state instanceof Charge ? await state.send(payload) : withDetails(request, reply, state, payload)
  }

  // Fastify reads the stream to its end, and hands on nothing.
  private readonly waitForStream = async (request: FastifyRequest, _reply: FastifyReply, payload: unknown): Promise<unknown> => {
    const state = this.states.get(request)
    if (state instanceof Charge && isReadable(payload)) state.waitFor(payload)
    return payload
  }
}
