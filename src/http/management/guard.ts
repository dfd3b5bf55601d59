import type { FastifyInstance, FastifyReply, FastifyRequest, preHandlerAsyncHookHandler } from 'fastify'
import { ForbiddenError, InvalidAuthorizationError } from '../../errors.js'
import type { Authorize } from '../../options.js'

const PARAMETERS_WITH_DONE = 3

/** Returns a preHandler that lets a request through only if each of the host's hooks does. Otherwise: ForbiddenError. */
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

// Returns a function that says whether a reply was begun. Fastify sets `reply.sent` only after the onSend hooks: that is too
// late to stop the handler. So the reply's own methods are watched.
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

// Calls a hook, and resolves to what it says: by its promise, by `done`, or by its return value. Rejects if the hook fails.
// A hook that never says anything keeps the request waiting, as in Fastify.
async function ask (
  hook: Authorize, instance: FastifyInstance, request: FastifyRequest, reply: FastifyReply, replied: () => boolean
): Promise<unknown> {
  return await new Promise((resolve, reject) => {
    const done = (error?: unknown, said?: unknown) => error === undefined || error === null ? resolve(said) : reject(error)
    const said = hook.call(instance, request, reply, done)
    if (said === false || isThenable(said)) resolve(said)
    else if (hook.length < PARAMETERS_WITH_DONE) {
      // A hook that returns nothing has not said yes: it may have forgotten to return its promise.
      if (said === true || replied()) resolve(said)
      else reject(new InvalidAuthorizationError(typeof said))
    }
  })
}

// A hook whose promise resolves to nothing, or that calls `done()`, lets the request through.
function isNo (said: unknown) {
  return said !== undefined && !said
}

function isThenable (value: unknown): value is PromiseLike<unknown> {
  return typeof (value as { then?: unknown } | null | undefined)?.then === 'function'
}
