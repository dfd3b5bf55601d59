import { Type } from '@sinclair/typebox'
import type { FastifyReply, FastifyRequest, RouteOptions } from 'fastify'
import { InvalidOptionError } from '../../errors.js'
import { Callable, ChargedBudget, compile, CreditsOrNone, field, MetadataField, oneOf, Operation, Ttl } from '../../ledger/input/fields.js'
import { DEFAULT_TTL } from '../../ledger/operations/hold.js'
import type { Metadata } from '../../ledger/input/metadata.js'
import type { PriceBook } from '../../ledger/prices/book.js'
import type { Usage } from '../../ledger/prices/types.js'
import type { FastifyAiCreditsOptions, Identity } from '../../options.js'
import type { RequestCredits } from './request-credits.js'

const DEFAULT_MAX_DURATION = 60 * 60_000

/** A request to a charged route, once its credits are held. */
export type ChargedRequest = FastifyRequest & { credits: RequestCredits }

/** How a route is charged: its `config.credits`. */
export interface RouteCredits {
  /** What the credits are spent on: 1 to 255 characters. */
  operation: string
  /**
   * What a request costs, in credits from 0 to 2^53 - 1; 0: it is free, and nothing is held. Or a function that returns
   * the cost. It is called after the handler if there is a `hold`, otherwise before the handler. Default: the sum that
   * `request.credits.use` added up; this needs a `hold`.
   */
  cost?: number | ((request: ChargedRequest, reply: FastifyReply) => number | Promise<number>)
  /**
   * Returns the quantities that a request used; called after the handler. The option `prices` turns them into credits, and
   * the usage record keeps them. It replaces `cost` and needs a `hold`, which is best the most that a request may cost.
   * Default: none.
   */
  usage?: (request: ChargedRequest, reply: FastifyReply) => Usage | Promise<Usage>
  /**
   * Credits to set aside before the handler runs, or a function of the request that returns them; 0: the request is
   * free. If the cost turns out to be higher, the rest is taken from what is available. Default: `cost`.
   */
  hold?: number | ((request: FastifyRequest) => number | Promise<number>)
  /** The least that a request pays, in credits, if it pays what it used. Default: 0. */
  minimum?: number
  /** Facts about the usage, for the history, or a function of the request that returns them. Default: `{}`. */
  metadata?: Metadata | ((request: FastifyRequest) => Metadata | Promise<Metadata>)
  /**
   * Milliseconds after which the hold lapses if nothing extends it, for instance because the process has died: from 1
   * second to 24 hours. It is extended while the client is there or the handler's promise is pending. Default: 15 minutes.
   */
  ttl?: number
  /**
   * How long a request may take, in milliseconds from its hold: from 1 second to 24 hours. After that it pays what it has
   * used so far, and the rest of its reply is free. Set it higher than the longest reply takes. Default: 1 hour, or `ttl`
   * if that is longer.
   */
  maxDuration?: number
  /**
   * Returns the user id of the account that pays, or `{ userId, budget }`; `undefined`, `null` or `''` for nobody (401).
   * Default: what `identify` returns, or the default user if there is no `identify`.
   */
  user?: (request: FastifyRequest) => Identity | Promise<Identity>
  /**
   * The budget in which requests count, and so in all above it: 1 to 255 characters, no template. Or a function of the
   * request that returns its name; `undefined`, `null` or `''`: none. A request that `user` or `identify` binds to another
   * budget is refused (403). Default: the budget that `user` or `identify` returns.
   */
  budget?: string | ((request: FastifyRequest) => string | null | undefined | Promise<string | null | undefined>)
  /**
   * `'after'`: the cost is captured when the response has ended. `'before'`: it is captured before the response begins, and
   * an unpaid response is never sent. A stream then pays its fixed cost, or what is held if it has none. If the reply still
   * turns into an error, the credits are given back. Default: `'after'`.
   */
  capture?: 'after' | 'before'
  /**
   * What happens while the database does not answer. `'refuse'`: the request is refused (503). `'allow'`: it is served
   * without charge, with a warning in the log. Default: `'refuse'`.
   */
  onUnavailable?: 'refuse' | 'allow'
}

type FieldsWithDefault = 'operation' | 'minimum' | 'ttl' | 'maxDuration' | 'user' | 'capture' | 'onUnavailable'

/** A route's `config.credits`, checked and with the defaults filled in. */
export interface ChargeRules extends Required<Pick<RouteCredits, FieldsWithDefault>>,
  Pick<RouteCredits, 'cost' | 'usage' | 'hold' | 'metadata' | 'budget'> {
  /** The route's methods and URL, for error messages. */
  route: string
  /** Whether OPTIONS requests are charged: only if the route has no other method. */
  chargesOptions: boolean
}

const orFunction = <T>(name: string, problemOf: (value: unknown) => unknown, expected: string) => field<T>(name, {},
  value => typeof value === 'function' || problemOf(value) === undefined, expected)

const Amount = orFunction<number>('amount', compile(CreditsOrNone),
  `must be a whole number from 0 to ${Number.MAX_SAFE_INTEGER} or a function`)

const MetadataOrFunction = orFunction<Metadata>('facts', compile(MetadataField),
  'must be an object of at most 8 KiB of JSON or a function')

const BudgetOrFunction = orFunction<string>('charged_budget_or_function', compile(ChargedBudget),
  'must be a string of 1 to 255 characters, no template, or a function')

const problemOf = compile(Type.Object({
  operation: Operation,
  cost: Type.Optional(Amount),
  usage: Type.Optional(Callable),
  hold: Type.Optional(Amount),
  minimum: Type.Optional(CreditsOrNone),
  metadata: Type.Optional(MetadataOrFunction),
  ttl: Type.Optional(Ttl),
  maxDuration: Type.Optional(Ttl),
  user: Type.Optional(Callable),
  budget: Type.Optional(BudgetOrFunction),
  capture: Type.Optional(oneOf('after', 'before')),
  onUnavailable: Type.Optional(oneOf('refuse', 'allow'))
}, { additionalProperties: false }))

/** The plugin's options that the rules depend on. */
export interface RuleOptions extends Pick<FastifyAiCreditsOptions, 'identify' | 'defaultUser'> {
  prices: PriceBook
}

/** Checks a route's config and returns its rules. Throws InvalidOptionError, which names the route and the field. */
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
    if (credits.cost !== undefined) refuse('usage', 'is charged by prices, and cannot go together with cost')
    if (credits.hold === undefined) refuse('hold', 'is required if the cost depends on usage')
    if (!prices.has(credits.operation)) refuse('operation', 'has no price')
  } else if (credits.cost === undefined && credits.hold === undefined) {
    refuse('cost', 'is required if there is no hold')
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
    user: user ?? refuse('user', 'is required if there is neither identify nor a default user'),
    route
  }
}

// A field that is undefined counts as left out.
function withoutUndefined (value: unknown) {
  if (typeof value !== 'object' || value === null) return value
  return Object.fromEntries(Object.entries(value).filter(([, field]) => field !== undefined))
}
