import { balanceOf } from './balance.js'
import type { Context } from './context.js'
import { decodeCursor, encodeCursor } from './cursor.js'
import { checkHistory, resolveUserId } from './input.js'
import type { Metadata } from './metadata.js'
import type { Balance, History, HistoryInput } from './types.js'
import { functionCall } from './function-call.js'

const HISTORY = functionCall('ai_credit_history', [
  'varchar', 'jsonb', 'integer', 'varchar', 'integer', 'integer', 'date', 'bigint', 'varchar', 'bytea'
])

/** An entry as the database returns it: day, used, operation, metadata, hash of the metadata. */
type Row = [string, number, string, Metadata, string]

/** A page of daily usage, and the balance at that moment. The account is created if it is not there. */
export async function history (
  { postings, options, allowance }: Context, userId?: string, input: HistoryInput = {}
): Promise<History & { balance: Balance }> {
  const account = resolveUserId(userId, options.defaultUser)
  const { days = options.historyDays, limit = options.historyLimit, cursor } = checkHistory(input)
  const after = decodeCursor(cursor)
  const row = await postings.attempt({
    userId: account,
    statement: {
      name: 'ai_credit_history',
      text: HISTORY,
      values: lockTimeout => [
        account, allowance, lockTimeout, options.timeZone, days, limit + 1,
        after?.day, after?.used, after?.operation, after && Buffer.from(after.hash, 'hex')
      ],
      repeatable: true
    }
  })
  return { balance: balanceOf(row), ...page(JSON.parse(row.entries), limit) }
}

// One row more than the limit was asked for: it tells that there is another page.
function page (rows: Row[], limit: number): History {
  const shown = rows.slice(0, limit)
  const [day, used, operation, , hash] = rows.length > limit ? shown.at(-1)! : []
  return {
    entries: shown.map(([date, used, operation, metadata]) => ({ date, used, operation, metadata })),
    cursor: day === undefined ? null : encodeCursor({ day, used: used!, operation: operation!, hash: hash! })
  }
}
