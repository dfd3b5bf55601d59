import type { FastifyInstance } from 'fastify'
import { RouteCharging, CHARGING, type HasCharging } from './route-charging.js'

/**
 * Charges the routes of a context and its children that have `config.credits` and are declared from now on. Routes that
 * were declared before can no longer be charged: they reply an error (RouteTooEarlyError).
 */
export function chargeRoutes (
  fastify: FastifyInstance, options: ConstructorParameters<typeof RouteCharging>[1]
): RouteCharging {
  const charging = new RouteCharging(fastify, options)
  const isFirst = (fastify as HasCharging)[CHARGING] === undefined // otherwise a parent has decorated requests already
  fastify.decorate(CHARGING, charging)
  if (isFirst) fastify.decorateRequest('credits', null)
  fastify.addHook('onRoute', function (route) {
    if (route.config?.credits !== undefined && (this as HasCharging)[CHARGING] === charging) charging.chargeRoute(route)
  })
  // This hook runs for every request, charged or not, because Fastify has no list of its routes. `onRoute` reports only
  // routes that are declared later. An earlier route with `config.credits`, here or in a child, would be served for free:
  // the hook replies an error instead. On other routes it reads one field of the config.
  fastify.addHook('onRequest', (request, _reply, done) => done(charging.tooEarlyError(request)))
  return charging
}
