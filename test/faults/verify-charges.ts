import type pg from 'pg'
import type { Ledger } from '../../src/index.js'
import type { Answer, Call } from './journal.js'
import { allowance, chargedRoute } from './load.js'
import type { Findings } from './verify.js'

interface Charged {
  key: string
  holdId: string
  credits: number
}

/**
 * Compares the requests to a charged route with the ledger. Each request that does the work pays for it, also a repeated one.
 * So all delivered work is paid, no hold is paid twice, and undelivered work holds nothing. A charge that was given back,
 * because the answer to its capture was lost, counts as not paid.
 */
export async function verifyCharges (
  calls: Call[], answers: Map<number, Answer>, pool: pg.Pool, ledger: Ledger, findings: Findings
) {
  const users = [...new Set(calls.map(({ userId }) => userId))]
  const { rows: charged } = await pool.query<Charged>(`
    select charge.metadata->>'call' as key, charge.hold_id::varchar as "holdId",
      (charge.credits_used + coalesce(sum(refund.credits_used), 0))::int as credits
    from ai_credit_usage charge
    left join ai_credit_usage refund on refund.user_id = charge.user_id and refund.refunded_id = charge.id
    where charge.user_id = any($1) and charge.kind <> 'refund'
    group by charge.user_id, charge.id
    having charge.credits_used + coalesce(sum(refund.credits_used), 0) <> 0`, [users])
  const problem = (text: string) => findings.problems.push(text)
  if (new Set(charged.map(({ holdId }) => holdId)).size < charged.length) problem('a hold of a charged route was paid twice')
  for (const { key, number } of calls) judge(key, answers.get(number), charged.filter(row => row.key === key))
  const { rows: accounts } = await pool.query(`
    select user_id, total_credits::int as total, used_credits::int as used, held_credits::int as held
    from ai_credits where user_id = any($1)`, [users])
  for (const { user_id: userId, total, used, held } of accounts) {
    const paid = charged.filter(({ key }) => calls.some(call => call.key === key && call.userId === userId))
    const sum = paid.reduce((credits, row) => credits + row.credits, 0)
    if (total !== allowance || used !== sum || held !== 0) problem(`${userId} has ${total}, ${used}, ${held}, and paid ${sum}`)
  }

  for (const userId of users) {
    const { ok, differences } = await ledger.reconcile(userId)
    if (!ok) problem(`${userId} does not reconcile: ${JSON.stringify(differences)}`)
  }

  function judge (key: string, answer: Answer | undefined, paid: Charged[]) {
    if (answer === undefined) return problem(`${key} was never answered`)
    const outcomes = [answer, ...answer.duplicate ? [answer.duplicate] : []]
    const delivered = outcomes.filter(({ status }) => status === 200).length
    if (outcomes.some(({ status }) => status !== 200 && status !== 402)) problem(`${key} was answered ${JSON.stringify(outcomes)}`)
    if (paid.length < delivered) problem(`${key} was delivered ${delivered} times and paid ${paid.length} times`)
    if (paid.some(({ credits }) => credits !== chargedRoute.cost)) problem(`${key} was charged otherwise than declared`)
    if (delivered > 0) findings.accepted++
    else findings.refused++
    if (answer.unanswered > 0) findings.repeated++
  }
}
