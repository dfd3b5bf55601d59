import assert from 'node:assert'
import type { Queryable } from '../../src/index.js'
import { ROUTE } from './gateway.js'
import type { Exchange } from './outcome.js'
import type { Sent } from './requests.js'

const ROWS = `
  select (select count(*)::int from ai_credit_usage) as records, (select count(*)::int from ai_credit_daily_usage) as daily,
    (select count(*)::int from ai_credit_budgets) as budgets, (select count(*)::int from ai_credit_budget_usage) as counted`

/**
 * Sends a check, and then the deduct of the same request. Asserts that the check has written nothing, and has told what became
 * of the deduct. Nothing else may use the account meanwhile. Returns both exchanges, or only the first if no check took it.
 */
export async function sendCheck (db: Queryable, send: (sent: Sent) => Promise<Exchange | undefined>, sent: Sent): Promise<Exchange[]> {
  const before = (await db.query(ROWS)).rows
  const check = await send(sent)
  if (check === undefined) return []
  assert.deepStrictEqual((await db.query(ROWS)).rows, before, `a check writes nothing: ${JSON.stringify(sent)}`)
  if (!String(check.reply.headers[ROUTE]).endsWith('/credits/check')) return [check]
  const deduct = await send({ ...sent, url: sent.url.replace('/check', '/deduct') })
  assert.deepStrictEqual(outcomeOf(deduct!), foretoldBy(check), `a check tells what the deduct does: ${JSON.stringify(sent)}`)
  return [check, deduct!]
}

function outcomeOf ({ reply: { status, headers, body } }: Exchange) {
  const answer = JSON.parse(body)
  return { status, replayed: headers['idempotency-replayed'], answer: status === 200 ? answer.credits : answer }
}

function foretoldBy (check: Exchange) {
  const { status, replayed, answer } = outcomeOf(check)
  if (status !== 200 || replayed !== undefined) return { status, replayed, answer }
  const { required } = JSON.parse(check.reply.body)
  return { status, replayed, answer: { ...answer, available: answer.available - required, used: answer.used + required } }
}
