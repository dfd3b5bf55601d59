import { InvalidInputError } from '../../errors.js'
import type { Call } from '../context.js'
import { checkClient, resolveUserId, type ClientInput } from '../input/check.js'
import { compile, CreditsOrNone } from '../input/fields.js'
import { balanceOf, type Balance } from '../posting/balance.js'
import { functionCall } from '../posting/function-call.js'
import { throwRefusal } from '../posting/verdict.js'

/** The result of `setOverdraft`. */
export interface OverdraftTerms {
  userId: string
  /** How many credits below zero `available` may go. */
  overdraft: number
  balance: Balance
}

const overdraftProblem = compile(CreditsOrNone)

const SET_OVERDRAFT = functionCall('ai_credit_set_overdraft', ['varchar', 'bigint', 'jsonb', 'integer'])

/** Allows the available credits of one account to go below zero, down to `-overdraft`. See Credits. */
export async function setOverdraft (
  { postings, options, allowance, deadline }: Call, userId: string | undefined, overdraft: number, input: ClientInput = {}
): Promise<OverdraftTerms> {
  const account = resolveUserId(userId, options.defaultUser)
  const problem = overdraftProblem(overdraft)
  if (problem !== undefined) throw new InvalidInputError('credits', problem.problem)
  const row = await postings.post({
    userId: account,
    statement: {
      name: 'ai_credit_set_overdraft',
      text: SET_OVERDRAFT,
      values: lockTimeout => [account, overdraft, allowance, lockTimeout],
      repeatable: true
    }
  }, deadline, checkClient(input).client)
  throwRefusal(row, { credits: overdraft })
  return { userId: account, overdraft, balance: balanceOf(row) }
}
