import type { FastifyInstance } from 'fastify'
import type { Credits } from '../../ledger/types.js'
import type { FastifyAiCreditsOptions } from '../../options.js'
import { actionRoute } from './action.js'
import { grantAction } from './grants.js'
import { guard } from './guard.js'
import { captureAction, extendAction, holdAction, releaseAction } from './holds.js'
import { refundAction } from './refunds.js'
import { statementRoute } from './statement.js'

type Management = NonNullable<FastifyAiCreditsOptions['management']>

/**
 * Registers the routes for services in other languages, in a context of their own. `mustName`: there is no default
 * user.
 */
export function registerManagement (
  fastify: FastifyInstance, ledger: Credits, { authorize }: Management, mustName: boolean
): void {
  const preHandler = guard(authorize) // the route's own, so that all hooks of the host have run
  const actions = [
    grantAction(ledger, mustName), holdAction(ledger, mustName), captureAction(ledger), releaseAction(ledger),
    extendAction(ledger), refundAction(ledger)
  ]
  for (const action of actions) actionRoute(fastify, action, preHandler)
  statementRoute(fastify, ledger, mustName, preHandler)
}
