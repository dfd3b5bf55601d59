// Calls on an account that has much of everything read only what they need.
// not on Citus: counts what one server reads
// needs a real server
import t, { type Test } from 'tap'
import type pg from 'pg'
import { createLedger, type Ledger } from '../../src/index.js'
import { createLedgerDatabase, createPool, pglite } from '../helper/database.js'
import { readsTo } from '../helper/reads.js'

const N = 5000
const skip = pglite
const call = { userId: 'ann', credits: 1, operation: 'chat' }

t.test('with thousands of records, closed holds and grants, a call reads a few rows', { skip }, async t => {
  const { ledger, pool } = await open(t, { closedHolds: N, grants: N, usedUp: N, expired: N, records: N })
  const reads = readsTo(t, pool, 200)
  const { id: usageId } = await reads('deduct', () => ledger.deduct({ ...call, credits: 3, idempotencyKey: 'k' }))
  await reads('deduct again', () => ledger.deduct({ ...call, credits: 3, idempotencyKey: 'k' }))
  const first = await reads('hold', () => ledger.hold(call))
  const second = await reads('hold', () => ledger.hold(call))
  await reads('extend', () => ledger.extend(first.id, { ttl: 60_000 }))
  await reads('capture', () => ledger.capture(first.id))
  await reads('release', () => ledger.release(second.id))
  const { id } = await reads('grant', () => ledger.grant({ userId: 'ann', credits: 5, idempotencyKey: 'k' }))
  await reads('revoke', () => ledger.revoke(id))
  await reads('refund', () => ledger.refund({ usageId, credits: 1 }))
  await reads('refund of the rest', () => ledger.refund({ userId: 'ann', deductKey: 'k' }))
  await reads('setOverdraft', () => ledger.setOverdraft('ann', 5))
  await reads('setAllowance', () => ledger.setAllowance('ann', { credits: 5, every: 'month' }))
  await reads('balance', () => ledger.balance('ann'))
  await reads('history', () => ledger.history('ann', { limit: 10 }))
  await reads('statement', () => ledger.statement('ann', { limit: 10 }))
  await reads('statement of today', () => ledger.statement('ann', { from: new Date(Date.now() - 3600_000), limit: 10 }))
  await reads('statement of a day long ago', () => ledger.statement('ann', {
    from: '2020-06-01T00:00:00Z', to: '2020-06-02T00:00:00Z', limit: 10
  }))
  t.match(await ledger.reconcile('ann'), { ok: true })
})

t.test('a period that ends reads a few rows, and ten years of daily periods read no more', { skip }, async t => {
  const { ledger, pool } = await open(t, { closedHolds: N, grants: N, usedUp: N, expired: N, records: 0 })
  await ledger.setAllowance('ann', { credits: 5, every: 'day' })
  const reads = readsTo(t, pool, 4000) // the time zone once for each day
  await pool.query(`
    with renewing as (update ai_credit_grants set expires_at = now() - interval '10 years'
      where user_id = 'ann' and kind = 'allowance' and priority = 50 and state = 'living')
    update ai_credits set renews_at = now() - interval '10 years', due_at = now() - interval '10 years' where user_id = 'ann'`)
  await reads('balance', () => ledger.balance('ann'))
  const { entries } = await ledger.statement('ann', { cursor: String((await lastSeq(pool)) - 1) })
  t.match(entries, [{ kind: 'renewal' }])
  t.ok(entries[0]!.details!.periods > 3600)
})

t.test('a grant that ends while thousands of credits are held reads them once', { skip }, async t => {
  const { ledger, pool } = await open(t, { openHolds: N, grants: N })
  const reads = readsTo(t, pool, 5 * N)
  const { id } = await ledger.grant({ userId: 'ann', credits: 5, priority: 10 })
  await reads('revoke', () => ledger.revoke(id))
  await ledger.grant({ userId: 'ann', credits: 5, priority: 10 })
  await pool.query(`
    with ending as (update ai_credit_grants set expires_at = now() where user_id = 'ann' and priority = 10 and state = 'living')
    update ai_credits set due_at = now() where user_id = 'ann'`)
  await reads('balance', () => ledger.balance('ann'))
  t.match(await ledger.reconcile('ann'), { ok: true })
})

interface Much {
  closedHolds?: number
  openHolds?: number
  grants?: number
  usedUp?: number
  expired?: number
  records?: number
}

async function open (t: Test, { closedHolds = 0, openHolds = 0, grants = 0, usedUp = 0, expired = 0, records = 0 }: Much) {
  const pool = createPool(t, await createLedgerDatabase(t), { max: 1, idleTimeoutMillis: 0 })
  const ledger: Ledger = createLedger(pool, { timeout: 60_000, allowance: 1_000_000 })
  await ledger.migrate()
  await pool.query('set synchronous_commit to off')
  await ledger.grant({ userId: 'ann', credits: 1 }) // from now on the allowance is a grant too
  // By their seq, as those of every account are in the order of time.
  const at = (before: number) => `(timestamptz '2020-01-01' + (${before} + i) * interval '1 hour')`
  const holds = openHolds + closedHolds
  await pool.query(`
    insert into ai_credit_usage (user_id, seq, credits_used, operation, metadata, created_at, total_after, used_after, held_after)
    select 'ann', i + 1, 1, 'chat', '{}', ${at(0)}, 0, 0, 0 from generate_series(1, ${records}) i`)
  await pool.query(`
    insert into ai_credit_daily_usage (user_id, day, operation, metadata_hash, metadata, used_credits)
    select 'ann', '2020-01-01', 'chat', '\\x00', '{}', ${records}`)
  await pool.query(`
    insert into ai_credit_holds (user_id, seq, state, credits, credits_left, operation, metadata, ttl, created_at, expires_at,
      total_after, used_after, held_after)
    select 'ann', ${records} + i + 1, case when i <= ${openHolds} then 'open' else 'released' end, 1, (i <= ${openHolds})::integer,
      'chat', '{}', 60000, ${at(records)}, case when i <= ${openHolds} then now() + interval '1 day' else ${at(records)} end, 0, 0, 0
    from generate_series(1, ${holds}) i`)
  await pool.query(`
    insert into ai_credit_grants (user_id, kind, state, credits, credits_left, priority, expires_at, created_at, seq,
      total_after, used_after, held_after)
    select 'ann', 'grant', case when i <= ${expired} then 'expired' else 'living' end, 1,
      (i > ${expired + usedUp})::integer, 50,
      ${at(records + holds)} + case when i <= ${expired} then interval '0' else interval '100 years' end, ${at(records + holds)}, ${records + holds} + i + 1, 0, 0, 0
    from generate_series(1, ${expired + usedUp + grants}) i`)
  await pool.query(`
    update ai_credits set seq = ${records + holds + expired + usedUp + grants + 1}, used_credits = ${records},
      allocated = ${records}, held_credits = ${openHolds}, total_credits = total_credits + ${grants + records},
      created_at = '2020-01-01', due_at = 'infinity'
    where user_id = 'ann'`)
  await pool.query("update ai_credit_grants set created_at = '2020-01-01' where seq = 1")
  t.match(await ledger.reconcile('ann'), { ok: true })
  return { ledger, pool }
}

async function lastSeq (pool: pg.Pool): Promise<number> {
  const { rows: [{ seq }] } = await pool.query("select seq from ai_credits where user_id = 'ann'")
  return Number(seq)
}
