import type { Call } from '../context.js'
import { resolveUserId } from '../input/check.js'
import { balanceOf, type Balance } from '../posting/balance.js'
import { functionCall } from '../posting/function-call.js'

const BALANCE = functionCall('ai_credit_balance', ['varchar', 'jsonb', 'integer'])

/** Returns the balance of an account. Creates the account if it does not exist. See Credits. */
export async function balance ({ postings, options, allowance, deadline }: Call, userId?: string): Promise<Balance> {
  const account = resolveUserId(userId, options.defaultUser)
  return balanceOf(await postings.attempt({
    userId: account,
    statement: {
      name: 'ai_credit_balance',
      text: BALANCE,
      values: lockTimeout => [account, allowance, lockTimeout],
      repeatable: true
    }
  }, deadline))
}
