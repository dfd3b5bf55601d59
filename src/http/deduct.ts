import type { FastifyInstance } from 'fastify'
import type { PluginLedger } from '../ledger/index.js'
import { shownBalance } from './balance.js'
import { accountOf } from './identity.js'
import { BODY_LIMIT } from './isolation.js'
import type { RouteSettings } from './routes.js'
import { deductBody, deductSchema, IdempotencyHeaders, NoQuery, type DeductBody } from './schemas.js'
import { strictValidator } from './validation.js'

interface DeductRoute {
  Body: DeductBody
  Headers: { 'idempotency-key'?: string }
}

/** `POST /credits/deduct`: spends credits. */
export function deductRoute (fastify: FastifyInstance, ledger: PluginLedger, { mustName, options }: RouteSettings) {
  fastify.post<DeductRoute>('/credits/deduct', {
    ...options,
    bodyLimit: BODY_LIMIT,
    schema: deductSchema(mustName, fastify.prefix),
    validatorCompiler: strictValidator({ body: deductBody(mustName), headers: IdempotencyHeaders, querystring: NoQuery })
  }, async (request, reply) => {
    const { credits, operation, metadata } = request.body
    const idempotencyKey = request.headers['idempotency-key']
    const { balance, replayed } = await ledger.deduct({
      userId: accountOf(request), credits, operation, metadata, idempotencyKey
    })
    if (replayed) reply.header('idempotency-replayed', 'true')
    return { message: 'Credits deducted successfully', credits: shownBalance(balance) }
  })
}
