import type { FastifyReply, FastifyRequest } from 'fastify'
import { InvalidChargeError, type InvalidInputError } from '../../errors.js'
import { compile, CreditsOrNone, MetadataField } from '../../ledger/fields.js'
import type { Metadata } from '../../ledger/metadata.js'
import type { PriceBook } from '../../ledger/prices/book.js'
import type { Quote } from '../../ledger/prices/types.js'
import type { ChargedRequest, ChargeRules } from './config.js'
import { andThen, type MaybePromise } from './maybe-promise.js'

const creditsProblem = compile(CreditsOrNone)
const metadataProblem = compile(MetadataField)

/** What a request costs, where that is known before its handler runs. */
export async function costBefore (rules: ChargeRules, request: FastifyRequest, reply: FastifyReply): Promise<number | undefined> {
  if (typeof rules.cost === 'number') return rules.cost
  return rules.hold === undefined ? await costOf(rules, request, reply) : undefined
}

/** What the function `cost` returns. */
export function costOf (rules: ChargeRules, request: FastifyRequest, reply: FastifyReply): MaybePromise<number> {
  const cost = rules.cost as Exclude<typeof rules.cost, number | undefined>
  return andThen(cost!(request as ChargedRequest, reply), credits => checked(rules, 'cost', credits))
}

/** What the quantities cost that the function `usage` returns. */
export function quoteOf (rules: ChargeRules, prices: PriceBook, request: FastifyRequest, reply: FastifyReply): MaybePromise<Quote> {
  return andThen(rules.usage!(request as ChargedRequest, reply), usage => {
    try {
      return prices.quote(rules.operation, usage)
    } catch (error) {
      const { field, problem } = error as InvalidInputError
      throw new InvalidChargeError(field, rules.route, problem)
    }
  })
}

/** What is to be held, where it is another amount than the cost. */
export async function holdOf (rules: ChargeRules, request: FastifyRequest): Promise<number | undefined> {
  const { hold } = rules
  return typeof hold === 'function' ? checked(rules, 'hold', await hold(request)) : hold
}

/** The facts about the usage that the route's config has. */
export async function metadataOf (rules: ChargeRules, request: FastifyRequest): Promise<Metadata> {
  const { metadata = {} } = rules
  const facts = typeof metadata === 'function' ? await metadata(request) : metadata
  const problem = metadataProblem(facts)
  if (problem !== undefined) throw new InvalidChargeError('metadata', rules.route, problem.problem)
  return facts as Metadata
}

function checked (rules: ChargeRules, name: string, credits: number) {
  const problem = creditsProblem(credits)
  if (problem !== undefined) throw new InvalidChargeError(name, rules.route, problem.problem)
  return credits
}
