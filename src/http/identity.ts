import type { FastifyRequest, preHandlerAsyncHookHandler } from 'fastify'
import { ForbiddenError, InvalidIdentityError, UnidentifiedError } from '../errors.js'
import type { FastifyAiCreditsOptions, Identity } from '../options.js'
import { validationError } from './validation.js'

declare module 'fastify' {
  interface FastifyRequest {
    /** The account that a request to the plugin's own routes is about. */
    creditsUserId: string | null
  }
}

/**
 * A preHandler that settles which account a request is about: the one that it names, checked against the one that
 * `identify` returns. `part` says where the request names it.
 */
export function resolveAccount (
  part: 'body' | 'query', { identify, defaultUser }: Pick<FastifyAiCreditsOptions, 'identify' | 'defaultUser'>
): preHandlerAsyncHookHandler {
  return async request => {
    const named = (request[part] as { user_id?: string }).user_id
    request.creditsUserId = identify === undefined
      ? named ?? defaultUser!
      : bind(named, await identify(request), part)
  }
}

/** The account behind a request that names none, as `who` returns it. */
export async function accountBehind (
  request: FastifyRequest, who: NonNullable<FastifyAiCreditsOptions['identify']>
): Promise<string> {
  return bind(undefined, await who(request), 'request')
}

function bind (named: string | undefined, identity: Identity, part: string) {
  if (identity === undefined || identity === null || identity === '') throw new UnidentifiedError()
  if (isTrusted(identity)) {
    if (named === undefined) throw validationError(part === 'query' ? 'querystring' : part, 'user_id', 'is required')
    return named
  }
  if (typeof identity !== 'string') throw new InvalidIdentityError(typeof identity)
  if (named !== undefined && named !== identity) throw new ForbiddenError()
  return identity
}

function isTrusted (identity: NonNullable<Identity>): identity is { any: true } {
  return typeof identity === 'object' && identity.any === true
}

/** The account that `resolveAccount` settled on. */
export function accountOf (request: FastifyRequest): string {
  return request.creditsUserId!
}
