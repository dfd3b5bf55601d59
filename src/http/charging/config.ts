import { Type } from '@sinclair/typebox'
import type { FastifyReply, FastifyRequest, RouteOptions } from 'fastify'
import { InvalidOptionError } from '../../errors.js'
import { Callable, compile, CreditsOrNone, field, MetadataField, oneOf, Operation, Ttl } from '../../ledger/fields.js'
import { DEFAULT_TTL } from '../../ledger/hold.js'
import type { Metadata } from '../../ledger/metadata.js'
import type { PriceBook } from '../../ledger/prices/book.js'
import type { Usage } from '../../ledger/prices/types.js'
import type { FastifyAiCreditsOptions, Identity } from '../../options.js'
import type { RequestCredits } from './request-credits.js'

const DEFAULT_MAX_DURATION = 60 * 60_000

/** A request of a charged route, once its credits are held. */
export type ChargedRequest = FastifyRequest & { credits: RequestCredits }

/** How a route is charged: its `config.credits`. */
export interface RouteCredits {
  /** What the credits are spent on: 1 to 255 characters. */
  operation: string
  /**
   * What a request costs, in credits from 0 to 2^53 - 1; 0: it is free, and nothing is held. Or a function that returns
   * it: called after the handler where there is a `hold`, else before it. Default: what `request.credits.use` added up
   * to, for which a `hold` is needed.
   */
  cost?: number | ((request: ChargedRequest, reply: FastifyReply) => number | Promise<number>)
  /**
   * The quantities that a request took, called after the handler: they are charged for by the option `prices`, and kept
   * with the usage record. In place of `cost`; a `hold` is needed, and is best what a request may cost. Default: none.
   */
  usage?: (request: ChargedRequest, reply: FastifyReply) => Usage | Promise<Usage>
  /**
   * Credits to set aside before the handler runs, or a function of the request that returns them; 0: the request is
   * free. The cost may turn out to be more, and then draws on what is available. Default: `cost`.
   */
  hold?: number | ((request: FastifyRequest) => number | Promise<number>)
  /** The least that is paid where the cost is what was used, in credits. Default: 0. */
  minimum?: number
  /** Facts about the usage, for the history, or a function of the request that returns them. Default: `{}`. */
  metadata?: Metadata | ((request: FastifyRequest) => Metadata | Promise<Metadata>)
  /**
   * Milliseconds after which the hold lapses, from 1 second to 24 hours, as when the process has died. It is extended
   * while the client is there or the handler's promise is pending. Default: 15 minutes.
   */
  ttl?: number
  /**
   * The longest that a request is waited for, in milliseconds from its hold: from 1 second to 24 hours. Then it pays what
   * it used so far, and the rest of its reply is free: set it above the longest that a reply takes. Default: 1 hour, or
   * `ttl` where that is longer.
   */
  maxDuration?: number
  /**
   * Who pays: returns a user id; `undefined`, `null` or `''` for nobody (401). Default: who `identify` returns, or the
   * default user where there is no `identify`.
   */
  user?: (request: FastifyRequest) => Identity | Promise<Identity>
  /**
   * `'after'`: the cost is captured when the response has ended. `'before'`: before it begins, so that an unpaid one is
   * never sent; a stream then pays its fixed cost, or else what is held. It is given back where the reply turns into an
   * error after all. Default: `'after'`.
   */
  capture?: 'after' | 'before'
  /**
   * What happens while the database gives no answer: the request is refused (503), or served without charge, with a
   * warning in the log. Default: `'refuse'`.
   */
  onUnavailable?: 'refuse' | 'allow'
}

/** A route's `config.credits`, checked and complete. */
export interface ChargeRules extends Required<Pick<RouteCredits, 'operation' | 'minimum' | 'ttl' | 'maxDuration' | 'user' | 'capture' | 'onUnavailable'>>,
  Pick<RouteCredits, 'cost' | 'usage' | 'hold' | 'metadata'> {
  /** The route, for errors: its methods and its URL. */
  route: string
  /** Whether OPTIONS requests are charged: only where the route is declared for nothing else. */
  chargesOptions: boolean
}

const orFunction = <T>(name: string, problemOf: (value: unknown) => unknown, expected: string) => field<T>(name, {},
  value => typeof value === 'function' || problemOf(value) === undefined, expected)

const Amount = orFunction<number>('amount', compile(CreditsOrNone),
  `must be a whole number from 0 to ${Number.MAX_SAFE_INTEGER} or a function`)

const Facts = orFunction<Metadata>('facts', compile(MetadataField), 'must be an object of at most 8 KiB of JSON or a function')

const problemOf = compile(Type.Object({
  operation: Operation,
  cost: Type.Optional(Amount),
  usage: Type.Optional(Callable),
  hold: Type.Optional(Amount),
  minimum: Type.Optional(CreditsOrNone),
  metadata: Type.Optional(Facts),
  ttl: Type.Optional(Ttl),
  maxDuration: Type.Optional(Ttl),
  user: Type.Optional(Callable),
  capture: Type.Optional(oneOf('after', 'before')),
  onUnavailable: Type.Optional(oneOf('refuse', 'allow'))
}, { additionalProperties: false }))

/** What of the plugin's options the rules depend on. */
export interface RuleOptions extends Pick<FastifyAiCreditsOptions, 'identify' | 'defaultUser'> {
  prices: PriceBook
}

/** The rules that a route's config makes. Throws InvalidOptionError, which names the route and the field. */
export function rulesOf (
  { method, url, config }: RouteOptions, { identify, defaultUser, prices }: RuleOptions
): ChargeRules {
  const methods = [method].flat()
  const route = `${methods.join()} ${url}`
  const refuse = (name: string, problem: string): never => {
    throw new InvalidOptionError(`config.credits${name && `.${name}`} of ${route}`, problem)
  }
  const given = withoutUndefined(config!.credits)
  const problem = problemOf(given)
  if (problem !== undefined) refuse(problem.field, problem.problem)
  const credits = given as RouteCredits
  if (credits.usage !== undefined) {
    if (credits.cost !== undefined) refuse('usage', 'goes with prices, and not together with cost')
    if (credits.hold === undefined) refuse('hold', 'is required where the cost depends on usage')
    if (!prices.has(credits.operation)) refuse('operation', 'has no price')
  } else if (credits.cost === undefined && credits.hold === undefined) {
    refuse('cost', 'is required where there is no hold')
  }
  const user = credits.user ?? identify ?? (defaultUser === null ? undefined : () => defaultUser)
  return {
    minimum: 0,
    ttl: DEFAULT_TTL,
    capture: 'after',
    onUnavailable: 'refuse',
    maxDuration: Math.max(DEFAULT_MAX_DURATION, credits.ttl ?? 0),
    ...credits,
    chargesOptions: methods.every(name => name === 'OPTIONS'),
    user: user ?? refuse('user', 'is required where there is neither identify nor a default user'),
    route
  }
}

// A field that is undefined is a field left out.
function withoutUndefined (value: unknown) {
  if (typeof value !== 'object' || value === null) return value
  return Object.fromEntries(Object.entries(value).filter(([, field]) => field !== undefined))
}
