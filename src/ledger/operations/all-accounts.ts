import type { Context } from '../context.js'
import { functionCall } from '../posting/function-call.js'

const ACCOUNTS = functionCall('ai_credit_accounts', ['varchar', 'integer'])

/**
 * Yields the names of all accounts in order, at most `limit` at a time. On Citus each part is of accounts that live on one node. If
 * there are no accounts, or none more after as many as `limit`, the last part has none.
 */
export async function * allAccounts ({ database }: Context, limit: number): AsyncGenerator<string[]> {
  for (let after: string | null = null; ;) {
    const { accounts }: { accounts: string } = await database.call(deadline => database.run({
      name: 'ai_credit_accounts',
      text: ACCOUNTS,
      values: () => [after, limit],
      repeatable: true
    }, { deadline, sentAgainBy: 'database' }))
    const page: string[] = JSON.parse(accounts)
    yield * byNode(page, userId => database.nodeOf(userId))
    if (page.length < limit) return
    after = page.at(-1)!
  }
}

function byNode (userIds: string[], nodeOf: (userId: string) => number): string[][] {
  if (userIds.length === 0) return [[]]
  const parts = new Map<number, string[]>()
  for (const userId of userIds) {
    const node = nodeOf(userId)
    const part = parts.get(node)
    if (part === undefined) parts.set(node, [userId])
    else part.push(userId)
  }
  return [...parts.values()]
}
