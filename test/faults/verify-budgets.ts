import type pg from 'pg'
import type { Ledger } from '../../src/index.js'
import type { Answer, Call } from './journal.js'
import { budgets as definitions } from './load.js'
import type { Findings } from './verify.js'

/** A posting that counts in budgets. */
interface Posting {
  userId: string
  kind: 'deduct' | 'hold' | 'capture' | 'refund' | 'release' | 'lapse'
  key: string | null
  credits: number
  /** Its budget, and those above it. */
  path: string[]
  holdId: string | null
  closes: boolean
}

/** What is counted in a budget. */
interface Count {
  used: number
  held: number
}

/**
 * Compares the calls that charge a budget with the ledger: each counts along the path of its budget, no limit is passed by any of
 * them at any place in the order of the postings, and what a budget says is what they come to.
 */
export async function verifyBudgets (
  calls: Call[], answers: Map<number, Answer>, users: string[], pool: pg.Pool, ledger: Ledger, findings: Findings
) {
  const problem = (text: string) => findings.problems.push(text)
  const paths = new Map(calls.map(({ key, body }) => [key, pathOf(body.budget as string | undefined).join()]))
  for (const { number, key, body } of calls) {
    const { status, body: told } = answers.get(number) ?? {}
    if (told?.code === 'FST_CREDITS_BUDGET_EXCEEDED') {
      findings.overBudget++
      const { limit, used, held, required } = told
      if (!(used + held + required > limit)) problem(`${key} was refused with room: ${JSON.stringify(told)}`)
    } else if (status === 404 && body.budget !== undefined) problem(`${key} found no budget`)
  }
  const counts = new Map(users.map(userId => [userId, new Map<string, Count>()]))
  const left = new Map<string, number>()
  for (const posting of await readPostings(pool, users)) {
    const { userId, kind, key, path } = posting
    const isCharge = kind === 'deduct' || kind === 'hold'
    if (isCharge && path.join() !== paths.get(key!)) problem(`${key} counts in ${path}`)
    count(posting, counts.get(userId)!, left)
    const passed = path.find(budget => isCharge && total(counts.get(userId)!.get(budget)!) > limitOf(budget))
    if (passed !== undefined) problem(`${key} passed the limit of ${passed} of ${userId}`)
  }
  for (const userId of users) {
    const { entries } = await ledger.budgets(userId, { limit: 1000 })
    for (const { budget, used, held } of entries) {
      const expected = counts.get(userId)!.get(budget) ?? { used: 0, held: 0 }
      if (used.total !== expected.used || held !== expected.held) {
        problem(`${budget} of ${userId} has ${used.total}, ${held}, and its charges come to ${JSON.stringify(expected)}`)
      }
    }
  }
}

function count ({ kind, credits, path, holdId, closes }: Posting, counts: Map<string, Count>, left: Map<string, number>) {
  const before = left.get(holdId ?? '') ?? 0
  const after = kind === 'hold' ? credits : closes || kind === 'release' || kind === 'lapse' ? 0 : Math.max(0, before - credits)
  if (holdId !== null) left.set(holdId, after)
  for (const budget of path) {
    const sum = counts.get(budget) ?? { used: 0, held: 0 }
    if (holdId !== null) sum.held += after - before
    if (kind === 'deduct' || kind === 'capture' || kind === 'refund') sum.used += credits
    counts.set(budget, sum)
  }
}

function total ({ used, held }: Count) {
  return used + held
}

function pathOf (budget: string | undefined): string[] {
  if (budget === undefined) return []
  return budget === 'team' ? ['team'] : budget === 'member' ? ['member', 'team'] : [budget, 'member', 'team']
}

function limitOf (budget: string): number {
  return definitions.find(([name]) => name === budget || (name === 'key:*' && budget.startsWith('key:')))![1].total!
}

// In the order in which they took place, for each account.
async function readPostings (pool: pg.Pool, users: string[]): Promise<Posting[]> {
  const { rows } = await pool.query<Posting>(`
    select user_id as "userId", kind, key, credits::int, coalesce(path, '{}') as path, hold_id::varchar as "holdId", closes
    from (
      select usage.user_id, usage.seq, kind, usage.idempotency_key as key, credits_used as credits, usage.budgets as path, hold_id,
        coalesce(hold.closing_seq = usage.seq, false) as closes
      from ai_credit_usage usage left join ai_credit_holds hold
        on hold.user_id = usage.user_id and hold.id = usage.hold_id
      union all
      select user_id, seq, 'hold', idempotency_key, credits, budgets, id, false from ai_credit_holds
      union all
      select event.user_id, event.seq, kind, null, 0, hold.budgets, hold.id, true
      from ai_credit_events event join ai_credit_holds hold
        on hold.user_id = event.user_id and hold.id = event.reference_id
      where kind in ('release', 'lapse')
    ) posting
    where user_id = any($1) order by user_id, seq`, [users])
  return rows
}
