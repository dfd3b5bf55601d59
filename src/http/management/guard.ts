import type { FastifyInstance, FastifyReply, FastifyRequest, preHandlerAsyncHookHandler } from 'fastify'
import { ForbiddenError, InvalidAuthorizationError } from '../../errors.js'
import type { Authorize } from '../../options.js'

const PARAMETERS_WITH_DONE = 3

/** A preHandler that lets a request through if each of the host's hooks says yes. */
export function guard (authorize: Authorize | Authorize[]): preHandlerAsyncHookHandler {
  const hooks = [authorize].flat()
  return async function (request, reply) {
    const replied = watch(reply)
    for (const hook of hooks) {
      const said = await ask(hook, this, request, reply, replied)
      if (replied()) return reply
      if (isNo(said)) throw new ForbiddenError('The request is not authorized')
    }
  }
}

// Fastify says that a reply was sent only once its onSend hooks have ended: too late to stop the handler.
function watch (reply: FastifyReply): () => boolean {
  let began = false
  const { send, callNotFound } = reply
  Object.assign(reply, {
    send (payload: unknown) {
      began = true
      return send.call(reply, payload)
    },
    callNotFound () {
      began = true
      return callNotFound.call(reply)
    }
  })
  return () => began || reply.sent || reply.raw.headersSent
}

// Resolves to what the hook says, by its promise, by `done` or at once; rejects where it fails. One that never says
// anything keeps the request waiting, as Fastify's hooks do.
async function ask (
  hook: Authorize, instance: FastifyInstance, request: FastifyRequest, reply: FastifyReply, replied: () => boolean
): Promise<unknown> {
  return await new Promise((resolve, reject) => {
    const done = (error?: unknown, said?: unknown) => error === undefined || error === null ? resolve(said) : reject(error)
    const said = hook.call(instance, request, reply, done)
    if (said === false || isThenable(said)) resolve(said)
    else if (hook.length < PARAMETERS_WITH_DONE) {
      // Nothing is no yes: a promise that was not returned looks the same.
      if (said === true || replied()) resolve(said)
      else reject(new InvalidAuthorizationError(typeof said))
    }
  })
}

// A hook that resolves, or calls `done`, with nothing has let the request through.
function isNo (said: unknown) {
  return said !== undefined && !said
}

function isThenable (value: unknown): value is PromiseLike<unknown> {
  return typeof (value as { then?: unknown } | null | undefined)?.then === 'function'
}
