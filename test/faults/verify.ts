import { setTimeout as sleep } from 'node:timers/promises'
import type pg from 'pg'
import type { Ledger } from '../../src/index.js'
import { read, type Answer, type Call } from './journal.js'
import { allowance, ttl } from './load.js'
import type { Random } from './random.js'
import { post } from './requests.js'
import { verifyBudgets } from './verify-budgets.js'
import { verifyCharges } from './verify-charges.js'

/** The findings of a round. */
export interface Findings {
  calls: number
  accepted: number
  refused: number
  /** How many calls had no reply, or 503, at least once. */
  repeated: number
  /** How many calls were refused although an earlier request, which had no reply, was charged later. */
  late: number
  /** How many calls a budget refused. */
  overBudget: number
  /** What is wrong; empty if all is well. */
  problems: string[]
}

interface Row {
  kind: string
  id: string
  userId: string
  key: string
  credits: number
}

const REPLAYS = 60 // calls of a round that are sent once more

/** Compares a round's journal with the ledger. Nothing else may use the ledger meanwhile. */
export async function verify (
  journal: string, gateway: string, pool: pg.Pool, ledger: Ledger, random: Random
): Promise<Findings> {
  const { calls: all, answers } = read(journal)
  const findings: Findings = { calls: all.length, accepted: 0, refused: 0, repeated: 0, late: 0, overBudget: 0, problems: [] }
  const everybody = usersOf(all)
  await lapses(pool, everybody)
  for (const userId of everybody) await ledger.balance(userId)
  await verifyCharges(all.filter(({ kind }) => kind === 'charge'), answers, pool, ledger, findings)
  const calls = all.filter(({ kind }) => kind !== 'charge')
  const users = usersOf(calls)
  const rows = await recorded(pool, users)
  for (const call of calls) judge(call, answers.get(call.number), rows, findings)
  for (const name of rows.keys()) if (!name.startsWith('release ')) findings.problems.push(`nobody asked for ${name}`)
  await compareBalances(calls, answers, users, ledger, findings)
  await verifyBudgets(calls, answers, users, pool, ledger, findings)
  await compareReplays(calls, answers, gateway, random, findings)
  return findings
}

function usersOf (calls: Call[]) {
  return [...new Set(calls.map(({ userId }) => userId))]
}

// Waits until the short holds have lapsed.
async function lapses (pool: pg.Pool, users: string[]) {
  for (;;) {
    const { rows: [{ left }] } = await pool.query(`
      select ceil(extract(epoch from max(expires_at) - statement_timestamp()) * 1000)::int as left
      from ai_credit_holds where user_id = any($1) and ttl = $2 and state = 'open'`, [users, ttl.short])
    if (left === null || left <= 0) return
    await sleep(left)
  }
}

// Returns everything that the ledger has done for these accounts, by the calls that asked for it. A release of a lapsed hold
// has the result of a first release.
async function recorded (pool: pg.Pool, users: string[]): Promise<Map<string, Row[]>> {
  const { rows } = await pool.query<Row>(`
    select kind, id::varchar, user_id as "userId", idempotency_key as key, abs(credits_used)::int as credits
    from ai_credit_usage where user_id = any($1)
    union all
    select 'hold', id::varchar, user_id, idempotency_key, credits::int from ai_credit_holds where user_id = any($1)
    union all
    select 'grant', id::varchar, user_id, idempotency_key, credits::int from ai_credit_grants
    where user_id = any($1) and kind = 'grant'
    union all
    select 'release', reference_id::varchar, user_id, reference_id::varchar, amount::int from ai_credit_events
    where user_id = any($1) and kind in ('release', 'lapse')`, [users])
  const byName = new Map<string, Row[]>()
  for (const row of rows) {
    const name = `${row.kind} ${row.key}`
    byName.set(name, [...byName.get(name) ?? [], row])
  }
  return byName
}

