import type { Call } from '../context.js'
import { checker, ofAccount, rowId, type ClientInput } from '../input/check.js'
import { Ttl } from '../input/fields.js'
import { balanceOf, type Balance } from '../posting/balance.js'
import { functionCall } from '../posting/function-call.js'
import { throwRefusal } from '../posting/verdict.js'
import { HOLD } from './of-hold.js'
import { withOwner } from './owner.js'

/** The input of `extend`. */
export interface ExtendInput extends ClientInput {
  /** The hold's account. If the hold belongs to another account, throws NotFoundError. Default: not checked. */
  userId?: string
  /** Milliseconds from now until the hold lapses: from 1 second to 24 hours. A hold never lapses earlier than before. */
  ttl: number
}

/** The result of `extend`. */
export interface Extension {
  /** The hold. */
  id: string
  userId: string
  /** Credits that the hold still has. */
  credits: number
  /** The new time at which the hold lapses. */
  expiresAt: Date
  balance: Balance
}

const check = checker<ExtendInput>({ ...ofAccount, ttl: Ttl })

const EXTEND = functionCall('ai_credit_extend', ['bigint', 'varchar', 'integer', 'jsonb', 'integer'])

/** Moves the time at which an open hold lapses to later. See Credits. */
export async function extend (
  call: Call, holdId: string, input: ExtendInput
): Promise<Extension> {
  const { userId = null, ttl, client } = check(input)
  const id = rowId(holdId, HOLD)
  const row = await withOwner(call, { what: HOLD, id, userId, client }, account => call.postings.post({
    userId: account,
    statement: {
      name: 'ai_credit_extend',
      text: EXTEND,
      values: lockTimeout => [id, account, ttl, call.allowance, lockTimeout],
      repeatable: true
    }
  }, call.deadline, client))
  throwRefusal(row, { what: HOLD })
  return {
    id: holdId,
    userId: row.user_id,
    credits: Number(row.credits),
    expiresAt: new Date(row.expires_at),
    balance: balanceOf(row)
  }
}
