import type { FastifyInstance } from 'fastify'
import fp from 'fastify-plugin'
import type { RouteCredits } from './http/charging/config.js'
import { chargeRoutes } from './http/charging/index.js'
import type { RequestCredits } from './http/charging/request-credits.js'
import { claimNames } from './http/names.js'
import { enabledRoutes, registerRoutes } from './http/routes.js'
import { openLedger } from './ledger/open.js'
import type { AdoptionProgress } from './ledger/database/adopt.js'
import type { Credits } from './ledger/types.js'
import { parsePluginOptions, type FastifyAiCreditsOptions } from './options.js'
import { findPool } from './pool.js'

export * from './ledger/index.js'
export type { ChargedRequest, RouteCredits } from './http/charging/config.js'
export type { RequestCredits } from './http/charging/request-credits.js'
export type { Authorize, CreditsRouteOptions, FastifyAiCreditsOptions, Identity } from './options.js'

declare module 'fastify' {
  interface FastifyInstance {
    /** The ledger: accounts of prepaid credits. */
    credits: Credits
  }

  interface FastifyRequest {
    /** In a route with `config.credits`: the credits of this request. Null until they are held, and in other routes. */
    credits: RequestCredits | null
  }

  interface FastifyContextConfig {
    /** How requests to the route are charged; see RouteCredits. */
    credits?: RouteCredits
  }
}

async function plugin (fastify: FastifyInstance, given: FastifyAiCreditsOptions) {
  const options = parsePluginOptions(given)
  claimNames(fastify)
  const charging = chargeRoutes(fastify, options) // before the first await, because the host may declare routes meanwhile
  const pool = await findPool(fastify, options)
  const ledger = openLedger(pool, options, ({ message, code }: Error & { code?: string }) => {
    // Not the whole error: it contains the `pg` client, with its statements and its cancellation key.
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
    fastify.log.warn('The credits routes trust the user_id in the request: set the option identify, or guard the routes')
  }
  fastify.register(async scope => registerRoutes(scope, ledger, options), { prefix: options.prefix })
}

// Fastify aborts a plugin that loads for longer than pluginTimeout milliseconds; 0 means no limit.
function migration ({ initialConfig: { pluginTimeout = 0 }, log }: FastifyInstance) {
  return {
    seconds: pluginTimeout === 0 ? undefined : pluginTimeout / 1000,
    onProgress: (progress: AdoptionProgress) => log.info({ adoption: progress }, 'Adopting the credits tables')
  }
}

/** Prepaid credits for a Fastify gateway: routes, and `fastify.credits`. Options: `FastifyAiCreditsOptions`. */
export const fastifyAiCredits = fp(plugin, { fastify: '5.x', name: 'fastify-ai-credits' })

export default fastifyAiCredits
