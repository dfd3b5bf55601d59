import type { FastifyInstance } from 'fastify'
import { AlreadyRegisteredError, NameTakenError } from '../errors.js'

const registered = new WeakSet<FastifyInstance>()

/** Refuses a context that has what the plugin adds, before anything is added to it. */
export function claimNames (fastify: FastifyInstance): void {
  if (registered.has(fastify)) throw new AlreadyRegisteredError()
  if (Object.hasOwn(fastify, 'credits')) throw new NameTakenError('fastify.credits')
  // A parent's registration has added it for its children, too.
  if (!isInRegistered(fastify) && fastify.hasRequestDecorator('credits')) throw new NameTakenError('request.credits')
  if (fastify.hasRequestDecorator('creditsUserId')) throw new NameTakenError('request.creditsUserId')
  registered.add(fastify)
}

function isInRegistered (fastify: FastifyInstance) {
  for (let outer = Object.getPrototypeOf(fastify); outer !== null; outer = Object.getPrototypeOf(outer)) {
    if (registered.has(outer)) return true
  }
  return false
}
