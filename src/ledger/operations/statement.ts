import { Type } from '@sinclair/typebox'
import type { Call } from '../context.js'
import type { RenewalDetails } from '../events/types.js'
import { checker, Client, resolveUserId, type ClientInput } from '../input/check.js'
import { Limit, StatementCursor, Time } from '../input/fields.js'
import type { Metadata } from '../input/metadata.js'
import { balanceOf, type Balance } from '../posting/balance.js'
import { functionCall } from '../posting/function-call.js'
import type { Usage } from '../prices/types.js'

/** The input of `statement`. */
export interface StatementInput extends ClientInput {
  /** Returns entries from this time on: a Date or an ISO 8601 time. Default: from the opening. */
  from?: Date | string
  /** Returns entries before this time: a Date or an ISO 8601 time. Default: up to now. */
  to?: Date | string
  /** Entries on one page: from 1 to 100000. Default: the option `historyLimit`. */
  limit?: number
  /** The cursor of the page before. Default: none, the first page. */
  cursor?: string
}

/** One change of an account. */
export interface StatementEntry {
  /** The place of the change in the account's order. The opening has 0, or after `prune` the place of the last pruned change. */
  seq: number
  kind: 'opening' | 'grant' | 'deduct' | 'hold' | 'capture' | 'release' | 'lapse' | 'refund' | 'expiry' | 'renewal' |
    'revoke'
  /** When the change took effect. */
  at: Date
  /** By how many credits it changed `available`. */
  amount: number
  /** The balance after the change. */
  balance: Balance
  /** The usage record, hold or grant that the change created. */
  id?: string
  /** For a capture, release or lapse: the hold. For an expiry or revoke: the grant. For a refund: the usage record refunded. */
  referenceId?: string
  operation?: string
  metadata?: Metadata
  reason?: string
  /** For a charge by usage: the version of the prices. */
  priceVersion?: string
  /** For a charge by usage: the quantities from which the credits were computed. */
  usage?: Usage
  /** For a deduct, hold, capture or refund: the budget in which it counts. Left out if there is none. */
  budget?: string
  /** For a renewal: its effects. */
  details?: RenewalDetails
}

/** A page of an account's changes, oldest first. */
export interface Statement {
  entries: StatementEntry[]
  /** The cursor of this page, to get the next one; `null` on the last page. */
  cursor: string | null
}

const check = checker<StatementInput>({
  from: Type.Optional(Time),
  to: Type.Optional(Time),
  limit: Type.Optional(Limit),
  cursor: Type.Optional(StatementCursor),
  client: Type.Optional(Client)
})

const STATEMENT = functionCall('ai_credit_statement', [
  'varchar', 'timestamptz', 'timestamptz', 'bigint', 'integer', 'jsonb', 'integer'
])

/** An entry in the form that the SQL function ai_credit_statement returns. */
type Row = [
  seq: number, kind: StatementEntry['kind'], at: string, amount: number, total: number, used: number, held: number,
  id: string | null, reference: string | null, operation: string | null, metadata: Metadata | null, reason: string | null,
  details: StatementEntry['details'] | null, priceVersion: string | null, usage: Usage | null,
  budget: string | null
]

/** Returns a page of the changes of an account, oldest first. See Credits. */
export async function statement (
  { postings, options, allowance, deadline }: Call, userId?: string, input: StatementInput = {}
): Promise<Statement> {
  const account = resolveUserId(userId, options.defaultUser)
  const { from, to, limit = options.historyLimit, cursor = '-1', client } = check(input)
  const row = await postings.attempt({
    userId: account,
    statement: {
      name: 'ai_credit_statement',
      text: STATEMENT,
      values: lockTimeout => [account, instant(from), instant(to), cursor, limit + 1, allowance, lockTimeout],
      repeatable: true
    }
  }, deadline, client)
  const rows: Row[] = JSON.parse(row.entries)
  const shown = rows.slice(0, limit)
  return { entries: shown.map(entry), cursor: rows.length > limit ? String(shown.at(-1)![0]) : null }
}

function instant (time: Date | string | undefined) {
  return time === undefined ? null : new Date(time).toISOString()
}

function entry ([
  seq, kind, at, amount, total, used, held, id, referenceId, operation, metadata, reason, details, priceVersion, usage,
  budget
]: Row): StatementEntry {
  const cause = { id, referenceId, operation, metadata, reason, details, priceVersion, usage, budget }
  return {
    seq,
    kind,
    at: new Date(at),
    amount,
    balance: balanceOf({ total, used, held }),
    ...Object.fromEntries(Object.entries(cause).filter(([, value]) => value !== null))
  }
}
