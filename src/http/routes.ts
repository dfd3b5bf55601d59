import type { FastifyInstance, preHandlerAsyncHookHandler } from 'fastify'
import type { PluginLedger } from '../ledger/index.js'
import type { CreditsRouteOptions, FastifyAiCreditsOptions } from '../options.js'
import { deductRoute } from './deduct.js'
import { resolveAccount } from './identity.js'
import { isolate } from './isolation.js'
import { registerManagement } from './management/routes.js'
import { readRoute } from './read.js'
import { sharedSchemas } from './schemas.js'
import { readQueryStrictly } from './validation.js'

/** What a route is told by the plugin's options. */
export interface RouteSettings {
  /** Whether a request must name its account. */
  mustName: boolean
  /** The host's own options of the route, the plugin's preHandler last. */
  options: CreditsRouteOptions
}

type Options = Pick<FastifyAiCreditsOptions, 'routes' | 'identify' | 'defaultUser' | 'management'>

/** Which of the routes there are, each with the host's own options for it; false: not there. */
export function enabledRoutes (routes: Options['routes']) {
  const { read = true, deduct = true } = typeof routes === 'object' ? routes : { read: routes, deduct: routes }
  return { read: hostOptions(read), deduct: hostOptions(deduct) }
}

const hostOptions = (route: boolean | CreditsRouteOptions) => route === true ? {} : route

/** Registers the routes in a context of their own. */
export function registerRoutes (fastify: FastifyInstance, ledger: PluginLedger, options: Options): void {
  const { read, deduct } = enabledRoutes(options.routes)
  const mustName = options.defaultUser === null && options.identify === undefined
  isolate(fastify)
  for (const schema of sharedSchemas) fastify.addSchema(schema)
  fastify.decorateRequest('creditsUserId', null)
  fastify.addHook('preValidation', readQueryStrictly)
  if (read) readRoute(fastify, ledger, { mustName, options: endingWith(read, resolveAccount('query', options)) })
  if (deduct) deductRoute(fastify, ledger, { mustName, options: endingWith(deduct, resolveAccount('body', options)) })
  const { management } = options
  if (management !== undefined) {
    const defaultless = options.defaultUser === null || options.identify !== undefined
    fastify.register(async scope => registerManagement(scope, ledger, management, defaultless))
  }
}

// A route's own preHandlers run after those of every context around it, whenever these were added.
function endingWith (options: CreditsRouteOptions, preHandler: preHandlerAsyncHookHandler): CreditsRouteOptions {
  return { ...options, preHandler: [options.preHandler ?? [], preHandler].flat() }
}
