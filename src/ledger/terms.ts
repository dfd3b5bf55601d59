import { InvalidInputError } from '../errors.js'
import { allowanceProblem, type RecurringAllowance } from '../options.js'
import { balanceOf } from './balance.js'
import type { Context } from './context.js'
import { SETTLED } from './database.js'
import { checkClient, overdraftProblem, resolveUserId } from './input.js'
import type { AllowanceTerms, ClientInput, OverdraftTerms } from './types.js'

/** Gives one account an allowance of its own. */
export async function setAllowance (
  { database, options, allowance }: Context, userId: string | undefined, plan: RecurringAllowance | null,
  input: ClientInput = {}
): Promise<AllowanceTerms> {
  const account = resolveUserId(userId, options.defaultUser)
  const problem = plan === null ? undefined : allowanceProblem(plan)
  if (problem !== undefined) throw new InvalidInputError(`allowance${problem.field && `/${problem.field}`}`, problem.problem)
  const row = await database.row({
    name: 'ai_credit_set_allowance',
    text: `select *, ${SETTLED} from ai_credit_set_allowance($1, $2, $3, $4)`,
    values: lockTimeout => [account, plan && JSON.stringify(plan), allowance, lockTimeout],
    repeatable: true
  }, checkClient(input).client)
  const renewsAt = row.renews_at === null ? null : new Date(row.renews_at)
  return { userId: account, allowance: plan, renewsAt, balance: balanceOf(row) }
}

/** Lets one account go below zero, to a limit. */
export async function setOverdraft (
  { database, options, allowance }: Context, userId: string | undefined, overdraft: number, input: ClientInput = {}
): Promise<OverdraftTerms> {
  const account = resolveUserId(userId, options.defaultUser)
  const problem = overdraftProblem(overdraft)
  if (problem !== undefined) throw new InvalidInputError('credits', problem.problem)
  const row = await database.row({
    name: 'ai_credit_set_overdraft',
    text: `select *, ${SETTLED} from ai_credit_set_overdraft($1, $2, $3, $4)`,
    values: lockTimeout => [account, overdraft, allowance, lockTimeout],
    repeatable: true
  }, checkClient(input).client)
  return { userId: account, overdraft, balance: balanceOf(row) }
}
