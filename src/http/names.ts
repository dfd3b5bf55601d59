import type { FastifyInstance } from 'fastify'
import { AlreadyRegisteredError, NameTakenError } from '../errors.js'

const registered = new WeakSet<FastifyInstance>()

/**
 * Throws AlreadyRegisteredError if the plugin is registered in this context already, and NameTakenError if another plugin
 * or the host has used a name that it decorates. Otherwise it notes the registration. It must run before any decoration.
 */
export function claimNames (fastify: FastifyInstance): void {
  if (registered.has(fastify)) throw new AlreadyRegisteredError()
  if (Object.hasOwn(fastify, 'credits')) throw new NameTakenError('fastify.credits')
  // A registration in a parent context has decorated the requests of its children too.
  if (!isInRegistered(fastify) && fastify.hasRequestDecorator('credits')) throw new NameTakenError('request.credits')
  for (const name of ['creditsUserId', 'creditsBudget']) {
    if (fastify.hasRequestDecorator(name)) throw new NameTakenError(`request.${name}`)
  }
  registered.add(fastify)
}

function isInRegistered (fastify: FastifyInstance) {
  for (let outer = Object.getPrototypeOf(fastify); outer !== null; outer = Object.getPrototypeOf(outer)) {
    if (registered.has(outer)) return true
  }
  return false
}
