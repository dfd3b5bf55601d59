import { balanceOf } from './balance.js'
import type { Context } from './context.js'
import { checkGrant, checkRevoke, resolveUserId, rowId } from './input.js'
import type { Grant, GrantInput, Revocation, RevokeInput } from './types.js'
import { judge } from './verdict.js'
import { functionCall } from './function-call.js'

const GRANT = functionCall('ai_credit_grant', [
  'varchar', 'bigint', 'varchar', 'timestamptz', 'integer', 'varchar', 'jsonb', 'integer'
])

const REVOKE = functionCall('ai_credit_revoke', ['bigint', 'varchar', 'jsonb', 'integer'])

const DEFAULT_PRIORITY = 50

/** Adds credits to an account. */
export async function grant ({ postings, events, options, allowance }: Context, input: GrantInput): Promise<Grant> {
  const { credits, reason = null, priority = DEFAULT_PRIORITY, idempotencyKey = null, client, ...rest } = checkGrant(input)
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
  }, client)
  if (client === undefined) events.grant(row, { userId, id: String(row.id), credits, reason, expiresAt, priority })
  const replayed = judge(row, { credits })
  const expires = row.expires_at === null ? null : new Date(row.expires_at) // a replay has that of the first request
  return { id: String(row.id), userId, credits, expiresAt: expires, priority, balance: balanceOf(row), replayed }
}

/** Takes back what is unspent of a grant. */
export async function revoke (
  { postings, events, allowance }: Context, grantId: string, input: RevokeInput = {}
): Promise<Revocation> {
  const { userId = null, client } = checkRevoke(input)
  const id = rowId(grantId, 'grant')
  const row = await postings.post({
    userId,
    statement: {
      name: 'ai_credit_revoke',
      text: REVOKE,
      values: lockTimeout => [id, userId, allowance, lockTimeout],
      repeatable: true
    }
  }, client)
  if (client === undefined) events.revoke(row)
  const replayed = judge(row, { what: 'grant' })
  return { id: grantId, userId: row.user_id, credits: Number(row.credits), balance: balanceOf(row), replayed }
}
