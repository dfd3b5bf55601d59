import { Type } from '@sinclair/typebox'
import type { Call } from '../context.js'
import { checker, resolveUserId } from '../input/check.js'
import { decodeCursor, encodeCursor } from '../input/cursor.js'
import { Budget, Cursor, Days, Limit } from '../input/fields.js'
import type { Metadata } from '../input/metadata.js'
import { balanceOf, type Balance } from '../posting/balance.js'
import { functionCall } from '../posting/function-call.js'

/** The input of `history`. */
export interface HistoryInput {
  /** Days of history, including today: from 1 to 36500. Default: the option `historyDays`. */
  days?: number
  /** Entries on one page: from 1 to 100000. Default: the option `historyLimit`. */
  limit?: number
  /** The cursor of the page before. Default: none, the first page. */
  cursor?: string
  /**
   * Returns only what was spent in this budget and below it, also after it was removed. A name without spending has no entries.
   * Default: what the account has spent.
   */
  budget?: string
}

/** The daily usage for one operation and equal metadata. */
export interface HistoryEntry {
  /** The day, `YYYY-MM-DD`, in the ledger's time zone. */
  date: string
  /** Credits spent. */
  used: number
  operation: string
  metadata: Metadata
}

/** A page of history. The newest day comes first. Within a day, the largest entry comes first, then the order is by operation. */
export interface History {
  entries: HistoryEntry[]
  /** The cursor of this page, to get the next one; `null` on the last page. */
  cursor: string | null
}

const check = checker<HistoryInput>({
  days: Type.Optional(Days),
  limit: Type.Optional(Limit),
  cursor: Type.Optional(Cursor),
  budget: Type.Optional(Budget)
})

const HISTORY = functionCall('ai_credit_history', ['varchar', 'jsonb', 'integer', 'integer', 'integer', 'jsonb', 'varchar'])

/** An entry in the form that the database returns. `hash`: of the metadata. */
type Row = [day: string, used: number, operation: string, metadata: Metadata, hash: string]

/** Returns a page of daily usage, and the balance at the same moment. Creates the account if it does not exist. See Credits. */
export async function history (
  { postings, options, allowance, deadline }: Call, userId?: string, input: HistoryInput = {}
): Promise<History & { balance: Balance }> {
  const account = resolveUserId(userId, options.defaultUser)
  const { days = options.historyDays, limit = options.historyLimit, cursor, budget = null } = check(input)
  const after = decodeCursor(cursor)
  const row = await postings.attempt({
    userId: account,
    statement: {
      name: 'ai_credit_history',
      text: HISTORY,
      values: lockTimeout => [
        account, allowance, lockTimeout, days, limit + 1,
        after && JSON.stringify([after.day, after.used, after.operation, after.hash]), budget
      ],
      repeatable: true
    }
  }, deadline)
  return { balance: balanceOf(row), ...page(JSON.parse(row.entries), limit) }
}

// The statement returns up to one row more than the limit. If it does, there is another page.
function page (rows: Row[], limit: number): History {
  const shown = rows.slice(0, limit)
  const [day, used, operation, , hash] = rows.length > limit ? shown.at(-1)! : []
  return {
    entries: shown.map(([date, used, operation, metadata]) => ({ date, used, operation, metadata })),
    cursor: day === undefined ? null : encodeCursor({ day, used: used!, operation: operation!, hash: hash! })
  }
}
