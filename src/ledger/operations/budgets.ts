import { Type } from '@sinclair/typebox'
import { InvalidInputError } from '../../errors.js'
import type { BudgetAmounts, BudgetPeriod } from '../budgets/types.js'
import type { Call } from '../context.js'
import { checkClient, checker, resolveUserId, type ClientInput } from '../input/check.js'
import { Budget as BudgetName, BudgetsPerPage, ChargedBudget, compile, CreditsOrNone } from '../input/fields.js'
import { functionCall } from '../posting/function-call.js'
import { throwRefusal } from '../posting/verdict.js'

/** The definition of a budget: the most credits that may be used and held in it, in each period that it names. */
export interface BudgetDefinition extends BudgetAmounts {
  /** The budget that it is within: whatever counts in this one counts there, too. No template. Default: none. */
  within?: string
  /** For each calendar day: a whole number from 0 to 2^53 - 1. Default: no limit. */
  day?: number
  /** For each calendar week: a whole number from 0 to 2^53 - 1. Default: no limit. */
  week?: number
  /** For each calendar month: a whole number from 0 to 2^53 - 1. Default: no limit. */
  month?: number
  /** For all time: a whole number from 0 to 2^53 - 1. Default: no limit. */
  total?: number
}

/** A budget, at the moment of the call. */
export interface Budget {
  budget: string
  /** The budget that it is within; `null`: none. */
  within: string | null
  /** The credits of each limit. */
  limits: BudgetAmounts
  /** What was spent, in the running period of each limit. */
  used: BudgetAmounts
  /** What open holds have set aside. It counts against each limit. */
  held: number
  /** When the running period of each limit ends; `null` for `total`. */
  resetsAt: { day?: Date, week?: Date, month?: Date, total?: null }
}

/** The input of `budgets`. */
export interface BudgetsInput {
  /** Budgets on one page: from 1 to 1000. Default: 100. */
  limit?: number
  /** The cursor of the page before. Default: none, the first page. */
  cursor?: string
  /**
   * Returns this budget and those above it, at most 8, from it upwards: the limits that a charge on it would have to fit. One that
   * does not exist is shown as its template would make it; without a template there are no entries. Not together with `limit` or
   * `cursor`. Default: all budgets of the account.
   */
  path?: string
}

/** A page of an account's budgets, by name. */
export interface Budgets {
  entries: Budget[]
  /** The cursor of this page, to get the next one; `null` on the last page. */
  cursor: string | null
}

const nameProblem = compile(BudgetName)

function checkName (budget: string) {
  const problem = nameProblem(budget)
  if (problem !== undefined) throw new InvalidInputError('budget', problem.problem)
}

/** The fields of a budget's definition. */
export const ofDefinition = {
  within: Type.Optional(ChargedBudget),
  day: Type.Optional(CreditsOrNone),
  week: Type.Optional(CreditsOrNone),
  month: Type.Optional(CreditsOrNone),
  total: Type.Optional(CreditsOrNone)
}

const checkDefinition = checker<BudgetDefinition>(ofDefinition)

const SET_BUDGET = functionCall('ai_credit_set_budget', ['varchar', 'varchar', 'varchar', 'jsonb', 'jsonb', 'integer'])

/** Makes a budget, or replaces its definition. See Credits. */
export async function setBudget (
  { postings, options, allowance, deadline }: Call, userId: string | undefined, budget: string, definition: BudgetDefinition,
  input: ClientInput = {}
): Promise<Budget> {
  const account = resolveUserId(userId, options.defaultUser)
  checkName(budget)
  const { within = null, ...limits } = checkDefinition(definition)
  const row = await postings.post({
    userId: account,
    statement: {
      name: 'ai_credit_set_budget',
      text: SET_BUDGET,
      values: lockTimeout => [account, budget, within, JSON.stringify(limits), allowance, lockTimeout],
      repeatable: true
    }
  }, deadline, checkClient(input).client)
  throwRefusal(row, { what: 'budget' })
  return budgetOf(JSON.parse(row.budget))
}

const REMOVE_BUDGET = functionCall('ai_credit_remove_budget', ['varchar', 'varchar', 'jsonb', 'integer'])

/** Removes a budget. See Credits. */
export async function removeBudget (
  { postings, options, allowance, deadline }: Call, userId: string | undefined, budget: string, input: ClientInput = {}
): Promise<void> {
  const account = resolveUserId(userId, options.defaultUser)
  checkName(budget)
  const row = await postings.post({
    userId: account,
    statement: {
      name: 'ai_credit_remove_budget',
      text: REMOVE_BUDGET,
      values: lockTimeout => [account, budget, allowance, lockTimeout],
      repeatable: false // the second time there is none
    }
  }, deadline, checkClient(input).client)
  throwRefusal(row, { what: 'budget' })
}

const checkPage = checker<BudgetsInput>({
  limit: Type.Optional(BudgetsPerPage), cursor: Type.Optional(BudgetName), path: Type.Optional(ChargedBudget)
})

const LIST_BUDGETS = functionCall('ai_credit_list_budgets', ['varchar', 'varchar', 'varchar', 'integer', 'jsonb', 'integer'])

/** Returns a page of an account's budgets. See Credits. */
export async function budgets (
  { postings, options, allowance, deadline }: Call, userId?: string, input: BudgetsInput = {}
): Promise<Budgets> {
  const account = resolveUserId(userId, options.defaultUser)
  const page = checkPage(input)
  const { limit = 100, cursor = '', path = null } = page
  if (path !== null && (page.limit !== undefined || page.cursor !== undefined)) {
    throw new InvalidInputError('path', 'must not be given together with limit or cursor')
  }
  const row = await postings.attempt({
    userId: account,
    statement: {
      name: 'ai_credit_list_budgets',
      text: LIST_BUDGETS,
      values: lockTimeout => [account, path, cursor, limit + 1, allowance, lockTimeout],
      repeatable: true
    }
  }, deadline)
  const rows: ToldBudget[] = JSON.parse(row.budgets)
  const shown = rows.slice(0, limit)
  return { entries: shown.map(budgetOf), cursor: rows.length > limit ? shown.at(-1)!.budget : null }
}

/** A budget in the form of the SQL function ai_credit_told_budget. */
interface ToldBudget extends Omit<Budget, 'resetsAt'> {
  resetsAt: Partial<Record<BudgetPeriod, string | null>>
}

function budgetOf ({ budget, within, limits, used, held, resetsAt }: ToldBudget): Budget {
  const times = Object.entries(resetsAt).map(([period, time]) => [period, time && new Date(time)])
  return { budget, within, limits, used, held, resetsAt: Object.fromEntries(times) }
}
