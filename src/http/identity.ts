import { Type } from '@sinclair/typebox'
import type { FastifyRequest, preHandlerAsyncHookHandler } from 'fastify'
import { ForbiddenError, InvalidIdentityError, UnidentifiedError } from '../errors.js'
import { ChargedBudget, compile, Id } from '../ledger/input/fields.js'
import type { FastifyAiCreditsOptions, Identity } from '../options.js'
import { validationError } from './validation.js'

declare module 'fastify' {
  interface FastifyRequest {
    /** In a request to the plugin's own routes: the account that it is about; null until that is known. Otherwise undefined. */
    creditsUserId?: string | null
    /**
     * In a request to the plugin's own routes: the budget that `identify` binds it to, otherwise the one that it names. Null
     * if there is neither, and until that is known. Undefined on other routes.
     */
    creditsBudget?: string | null
  }
}

/** The account that a request is about, and its budget: the one that it is bound to, otherwise the one that it names. */
export interface Payer {
  userId: string
  budget: string | undefined
}

/** What a request itself says about its payer. */
interface Named {
  user_id?: string
  budget?: string
}

/**
 * Returns a preHandler that sets `request.creditsUserId` and `request.creditsBudget`. With `identify`, these are what it
 * returns, and what the request names must be the same. Without it, what the request names counts, or the default user.
 * `part` is the part of the request that has the names. Throws UnidentifiedError, ForbiddenError or InvalidIdentityError.
 */
export function resolvePayer (
  part: 'body' | 'query', { identify, defaultUser }: Pick<FastifyAiCreditsOptions, 'identify' | 'defaultUser'>
): preHandlerAsyncHookHandler {
  return async request => {
    const named = request[part] as Named
    const { userId, budget } = identify === undefined
      ? { userId: named.user_id ?? defaultUser!, budget: named.budget }
      : checkedPayer(named, await identify(request), part)
    request.creditsUserId = userId
    request.creditsBudget = budget ?? null
  }
}

/**
 * Returns the account and the budget that `who` returns for a request that names neither. Throws UnidentifiedError or
 * InvalidIdentityError.
 */
export async function payerBehind (
  request: FastifyRequest, who: NonNullable<FastifyAiCreditsOptions['identify']>
): Promise<Payer> {
  return checkedPayer({}, await who(request), 'request')
}

/**
 * Returns the budget in which a request counts: the one that it is bound to, otherwise the one that is named for it. Throws
 * ForbiddenError if these differ.
 */
export function ownBudget (bound: string | undefined, named: string | undefined): string | undefined {
  if (bound !== undefined && named !== undefined && named !== bound) {
    throw new ForbiddenError('The request names a budget that is not its own')
  }
  return bound ?? named
}

/** Returns the account that `resolvePayer` has set. */
export function accountOf (request: FastifyRequest): string {
  return request.creditsUserId!
}

/** Returns the budget that `resolvePayer` has set. */
export function budgetOf (request: FastifyRequest): string | undefined {
  return request.creditsBudget ?? undefined
}

function checkedPayer (named: Named, identity: Identity, part: string): Payer {
  if (isNobody(identity)) throw new UnidentifiedError()
  if (isTrusted(identity)) {
    if (named.user_id === undefined) throw validationError(part === 'query' ? 'querystring' : part, 'user_id', 'is required')
    return { userId: named.user_id, budget: named.budget }
  }
  const { userId, budget } = checkedIdentity(identity)
  if (named.user_id !== undefined && named.user_id !== userId) throw new ForbiddenError()
  return { userId, budget: ownBudget(budget, named.budget) }
}

function isNobody (identity: Identity): identity is null | undefined {
  if (typeof identity !== 'object' || identity === null) return isMissing(identity) || identity === ''
  return 'userId' in identity && (isMissing(identity.userId) || identity.userId === '')
}

// With a user or a budget it is unclear what the host means.
function isTrusted (identity: unknown): identity is { any: true } {
  const { any, userId, budget } = identity as Record<string, unknown>
  return typeof identity === 'object' && any === true && isMissing(userId) && isMissing(budget)
}

function isMissing (value: unknown): value is null | undefined {
  return value === undefined || value === null
}

// The ledger checks the rest of the user id, as of every call.
const identityProblem = compile(Type.Object(
  { userId: Id, budget: Type.Optional(ChargedBudget) }, { additionalProperties: false }))

// A misspelt `budget` is refused, because the request would be bound to none.
function checkedIdentity (identity: unknown): Payer {
  if (typeof identity === 'string') return { userId: identity, budget: undefined }
  if (typeof identity !== 'object') throw new InvalidIdentityError(typeof identity)
  const { budget, ...rest } = identity as Payer
  // The host meant to bind the request, and did not find to what.
  if ('budget' in identity! && budget === undefined) throw new InvalidIdentityError('an object in which budget is undefined: null stands for none')
  const given = { ...rest, budget: budget ?? undefined }
  const problem = identityProblem(given)
  if (problem !== undefined) throw new InvalidIdentityError(`an object in which ${problem.field} ${problem.problem}`)
  return given
}
