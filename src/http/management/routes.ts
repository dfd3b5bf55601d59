import type { FastifyInstance } from 'fastify'
import type { Credits } from '../../ledger/types.js'
import type { FastifyAiCreditsOptions } from '../../options.js'
import { actionRoute } from './action.js'
import { budgetRoutes } from './budgets.js'
import { grantAction } from './grants.js'
import { guard } from './guard.js'
import { captureAction, extendAction, holdAction, releaseAction } from './holds.js'
import { refundAction } from './refunds.js'
import { statementRoute } from './statement.js'

type Management = NonNullable<FastifyAiCreditsOptions['management']>

/**
 * Registers the management routes, for services in other languages. Give it a context of their own. `mustName`: requests
 * must have `user_id`.
 */
export function registerManagement (
  fastify: FastifyInstance, ledger: Credits, { authorize }: Management, mustName: boolean
): void {
  const preHandler = guard(authorize) // a route's own preHandler runs after all hooks of the host
  const actions = [
    grantAction(ledger, mustName), holdAction(ledger, mustName), captureAction(ledger), releaseAction(ledger),
    extendAction(ledger), refundAction(ledger)
  ]
  for (const action of actions) actionRoute(fastify, action, preHandler)
  statementRoute(fastify, ledger, mustName, preHandler)
  budgetRoutes(fastify, ledger, mustName, preHandler)
}
