import type { FastifyInstance } from 'fastify'
import { Charging, CHARGING, type Marked } from './charging.js'

/**
 * Charges the routes of a context and its children that have `config.credits` and are declared from now on. Those that
 * were declared before answer an error, as they cannot be charged any more.
 */
export function chargeRoutes (fastify: FastifyInstance, options: ConstructorParameters<typeof Charging>[1]): Charging {
  const charging = new Charging(fastify, options)
  const isFirst = (fastify as Marked)[CHARGING] === undefined // a child has its parent's
  fastify.decorate(CHARGING, charging)
  if (isFirst) fastify.decorateRequest('credits', null)
  fastify.addHook('onRoute', function (route) {
    if (route.config?.credits !== undefined && (this as Marked)[CHARGING] === charging) charging.charge(route)
  })
  // This reaches children that are there already, where onRoute comes too late.
  fastify.addHook('onRequest', (request, _reply, done) => done(charging.missed(request)))
  return charging
}
