import { balanceOf } from './balance.js'
import type { Context } from './context.js'
import { checkStatement, resolveUserId } from './input.js'
import type { Metadata } from './metadata.js'
import type { Usage } from './prices/types.js'
import type { Statement, StatementEntry, StatementInput } from './types.js'
import { functionCall } from './function-call.js'

const STATEMENT = functionCall('ai_credit_statement', [
  'varchar', 'timestamptz', 'timestamptz', 'bigint', 'integer', 'jsonb', 'integer'
])

/** An entry as the database returns it; see ai_credit_statement. */
type Row = [
  seq: number, kind: StatementEntry['kind'], at: string, amount: number, total: number, used: number, held: number,
  id: string | null, reference: string | null, operation: string | null, metadata: Metadata | null, reason: string | null,
  details: StatementEntry['details'] | null, priceVersion: string | null, usage: Usage | null
]

/** A page of every change of an account, in order. */
export async function statement (
  { postings, options, allowance }: Context, userId?: string, input: StatementInput = {}
): Promise<Statement> {
  const account = resolveUserId(userId, options.defaultUser)
  const { from, to, limit = options.historyLimit, cursor = '-1', client } = checkStatement(input)
  const row = await postings.attempt({
    userId: account,
    statement: {
      name: 'ai_credit_statement',
      text: STATEMENT,
      values: lockTimeout => [account, instant(from), instant(to), cursor, limit + 1, allowance, lockTimeout],
      repeatable: true
    }
  }, client)
  const rows: Row[] = JSON.parse(row.entries)
  const shown = rows.slice(0, limit)
  return { entries: shown.map(entry), cursor: rows.length > limit ? String(shown.at(-1)![0]) : null }
}

function instant (time: Date | string | undefined) {
  return time === undefined ? null : new Date(time).toISOString()
}

function entry ([
  seq, kind, at, amount, total, used, held, id, referenceId, operation, metadata, reason, details, priceVersion, usage
]: Row): StatementEntry {
  const cause = { id, referenceId, operation, metadata, reason, details, priceVersion, usage }
  return {
    seq,
    kind,
    at: new Date(at),
    amount,
    balance: balanceOf({ total, used, held }),
    ...Object.fromEntries(Object.entries(cause).filter(([, value]) => value !== null))
  }
}
