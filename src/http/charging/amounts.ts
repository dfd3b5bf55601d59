import type { FastifyReply, FastifyRequest } from 'fastify'
import { InvalidChargeError, InvalidInputError } from '../../errors.js'
import { compile, CreditsOrNone, MetadataField } from '../../ledger/input/fields.js'
import type { Metadata } from '../../ledger/input/metadata.js'
import type { PriceBook } from '../../ledger/prices/book.js'
import type { Quote } from '../../ledger/prices/types.js'
import type { ChargedRequest, ChargeRules } from './config.js'
import { andThen, type MaybePromise } from './maybe-promise.js'

const creditsProblem = compile(CreditsOrNone)
const metadataProblem = compile(MetadataField)

/** Returns what a request costs, in credits; undefined if that is known only after its handler has run. */
export async function costBefore (
  rules: ChargeRules, request: FastifyRequest, reply: FastifyReply
): Promise<number | undefined> {
  if (typeof rules.cost === 'number') return rules.cost
  return rules.hold === undefined ? await costOf(rules, request, reply) : undefined
}

/** Calls the function `cost` and returns its credits. Throws InvalidChargeError if they are no amount. */
export function costOf (rules: ChargeRules, request: FastifyRequest, reply: FastifyReply): MaybePromise<number> {
  const cost = rules.cost as Exclude<typeof rules.cost, number | undefined>
  return andThen(cost!(request as ChargedRequest, reply), credits => checked(rules, 'cost', credits))
}

/** Calls the function `usage` and prices the quantities that it returns. Throws InvalidChargeError if that fails. */
export function quoteOf (
  rules: ChargeRules, prices: PriceBook, request: FastifyRequest, reply: FastifyReply
): MaybePromise<Quote> {
  return andThen(rules.usage!(request as ChargedRequest, reply), usage => {
    try {
      return prices.quote(rules.operation, usage)
    } catch (error) {
      throw error instanceof InvalidInputError ? new InvalidChargeError(error.field, rules.route, error.problem) : error
    }
  })
}

/** Returns the credits to hold; undefined if the route has no `hold`, and its cost is held. */
export async function holdOf (rules: ChargeRules, request: FastifyRequest): Promise<number | undefined> {
  const { hold } = rules
  return typeof hold === 'function' ? checked(rules, 'hold', await hold(request)) : hold
}

/** Returns the metadata of the route's config. Throws InvalidChargeError if it is malformed. */
export async function metadataOf (rules: ChargeRules, request: FastifyRequest): Promise<Metadata> {
  const { metadata = {} } = rules
  const given = typeof metadata === 'function' ? await metadata(request) : metadata
  const problem = metadataProblem(given)
  if (problem !== undefined) throw new InvalidChargeError('metadata', rules.route, problem.problem)
  return given as Metadata
}

/** Returns the budget of the route's config; undefined: none. Throws InvalidChargeError if it is no string. */
export async function budgetOf ({ budget, route }: ChargeRules, request: FastifyRequest): Promise<string | undefined> {
  if (typeof budget !== 'function') return budget
  const name = await budget(request)
  if (name === undefined || name === null || name === '') return undefined
  if (typeof name !== 'string') throw new InvalidChargeError('budget', route, 'must be a string, or nothing')
  return name
}

function checked (rules: ChargeRules, name: string, credits: number) {
  const problem = creditsProblem(credits)
  if (problem !== undefined) throw new InvalidChargeError(name, rules.route, problem.problem)
  return credits
}
