import { InvalidInputError } from '../errors.js'
import { balanceOf } from './balance.js'
import type { Context } from './context.js'
import { checkRefund, resolveUserId, rowId } from './input.js'
import type { Refund, RefundInput } from './types.js'
import { judge } from './verdict.js'
import { functionCall } from './function-call.js'

const REFUND = functionCall('ai_credit_refund', [
  'bigint', 'varchar', 'varchar', 'bigint', 'varchar', 'varchar', 'jsonb', 'varchar', 'integer'
])

/** Gives spent credits back. */
export async function refund ({ postings, options, allowance }: Context, input: RefundInput): Promise<Refund> {
  const {
    usageId, deductKey = null, credits = null, reason = null, idempotencyKey = null, client, ...rest
  } = checkRefund(input)
  if ((usageId === undefined) === (deductKey === null)) {
    throw new InvalidInputError('usageId', 'or deductKey is required, and not both')
  }
  // An id tells the account, a key is one account's own.
  const userId = usageId === undefined ? resolveUserId(rest.userId, options.defaultUser) : rest.userId ?? null
  const id = usageId === undefined ? null : rowId(usageId, 'usage record')
  const row = await postings.post({
    userId,
    statement: {
      name: 'ai_credit_refund',
      text: REFUND,
      values: lockTimeout => [
        id, userId, deductKey, credits, reason, idempotencyKey, allowance, options.timeZone, lockTimeout
      ],
      repeatable: idempotencyKey !== null
    }
  }, client)
  const replayed = judge(row, { what: 'usage record' })
  return {
    id: String(row.record_id),
    usageId: String(row.usage_id),
    userId: row.user_id,
    credits: Number(row.credits),
    balance: balanceOf(row),
    replayed
  }
}
