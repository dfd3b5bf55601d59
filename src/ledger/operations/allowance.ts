import { InvalidInputError } from '../../errors.js'
import type { Call } from '../context.js'
import { allowanceProblem, type RecurringAllowance } from '../input/allowance.js'
import { checkClient, resolveUserId, type ClientInput } from '../input/check.js'
import { balanceOf, type Balance } from '../posting/balance.js'
import { functionCall } from '../posting/function-call.js'

/** The result of `setAllowance`. */
export interface AllowanceTerms {
  userId: string
  /** The allowance from the next renewal on, or from now on if no period was running; `null`: none. */
  allowance: RecurringAllowance | null
  /** When the running period ends; `null`: no period is running. */
  renewsAt: Date | null
  balance: Balance
}

const SET_ALLOWANCE = functionCall('ai_credit_set_allowance', ['varchar', 'jsonb', 'jsonb', 'integer'])

/** Sets the allowance of one account. `plan`: the new allowance; null: none. See Credits. */
export async function setAllowance (
  { postings, options, allowance, deadline }: Call, userId: string | undefined, plan: RecurringAllowance | null,
  input: ClientInput = {}
): Promise<AllowanceTerms> {
  const account = resolveUserId(userId, options.defaultUser)
  const problem = plan === null ? undefined : allowanceProblem(plan)
  if (problem !== undefined) throw new InvalidInputError(`allowance${problem.field && `/${problem.field}`}`, problem.problem)
  const json = plan && JSON.stringify(plan) // at once, because the caller may change the object before the statement is sent
  const row = await postings.post({
    userId: account,
    statement: {
      name: 'ai_credit_set_allowance',
      text: SET_ALLOWANCE,
      values: lockTimeout => [account, json, allowance, lockTimeout],
      repeatable: true
    }
  }, deadline, checkClient(input).client)
  const renewsAt = row.renews_at === null ? null : new Date(row.renews_at)
  return { userId: account, allowance: plan, renewsAt, balance: balanceOf(row) }
}
