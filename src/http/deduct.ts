import type { FastifyInstance, FastifyRequest } from 'fastify'
import type { PluginLedger } from '../ledger/open.js'
import type { DeductInput } from '../ledger/operations/deduct.js'
import { shownBalance } from './balance.js'
import { accountOf, budgetOf } from './identity.js'
import { BODY_LIMIT } from './isolation.js'
import type { RouteSettings } from './route-settings.js'
import { deductBody, deductSchema, IdempotencyHeaders, NoQuery, type DeductBody } from './schemas.js'
import { strictValidator } from './validation.js'

/** A request to deduct credits, or to check whether they could be. */
export interface DeductRoute {
  Body: DeductBody
  Headers: { 'idempotency-key'?: string }
}

/** Returns the settings of a route that takes the request of a deduct: the host's options, and the checks of the request. */
export function chargeSettings ({ mustName, options }: RouteSettings) {
  return {
    ...options,
    bodyLimit: BODY_LIMIT,
    validatorCompiler: strictValidator({ body: deductBody(mustName), headers: IdempotencyHeaders, querystring: NoQuery })
  }
}

/** Returns what a request asks to deduct, as the ledger takes it. */
export function inputOf (request: FastifyRequest<DeductRoute>): DeductInput {
  const { credits, operation, metadata } = request.body
  const idempotencyKey = request.headers['idempotency-key']
  return { userId: accountOf(request), credits, operation, metadata, idempotencyKey, budget: budgetOf(request) }
}

/** Registers `POST /credits/deduct`, which spends credits. */
export function deductRoute (fastify: FastifyInstance, ledger: PluginLedger, settings: RouteSettings) {
  fastify.post<DeductRoute>('/credits/deduct', {
    ...chargeSettings(settings),
    schema: deductSchema(settings.mustName, fastify.prefix)
  }, async (request, reply) => {
    const { balance, replayed } = await ledger.deductChecked(inputOf(request))
    if (replayed) reply.header('idempotency-replayed', 'true')
    return { message: 'Credits deducted successfully', credits: shownBalance(balance) }
  })
}
