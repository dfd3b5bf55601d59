import { Type } from '@sinclair/typebox'
import type { Context } from '../context.js'
import { checker, resolveUserId } from '../input/check.js'
import { Callable, Limit } from '../input/fields.js'
import { functionCall } from '../posting/function-call.js'
import { allAccounts } from './all-accounts.js'

/** The input of `reconcile`. */
export interface ReconcileInput {
  /** How many accounts one statement reads: from 1 to 100000. Default: 1000. */
  batch?: number
  /** Called after each batch, with the number of accounts checked and of differences found until then. */
  onProgress?: (progress: { accounts: number, differences: number }) => void
}

/** A difference between an account and the sum of its rows. */
export interface Difference {
  userId: string
  /**
   * The rows that do not add up: `records`, `dailyUsage`, `holds`, `grants`, `entries`, or of a budget its name with what is wrong:
   * `budget team:ml month used`, `budget team:ml held`, `budget team:ml dailyUsage`.
   */
  identity: string
  /** The value in the account, or in the budget; of a budget's daily usage, the sum of the budget's usage records. */
  expected: number
  /** The sum of the rows; for `entries`, their number. */
  actual: number
}

/** The result of `reconcile`. */
export interface Reconciliation {
  /** Whether there are no differences. */
  ok: boolean
  /** How many accounts were checked. */
  accounts: number
  differences: Difference[]
}

const check = checker<ReconcileInput>({
  batch: Type.Optional(Limit),
  onProgress: Type.Optional(Callable)
})

const RECONCILE = functionCall('ai_credit_reconcile', ['varchar', 'varchar[]'])

const DEFAULT_BATCH = 1000

/** The identities that must hold for each account: the columns with the account's value and with the sum of its rows. */
const identities: Array<[name: string, expected: string, actual: string]> = [
  ['records', 'spent', 'recorded'],
  ['dailyUsage', 'spent', 'summed'],
  ['holds', 'held', 'holding'],
  ['grants', 'granted', 'covered'],
  ['entries', 'seq', 'entries']
]

/** Checks that accounts agree with their records, daily usage, holds, grants, entries and budgets. See Credits. */
export async function reconcile (
  context: Context, userId?: string, input: ReconcileInput = {}
): Promise<Reconciliation> {
  const { batch = DEFAULT_BATCH, onProgress } = check(input)
  const account = userId === undefined ? null : resolveUserId(userId, null)
  const differences: Difference[] = []
  let accounts = 0
  for await (const userIds of account === null ? allAccounts(context, batch) : [[account]]) {
    const rows = await readAccounts(context, userIds)
    accounts += rows.length
    differences.push(...rows.flatMap(differencesOf))
    onProgress?.({ accounts, differences: differences.length })
  }
  return { ok: differences.length === 0, accounts, differences }
}

async function readAccounts ({ database }: Context, userIds: string[]): Promise<Array<Record<string, any>>> {
  const { accounts } = await database.call(deadline => database.run({
    name: 'ai_credit_reconcile',
    text: RECONCILE,
    values: () => [userIds[0] ?? '', userIds],
    repeatable: true
  }, { deadline, sentAgainBy: 'database' }))
  return JSON.parse(accounts)
}

function differencesOf (row: Record<string, any>): Difference[] {
  const ofAccount = identities
    .filter(([, expected, actual]) => row[expected] !== row[actual])
    .map(([identity, expected, actual]) => ({
      userId: row.user_id, identity, expected: row[expected], actual: row[actual]
    }))
  const ofBudgets: Array<[identity: string, expected: number, actual: number]> = row['budgets']
  return [...ofAccount, ...ofBudgets.map(([identity, expected, actual]) => ({ userId: row.user_id, identity, expected, actual }))]
}
