import { InvalidInputError } from '../errors.js'
import { allowanceProblem, type RecurringAllowance } from '../options.js'
import { balanceOf } from './balance.js'
import type { Context } from './context.js'
import { checkClient, overdraftProblem, resolveUserId } from './input.js'
import type { AllowanceTerms, ClientInput, OverdraftTerms } from './types.js'
import { functionCall } from './function-call.js'
import { judge } from './verdict.js'

const SET_ALLOWANCE = functionCall('ai_credit_set_allowance', ['varchar', 'jsonb', 'jsonb', 'integer'])

const SET_OVERDRAFT = functionCall('ai_credit_set_overdraft', ['varchar', 'bigint', 'jsonb', 'integer'])

/** Gives one account an allowance of its own. */
export async function setAllowance (
  { postings, options, allowance }: Context, userId: string | undefined, plan: RecurringAllowance | null,
  input: ClientInput = {}
): Promise<AllowanceTerms> {
  const account = resolveUserId(userId, options.defaultUser)
  const problem = plan === null ? undefined : allowanceProblem(plan)
  if (problem !== undefined) throw new InvalidInputError(`allowance${problem.field && `/${problem.field}`}`, problem.problem)
  const json = plan && JSON.stringify(plan) // now: the caller's object may change before the statement is sent
  const row = await postings.post({
    userId: account,
    statement: {
      name: 'ai_credit_set_allowance',
      text: SET_ALLOWANCE,
      values: lockTimeout => [account, json, allowance, lockTimeout],
      repeatable: true
    }
  }, checkClient(input).client)
  const renewsAt = row.renews_at === null ? null : new Date(row.renews_at)
  return { userId: account, allowance: plan, renewsAt, balance: balanceOf(row) }
}

/** Lets one account go below zero, to a limit. */
export async function setOverdraft (
  { postings, options, allowance }: Context, userId: string | undefined, overdraft: number, input: ClientInput = {}
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
  }, checkClient(input).client)
  judge(row, { credits: overdraft })
  return { userId: account, overdraft, balance: balanceOf(row) }
}
