import { balanceOf } from './balance.js'
import type { Context } from './context.js'
import { checkDeduct, resolveUserId } from './input.js'
import type { DeductInput, Deduction } from './types.js'
import { judge } from './verdict.js'

/** Spends credits now. */
export async function deduct ({ postings, options, allowance }: Context, input: DeductInput): Promise<Deduction> {
  const { userId: named, credits, operation, metadata = {}, idempotencyKey = null, client } = checkDeduct(input)
  const userId = resolveUserId(named, options.defaultUser)
  const json = JSON.stringify(metadata) // now: the caller's object may change before the statement is sent
  const key = JSON.stringify(idempotencyKey)
  const row = await postings.post({
    userId,
    call: `"deduct",${key},${credits},${JSON.stringify(operation)},${json}`,
    token: idempotencyKey === null ? undefined : `deduct ${key}`,
    statement: {
      name: 'ai_credit_deduct',
      text: 'select verdict, record_id as id, total, used, held from ai_credit_deduct($1, $2, $3, $4, $5, $6, $7, $8)',
      values: lockTimeout => [
        userId, credits, operation, json, idempotencyKey, allowance, options.timeZone, lockTimeout
      ],
      repeatable: idempotencyKey !== null
    }
  }, client)
  const replayed = judge(row, { credits })
  return { id: String(row.id), userId, credits, operation, balance: balanceOf(row), replayed }
}