function judge (call: Call, answer: Answer | undefined, rows: Map<string, Row[]>, findings: Findings) {
  const name = `${call.kind} ${call.kind === 'release' ? call.holdId : call.key}`
  const found = rows.get(name) ?? []
  if (call.kind !== 'release') rows.delete(name) // several calls may release one hold
  const problem = (text: string) => findings.problems.push(`${name}: ${text}: ${JSON.stringify({ call, answer, found })}`)
  if (answer === undefined) return problem('never answered')
  const outcomes = [answer, ...answer.duplicate ? [answer.duplicate] : []]
  const accepted = outcomes.filter(({ status }) => status === 200)
  const refused = outcomes.filter(({ status }) => [402, 404, 409].includes(status))
  if (accepted.length + refused.length < outcomes.length) problem('answered with what is neither yes nor no')
  if (new Set(accepted.map(({ body }) => JSON.stringify(body))).size > 1) problem('two answers to one call')
  if (answer.unanswered > 0) findings.repeated++
  if (found.length > 1) problem('recorded more than once')
  if (accepted.length > 0) {
    findings.accepted++
    if (found.length === 0) problem('acknowledged and not recorded')
    else if (!says(call, accepted[0]!.body, found[0]!)) problem('recorded otherwise than acknowledged')
  } else {
    findings.refused++
    if (call.kind === 'release' || found.length === 0) return
    // The charge is of an earlier request, which the client took for lost.
    if (answer.unanswered > 0) findings.late++
    else problem('refused and recorded')
  }
}

function says ({ kind, userId, body: asked }: Call, told: any, { id, userId: whose, credits }: Row): boolean {
  if (whose !== userId) return false
  if (kind === 'deduct') return credits === asked.credits // its reply has no id
  return told.id === id && told.credits === credits
}

async function compareBalances (
  calls: Call[], answers: Map<number, Answer>, users: string[], ledger: Ledger, { late, problems }: Findings
) {
  const expected = balances(calls, answers, users)
  for (const userId of users) {
    const balance = await ledger.balance(userId)
    const { available, total, used, held } = balance
    const wanted = expected.get(userId)!
    const same = used === wanted.used && total === wanted.total && held === wanted.held && available === total - used - held
    if (!same && late === 0) problems.push(`${userId} has ${JSON.stringify(balance)}, and by the answers ${JSON.stringify(wanted)}`)
    const { ok, differences } = await ledger.reconcile(userId)
    if (!ok) problems.push(`${userId} does not reconcile: ${JSON.stringify(differences)}`)
  }
}

// Computes the balances from the replies.
function balances (calls: Call[], answers: Map<number, Answer>, users: string[]) {
  const result = new Map(users.map(userId => [userId, { total: allowance, used: 0, held: 0 }]))
  const holds = new Map<string, { userId: string, left: number }>()
  for (const [call, told] of acceptedOf(calls, answers)) {
    const balance = result.get(call.userId)!
    if (call.kind === 'deduct') balance.used += call.body.credits as number
    if (call.kind === 'capture') balance.used += told.credits
    if (call.kind === 'refund') balance.used -= told.credits
    if (call.kind === 'grant') balance.total += told.credits
    if (call.kind === 'hold' && call.body.ttl === ttl.long) holds.set(told.id, { userId: call.userId, left: told.credits })
  }
  for (const [{ kind, body, holdId }] of acceptedOf(calls, answers)) {
    const hold = holds.get(holdId ?? '')
    if (hold === undefined) continue
    const closed = kind === 'release' || (kind === 'capture' && body.final)
    hold.left = closed ? 0 : Math.max(0, hold.left - (body.credits as number))
  }
  for (const { userId, left } of holds.values()) result.get(userId)!.held += left
  return result
}

function acceptedOf (calls: Call[], answers: Map<number, Answer>): Array<[Call, any]> {
  return calls.flatMap(call => {
    const answer = answers.get(call.number)
    const accepted = [answer, answer?.duplicate].find(outcome => outcome?.status === 200)
    return accepted === undefined ? [] : [[call, accepted.body] as [Call, any]]
  })
}

async function compareReplays (
  calls: Call[], answers: Map<number, Answer>, gateway: string, random: Random, { problems }: Findings
) {
  const accepted = acceptedOf(calls, answers)
  const sample = Array.from({ length: Math.min(REPLAYS, accepted.length) }, () => random.pick(accepted))
  for (const [{ kind, path, body, key }, told] of sample) {
    const { status, replayed, body: again } = await post(gateway + path, body, key)
    // A release has no key. If its hold had lapsed, it changed nothing, and a capture may have closed the hold since.
    if (kind === 'release' && again.code === 'FST_CREDITS_HOLD_CLOSED') continue
    if (status === 200 && replayed && JSON.stringify(again) === JSON.stringify(told)) continue
    problems.push(`${key} was replayed as ${status} ${replayed} ${JSON.stringify(again)}, not as ${JSON.stringify(told)}`)
  }
}
