import type { Context } from './context.js'
import { checkReconcile, resolveUserId } from './input.js'
import type { Difference, Reconciliation, ReconcileInput } from './types.js'
import { functionCall } from './function-call.js'

const RECONCILE = functionCall('ai_credit_reconcile', ['varchar', 'varchar', 'integer'])

const DEFAULT_BATCH = 1000

/** One identity of rule: what the account says, and what its rows add up to. */
const identities: Array<[name: string, expected: string, actual: string]> = [
  ['records', 'spent', 'recorded'],
  ['dailyUsage', 'spent', 'summed'],
  ['holds', 'held', 'holding'],
  ['grants', 'granted', 'covered'],
  ['entries', 'seq', 'entries']
]

/** Checks that accounts agree with their records, daily usage, holds, grants and entries. */
export async function reconcile (
  context: Context, userId?: string, input: ReconcileInput = {}
): Promise<Reconciliation> {
  const { batch = DEFAULT_BATCH, onProgress } = checkReconcile(input)
  const account = userId === undefined ? null : resolveUserId(userId, null)
  const differences: Difference[] = []
  let accounts = 0
  for (let after: string | null = null; ;) {
    const rows: any[] = await readBatch(context, account, after, batch)
    accounts += rows.length
    differences.push(...rows.flatMap(differencesOf))
    onProgress?.({ accounts, differences: differences.length })
    if (account !== null || rows.length < batch) break
    after = rows.at(-1).user_id
  }
  return { ok: differences.length === 0, accounts, differences }
}

async function readBatch ({ database }: Context, userId: string | null, after: string | null, limit: number) {
  const { accounts } = await database.row({
    name: 'ai_credit_reconcile',
    text: RECONCILE,
    values: () => [userId, after, limit],
    repeatable: true
  })
  return JSON.parse(accounts)
}

function differencesOf (row: Record<string, any>): Difference[] {
  return identities
    .filter(([, expected, actual]) => row[expected] !== row[actual])
    .map(([identity, expected, actual]) => ({
      userId: row.user_id, identity, expected: row[expected], actual: row[actual]
    }))
}
