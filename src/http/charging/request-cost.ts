import type { FastifyReply, FastifyRequest } from 'fastify'
import type { PriceBook } from '../../ledger/prices/book.js'
import type { Usage } from '../../ledger/prices/types.js'
import { costOf, quoteOf } from './amounts.js'
import type { ChargeRules } from './config.js'
import { andThen, type MaybePromise } from './maybe-promise.js'
import type { ReportedUsage } from './request-credits.js'

/** Everything that the cost of one request depends on. */
export interface CostContext {
  rules: ChargeRules
  request: FastifyRequest
  reply: FastifyReply
  reported: ReportedUsage
  prices: PriceBook
  /** The cost, in credits, if it was known before the handler ran. */
  fixed: number | undefined
}

/** The cost of one request. It is computed when it is first needed, and stays what it was then. */
export class RequestCost {
  /** The cost, in credits, once it is known. */
  known: number | undefined
  /** The quantities that the cost was computed from; undefined on a route without `usage`. */
  quantities: Usage | undefined

  constructor (private readonly context: CostContext) {
    this.known = context.fixed
  }

  /** Returns the cost, in credits. Throws what the route's functions throw, or InvalidChargeError. */
  compute (): MaybePromise<number> {
    return this.known ?? andThen(this.computeNow(), cost => (this.known = cost))
  }

  private computeNow (): MaybePromise<number> {
    const { rules, request, reply, prices, reported } = this.context
    if (rules.usage !== undefined) {
      return andThen(quoteOf(rules, prices, request, reply), ({ credits, usage }) => {
        this.quantities = usage
        return credits
      })
    }
    return rules.cost === undefined ? Math.max(rules.minimum, reported.used) : costOf(rules, request, reply)
  }
}
