import type { FastifyReply, FastifyRequest } from 'fastify'
import { InvalidChargeError, type InvalidInputError } from '../../errors.js'
import { compile, CreditsOrNone, MetadataField } from '../../ledger/fields.js'
import type { Metadata } from '../../ledger/metadata.js'
import type { PriceBook } from '../../ledger/prices/book.js'
import type { Quote } from '../../ledger/prices/types.js'
import type { ChargedRequest, Plan } from './config.js'

const creditsProblem = compile(CreditsOrNone)
const metadataProblem = compile(MetadataField)

/** What a request costs, where that is known before its handler runs. */
export async function costBefore (plan: Plan, request: FastifyRequest, reply: FastifyReply): Promise<number | undefined> {
  if (typeof plan.cost === 'number') return plan.cost
  return plan.hold === undefined ? await costOf(plan, request, reply) : undefined
}

/** What the function `cost` answers. */
export async function costOf (plan: Plan, request: FastifyRequest, reply: FastifyReply): Promise<number> {
  const { cost } = plan
  return checked(plan, 'cost', await (cost as Exclude<typeof cost, number | undefined>)!(request as ChargedRequest, reply))
}

/** What the quantities cost that the function `usage` answers. */
export async function quoteOf (plan: Plan, prices: PriceBook, request: FastifyRequest, reply: FastifyReply): Promise<Quote> {
  const usage = await plan.usage!(request as ChargedRequest, reply)
  try {
    return prices.quote(plan.operation, usage)
  } catch (error) {
    const { field, problem } = error as InvalidInputError
    throw new InvalidChargeError(field, plan.route, problem)
  }
}

/** What is to be held, where it is another amount than the cost. */
export async function holdOf (plan: Plan, request: FastifyRequest): Promise<number | undefined> {
  const { hold } = plan
  return typeof hold === 'function' ? checked(plan, 'hold', await hold(request)) : hold
}

/** The facts about the usage that the route's config has. */
export async function metadataOf (plan: Plan, request: FastifyRequest): Promise<Metadata> {
  const { metadata = {} } = plan
  const facts = typeof metadata === 'function' ? await metadata(request) : metadata
  const problem = metadataProblem(facts)
  if (problem !== undefined) throw new InvalidChargeError('metadata', plan.route, problem.problem)
  return facts as Metadata
}

function checked (plan: Plan, name: string, credits: number) {
  const problem = creditsProblem(credits)
  if (problem !== undefined) throw new InvalidChargeError(name, plan.route, problem.problem)
  return credits
}
