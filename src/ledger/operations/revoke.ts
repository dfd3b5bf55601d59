import type { Call } from '../context.js'
import { checker, ofAccount, rowId, type ClientInput } from '../input/check.js'
import { balanceOf, type Balance } from '../posting/balance.js'
import { functionCall } from '../posting/function-call.js'
import { isReplay, throwRefusal } from '../posting/verdict.js'
import { withOwner } from './owner.js'

/** The input of `revoke`. */
export interface RevokeInput extends ClientInput {
  /** The grant's account. If the grant belongs to another account, throws NotFoundError. Default: not checked. */
  userId?: string
}

/** The result of `revoke`. */
export interface Revocation {
  /** The grant. */
  id: string
  userId: string
  /** Credits taken back. */
  credits: number
  /** The balance after the revocation. In a replay, the balance after the original. */
  balance: Balance
  /** Whether this is a replay: the grant had been revoked before, and nothing was taken back now. */
  replayed: boolean
}

const check = checker<RevokeInput>(ofAccount)

const REVOKE = functionCall('ai_credit_revoke', ['bigint', 'varchar', 'jsonb', 'integer'])

/** Takes back the unspent credits of a grant. See Credits. */
export async function revoke (
  call: Call, grantId: string, input: RevokeInput = {}
): Promise<Revocation> {
  const { userId = null, client } = check(input)
  const id = rowId(grantId, 'grant')
  const row = await withOwner(call, { what: 'grant', id, userId, client }, account => call.postings.post({
    userId: account,
    statement: {
      name: 'ai_credit_revoke',
      text: REVOKE,
      values: lockTimeout => [id, account, call.allowance, lockTimeout],
      repeatable: true
    }
  }, call.deadline, client))
  if (client === undefined) call.events.revokeReturned(row)
  throwRefusal(row, { what: 'grant' })
  return { id: grantId, userId: row.user_id, credits: Number(row.credits), balance: balanceOf(row), replayed: isReplay(row) }
}
