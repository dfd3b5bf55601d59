import type { FastifyInstance, preHandlerAsyncHookHandler } from 'fastify'
import type { PluginLedger } from '../ledger/open.js'
import type { CreditsRouteOptions, FastifyAiCreditsOptions } from '../options.js'
import { budgetsRoute } from './budgets.js'
import { checkRoute } from './check.js'
import { deductRoute } from './deduct.js'
import { resolvePayer } from './identity.js'
import { isolate } from './isolation.js'
import { registerManagement } from './management/routes.js'
import { readRoute } from './read.js'
import { sharedSchemas } from './schemas.js'
import { readQueryStrictly } from './validation.js'

type Options = Pick<FastifyAiCreditsOptions, 'routes' | 'identify' | 'defaultUser' | 'management'>

/** Returns the host's own options for the routes that read, and for those that deduct and check; false: they are not registered. */
export function enabledRoutes (routes: Options['routes']) {
  const { read = true, deduct = true } = typeof routes === 'object' ? routes : { read: routes, deduct: routes }
  return { read: hostOptions(read), deduct: hostOptions(deduct) }
}

const hostOptions = (route: boolean | CreditsRouteOptions) => route === true ? {} : route

/** Registers the plugin's routes. Give it a context of their own. */
export function registerRoutes (fastify: FastifyInstance, ledger: PluginLedger, options: Options): void {
  const { read, deduct } = enabledRoutes(options.routes)
  const mustName = options.defaultUser === null && options.identify === undefined
  isolate(fastify)
  for (const schema of sharedSchemas) fastify.addSchema(schema)
  fastify.decorateRequest('creditsUserId', null)
  fastify.decorateRequest('creditsBudget', null)
  fastify.addHook('preValidation', readQueryStrictly)
  if (read) {
    const settings = { mustName, options: endingWith(read, resolvePayer('query', options)) }
    readRoute(fastify, ledger, settings)
    budgetsRoute(fastify, ledger, settings)
  }
  if (deduct) {
    const settings = { mustName, options: endingWith(deduct, resolvePayer('body', options)) }
    deductRoute(fastify, ledger, settings)
    checkRoute(fastify, ledger, settings)
  }
  const { management } = options
  if (management !== undefined) {
    const defaultless = options.defaultUser === null || options.identify !== undefined
    fastify.register(async scope => registerManagement(scope, ledger, management, defaultless))
  }
}

// Adds a preHandler as the route's last one. A route's own preHandlers run after those of all contexts around it, even those
// that are added later.
function endingWith (options: CreditsRouteOptions, preHandler: preHandlerAsyncHookHandler): CreditsRouteOptions {
  return { ...options, preHandler: [options.preHandler ?? [], preHandler].flat() }
}
