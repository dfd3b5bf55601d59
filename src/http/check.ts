import type { FastifyInstance } from 'fastify'
import type { PluginLedger } from '../ledger/open.js'
import { shownBalance } from './balance.js'
import { chargeSettings, inputOf, type DeductRoute } from './deduct.js'
import type { RouteSettings } from './route-settings.js'
import { checkSchema } from './schemas.js'

/**
 * Registers `POST /credits/check`, which replies to a deduct's request whether it would be accepted, and spends nothing. What would
 * be refused gets the refusal of the deduct.
 */
export function checkRoute (fastify: FastifyInstance, ledger: PluginLedger, settings: RouteSettings) {
  fastify.post<DeductRoute>('/credits/check', {
    ...chargeSettings(settings),
    schema: checkSchema(settings.mustName, fastify.prefix)
  }, async (request, reply) => {
    const { credits, balance, replayed, refusal } = await ledger.canAffordChecked(inputOf(request))
    if (refusal !== null) throw refusal
    if (replayed) reply.header('idempotency-replayed', 'true')
    return { affordable: true, required: credits, credits: shownBalance(balance) }
  })
}
