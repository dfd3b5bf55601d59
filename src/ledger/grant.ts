import { balanceOf } from './balance.js'
import type { Context } from './context.js'
import { SETTLED } from './database.js'
import { checkGrant, checkRevoke, resolveUserId, rowId } from './input.js'
import type { Grant, GrantInput, Revocation, RevokeInput } from './types.js'
import { judge } from './verdict.js'

const DEFAULT_PRIORITY = 50

/** Adds credits to an account. */
export async function grant ({ database, events, options, allowance }: Context, input: GrantInput): Promise<Grant> {
  const { credits, reason = null, priority = DEFAULT_PRIORITY, idempotencyKey = null, client, ...rest } = checkGrant(input)
  const userId = resolveUserId(rest.userId, options.defaultUser)
  const expiresAt = rest.expiresAt === undefined ? null : new Date(rest.expiresAt)
  const row = await database.row({
    name: 'ai_credit_grant',
    text: `select *, ${SETTLED} from ai_credit_grant($1, $2, $3, $4, $5, $6, $7, $8)`,
    values: lockTimeout => [
      userId, credits, reason, expiresAt?.toISOString() ?? 'infinity', priority, idempotencyKey, allowance, lockTimeout
    ],
    repeatable: idempotencyKey !== null
  }, client)
  if (client === undefined) events.grant(row, { userId, id: String(row.id), credits, reason, expiresAt, priority })
  const replayed = judge(row, { credits })
  return { id: String(row.id), userId, credits, expiresAt, priority, balance: balanceOf(row), replayed }
}

/** Takes back what is unspent of a grant. */
export async function revoke (
  { database, events, allowance }: Context, grantId: string, input: RevokeInput = {}
): Promise<Revocation> {
  const { userId = null, client } = checkRevoke(input)
  const id = rowId(grantId, 'grant')
  const row = await database.row({
    name: 'ai_credit_revoke',
    text: `select *, ${SETTLED} from ai_credit_revoke($1, $2, $3, $4)`,
    values: lockTimeout => [id, userId, allowance, lockTimeout],
    repeatable: true
  }, client)
  if (client === undefined) events.revoke(row)
  const replayed = judge(row, { what: 'grant' })
  return { id: grantId, userId: row.user_id, credits: Number(row.credits), balance: balanceOf(row), replayed }
}
