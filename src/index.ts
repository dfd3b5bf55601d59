import type { FastifyInstance } from 'fastify'
import fp from 'fastify-plugin'
import type { RouteCredits } from './http/charging/config.js'
import { chargeRoutes } from './http/charging/index.js'
import type { RequestCredits } from './http/charging/request-credits.js'
import { claimNames } from './http/names.js'
import { enabledRoutes, registerRoutes } from './http/routes.js'
import { openLedger } from './ledger/index.js'
import type { AdoptionProgress, Credits } from './ledger/types.js'
import { parsePluginOptions, type FastifyAiCreditsOptions } from './options.js'
import { findPool } from './pool.js'

export * from './errors.js'
export { createLedger } from './ledger/index.js'
export type * from './ledger/credits-events.js'
export type { Connection, Pool, Queryable } from './ledger/database.js'
export type { Metadata } from './ledger/metadata.js'
export type * from './ledger/prices/types.js'
export type * from './ledger/types.js'
export type { ChargedRequest, RouteCredits } from './http/charging/config.js'
export type { RequestCredits } from './http/charging/request-credits.js'
export type { Authorize, CreditsRouteOptions, FastifyAiCreditsOptions, Identity, LedgerOptions, RecurringAllowance } from './options.js'

declare module 'fastify' {
  interface FastifyInstance {
    /** The accounts of prepaid credits. */
    credits: Credits
  }

  interface FastifyRequest {
    /** In a route with `config.credits`: what is held for the request, once it is held. Elsewhere null. */
    credits: RequestCredits | null
  }

  interface FastifyContextConfig {
    /** Charges the route: see RouteCredits. */
    credits?: RouteCredits
  }
}

async function plugin (fastify: FastifyInstance, given: FastifyAiCreditsOptions) {
  const options = parsePluginOptions(given)
  claimNames(fastify)
  const charging = chargeRoutes(fastify, options) // before anything is awaited: routes may be declared meanwhile
  const pool = await findPool(fastify, options)
  const ledger = openLedger(pool, options, ({ message, code }: Error & { code?: string }) => {
    // The error itself holds the client of `pg`: its statements, and the key by which they can be cancelled.
    fastify.log.warn({ err: { message, code } }, 'A connection of the credits pool was lost')
  }, (error, event) => {
    fastify.log.error({ err: error, event }, 'A listener of credits failed')
  })
  fastify.addHook('onClose', async () => {
    await charging.close()
    await ledger.close()
  })

  if (options.migrate) await ledger.migrate(migration(fastify))
  else await ledger.start()
  if (options.sampleData) await ledger.writeSampleData()

  fastify.decorate('credits', ledger.credits)
  const { read, deduct } = enabledRoutes(options.routes)
  if (!read && !deduct && options.management === undefined) return
  if ((read || deduct) && options.identify === undefined) {
    fastify.log.warn('The credits routes believe the user_id they are sent: give identify, or guard them')
  }
  fastify.register(async scope => registerRoutes(scope, ledger, options), { prefix: options.prefix })
}

// Fastify gives up on a plugin after pluginTimeout milliseconds; 0 is no limit.
function migration ({ initialConfig: { pluginTimeout = 0 }, log }: FastifyInstance) {
  return {
    seconds: pluginTimeout === 0 ? undefined : pluginTimeout / 1000,
    onProgress: (progress: AdoptionProgress) => log.info({ adoption: progress }, 'Adopting the credits tables')
  }
}

/** Prepaid credits for a Fastify gateway: two routes, and `fastify.credits`. Options: `FastifyAiCreditsOptions`. */
export const fastifyAiCredits = fp(plugin, { fastify: '5.x', name: 'fastify-ai-credits' })

export default fastifyAiCredits
