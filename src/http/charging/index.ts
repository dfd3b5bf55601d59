import type { FastifyInstance } from 'fastify'
import { RouteCharging, CHARGING, type Marked } from './route-charging.js'

/**
 * Charges the routes of a context and its children that have `config.credits` and are declared from now on. Those that
 * were declared before reply an error, as they cannot be charged any more.
 */
export function chargeRoutes (
  fastify: FastifyInstance, options: ConstructorParameters<typeof RouteCharging>[1]
): RouteCharging {
  const charging = new RouteCharging(fastify, options)
  const isFirst = (fastify as Marked)[CHARGING] === undefined // a child has its parent's
  fastify.decorate(CHARGING, charging)
  if (isFirst) fastify.decorateRequest('credits', null)
  fastify.addHook('onRoute', function (route) {
    if (route.config?.credits !== undefined && (this as Marked)[CHARGING] === charging) charging.charge(route)
  })
  // A hook for every request, as Fastify lists no routes: onRoute tells of later ones only, and a route that was declared
  // before would be free, in this context or in a child. A hook reaches them all. It reads one field of the config.
  fastify.addHook('onRequest', (request, _reply, done) => done(charging.missed(request)))
  return charging
}
