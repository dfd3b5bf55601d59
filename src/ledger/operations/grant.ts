import { Type } from '@sinclair/typebox'
import type { Call } from '../context.js'
import { checker, ofAccount, resolveUserId, type ClientInput } from '../input/check.js'
import { Credits, IdempotencyKey, Priority, Reason, Time } from '../input/fields.js'
import { balanceOf, type Balance } from '../posting/balance.js'
import { functionCall } from '../posting/function-call.js'
import { isReplay, throwRefusal } from '../posting/verdict.js'

/** The input of `grant`. */
export interface GrantInput extends ClientInput {
  /** The account. Default: the default user. */
  userId?: string
  /** Credits to add: a whole number from 1 to 2^53 - 1. The new total must not be larger than 2^53 - 1 either. */
  credits: number
  /** The reason, which the statement shows: 1 to 255 characters. Default: none. */
  reason?: string
  /** When the grant expires: a Date or an ISO 8601 time. Its unspent credits then leave the total. Default: never. */
  expiresAt?: Date | string
  /**
   * A whole number from 0 to 100. The grant with the lowest number burns first; then the one that expires earliest; then the
   * oldest. Default: 50.
   */
  priority?: number
  /**
   * Names the request: 1 to 255 characters. If the request is repeated with the same key, `grant` returns the first result
   * again, and grants nothing more.
   */
  idempotencyKey?: string
}

/** The result of `grant`. */
export interface Grant {
  /** The grant, for `revoke`. */
  id: string
  userId: string
  credits: number
  /** When it expires; `null`: never. */
  expiresAt: Date | null
  priority: number
  /** The balance after the grant. In a replay, the balance after the original. */
  balance: Balance
  /** Whether this is a replay: the same request was made before with this key, and nothing was granted now. */
  replayed: boolean
}

const check = checker<GrantInput>({
  ...ofAccount,
  credits: Credits,
  reason: Type.Optional(Reason),
  expiresAt: Type.Optional(Time),
  priority: Type.Optional(Priority),
  idempotencyKey: Type.Optional(IdempotencyKey)
})

const GRANT = functionCall('ai_credit_grant', [
  'varchar', 'bigint', 'varchar', 'timestamptz', 'integer', 'varchar', 'jsonb', 'integer'
])

const DEFAULT_PRIORITY = 50

/** Adds credits to an account. See Credits. */
export async function grant (
  { postings, events, options, allowance, deadline }: Call, input: GrantInput
): Promise<Grant> {
  const { credits, reason = null, priority = DEFAULT_PRIORITY, idempotencyKey = null, client, ...rest } = check(input)
  const userId = resolveUserId(rest.userId, options.defaultUser)
  const expiresAt = rest.expiresAt === undefined ? null : new Date(rest.expiresAt)
  const row = await postings.post({
    userId,
    statement: {
      name: 'ai_credit_grant',
      text: GRANT,
      values: lockTimeout => [
        userId, credits, reason, expiresAt?.toISOString() ?? 'infinity', priority, idempotencyKey, allowance, lockTimeout
      ],
      repeatable: idempotencyKey !== null
    }
  }, deadline, client)
  if (client === undefined) events.grantReturned(row, { userId, id: String(row.id), credits, reason, expiresAt, priority })
  throwRefusal(row, { credits })
  const expires = row.expires_at === null ? null : new Date(row.expires_at) // in a replay, the time of the first request
  return { id: String(row.id), userId, credits, expiresAt: expires, priority, balance: balanceOf(row), replayed: isReplay(row) }
}
