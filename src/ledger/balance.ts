import type { Context } from './context.js'
import { resolveUserId } from './input.js'
import type { Balance } from './types.js'
import { functionCall } from './function-call.js'

const BALANCE = functionCall('ai_credit_balance', ['varchar', 'jsonb', 'integer'])

/** The balance of an account, which is created if it is not there. */
export async function balance ({ postings, options, allowance }: Context, userId?: string): Promise<Balance> {
  const account = resolveUserId(userId, options.defaultUser)
  return balanceOf(await postings.attempt({
    userId: account,
    statement: {
      name: 'ai_credit_balance',
      text: BALANCE,
      values: lockTimeout => [account, allowance, lockTimeout],
      repeatable: true
    }
  }))
}

/** The balance in a row of the ledger's functions. `pg` hands bigint over as a string, unless the host says otherwise. */
export function balanceOf (row: { total: unknown, used: unknown, held: unknown }): Balance {
  const total = Number(row.total)
  const used = Number(row.used)
  const held = Number(row.held)
  return { available: total - used - held, total, used, held }
}
