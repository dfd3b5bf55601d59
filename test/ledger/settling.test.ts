// Lapses, expiries and renewals of an account that no call has used for long: their results, and how long they take.
import t, { type Test } from 'tap'
import type pg from 'pg'
import { createLedger, type Ledger } from '../../src/index.js'
import { until } from '../helper/charging.js'
import { onLedger } from '../helper/clocked-ledger.js'
import { createLedgerDatabase, createPool, pglite } from '../helper/database.js'
import { readsOf } from '../helper/reads.js'

const shared = { prepare: !pglite, allowance: 100_000 }

// Two equal accounts: one is read at every instant at which something is due, the other only at the end.
for (const seed of [1, 2, 3, 4, 5, 6]) {
  t.test(`settled at once or at every instant, an account is the same (seed ${seed})`,
    onLedger('2030-01-01T00:00:00Z', { allowance: 50, timeout: 60_000 }, async (t, { credits, at, pool }) => {
      const random = randomFrom(seed)
      const start = Date.parse('2030-01-01T00:00:00Z')
      const instants = new Set<number>()
      const minute = () => {
        const instant = start + 60_000 * (1 + random(40))
        instants.add(instant)
        return instant
      }
      const plans = Array.from({ length: 25 }, () => ({ credits: 1 + random(30), priority: 40 + random(20), expiresAt: new Date(minute()) }))
      const holds = Array.from({ length: 40 }, () => ({ credits: 1 + random(25), operation: 'chat', ttl: minute() - start }))
      for (const userId of ['lazy', 'eager']) {
        for (const plan of plans) await credits.grant({ userId, ...plan })
        await credits.deduct({ userId, credits: 20, operation: 'chat' })
        for (const hold of holds) await credits.hold({ userId, ...hold }).catch(refused)
        if (seed % 2) await credits.setAllowance(userId, { credits: 30, every: 'day', rollover: { max: 10 } })
      }
      for (const instant of [...instants].sort((a, b) => a - b)) {
        await at(new Date(instant).toISOString())
        await credits.balance('eager')
      }
      await at('2030-01-01T02:00:00Z')
      t.strictSame(await credits.balance('lazy'), await credits.balance('eager'))
      t.strictSame(await entriesOf(credits, 'lazy'), await entriesOf(credits, 'eager'))
      t.strictSame(await grantsOf(pool, 'lazy'), await grantsOf(pool, 'eager'))
      const kinds = new Set((await entriesOf(credits, 'lazy')).map(({ kind }) => kind))
      t.ok(kinds.has('lapse') && kinds.has('expiry'))
    }))
}

const due = {
  '8,000 holds that have lapsed': { holds: 8000, grants: 0 },
  '8,000 grants that have expired': { holds: 0, grants: 8000 },
  'holds and grants that ended in turn, 10,000 of them': { holds: 5000, grants: 5000 }
}

for (const [name, { holds, grants }] of Object.entries(due)) {
  t.test(`an account with ${name}`, async t => {
    const { credits, pool } = await open(t)
    await neglect(pool, 'ann', holds, grants)
    const { rows, scans } = await readsOf(pool, async () => {
      t.strictSame(await credits.balance('ann'), { available: 100_000, total: 100_000, used: 0, held: 0 })
    })
    t.ok(rows < 30 * (holds + grants), `${rows} rows are read`)
    t.equal(scans, 0)
    t.match(await credits.reconcile('ann'), { ok: true })
    t.equal((await credits.deduct({ userId: 'ann', credits: 1, operation: 'chat' })).balance.used, 1)
  })
}

t.test('with a timeout that is too short for it, an account is usable after some calls', async t => {
  const { credits, pool } = await open(t)
  await neglect(pool, 'ann', 10_000, 10_000)
  const hasty = createLedger(pool, { ...shared, timeout: 150 })
  await until(() => hasty.balance('bob').then(() => true, refused), answered => answered) // the ledger has started
  await t.rejects(hasty.balance('ann'), { code: 'FST_CREDITS_UNAVAILABLE' }, 'it takes longer than that')
  await until(() => hasty.balance('ann').then(() => true, refused), answered => answered)
  t.match(await credits.balance('ann'), { available: 100_000, held: 0 })
  t.match(await credits.reconcile('ann'), { ok: true })
})

t.test('a host that charges in its own transaction settles it there', async t => {
  const { credits, pool } = await open(t)
  await neglect(pool, 'ann', 3000, 3000)
  const client = await pool.connect()
  await client.query('begin')
  await credits.deduct({ userId: 'ann', credits: 5, operation: 'chat', client })
  await client.query('rollback')
  await client.query('begin')
  await credits.deduct({ userId: 'ann', credits: 7, operation: 'chat', client })
  await client.query('commit')
  client.release()
  t.match(await credits.balance('ann'), { used: 7, held: 0 })
  t.match(await credits.reconcile('ann'), { ok: true })
})

// PGlite has one session.
t.test('an account with much to settle takes nothing from the others', { skip: pglite }, async t => {
  const { credits, pool } = await open(t)
  await neglect(pool, 'slow', 20_000, 0)
  await credits.deduct({ userId: 'ann', credits: 1, operation: 'chat' })
  const order: string[] = []
  const call = (userId: string) => credits.deduct({ userId, credits: 1, operation: 'chat' }).then(() => { order.push(userId) })
  await Promise.all([
    ...Array.from({ length: 2 }, () => call('slow')),
    ...Array.from({ length: 64 }, (_, index) => call(`user ${index}`)),
    ...Array.from({ length: 64 }, () => call('ann'))
  ])
  t.equal(order.length, 130, 'all are accepted')
  t.ok(order.indexOf('slow') > 0, 'others were first')
  t.match(await credits.reconcile(), { ok: true })
})

async function open (t: Test) {
  const pool = createPool(t, await createLedgerDatabase(t), { idleTimeoutMillis: 0 })
  const credits = createLedger(pool, { ...shared, timeout: 60_000 })
  await credits.migrate()
  await credits.balance('ann')
  return { credits, pool }
}

// Gives an account holds and grants of one credit each, which lapsed and expired alternately an hour ago.
async function neglect (pool: pg.Pool, userId: string, holds: number, grants: number) {
  await createLedger(pool, shared).grant({ userId, credits: 1, expiresAt: new Date(Date.now() + 86_400_000) })
  await pool.query(`
    insert into ai_credit_holds (user_id, seq, credits, credits_left, operation, metadata, ttl, created_at, expires_at,
      total_after, used_after, held_after)
    select user_id, seq + i, 1, 1, 'chat', '{}', 1000, updated_at, updated_at - (6000 - i % 5000) * interval '1 second', 0, 0, 0
    from ai_credits, generate_series(1, $2::integer) i where user_id = $1`, [userId, holds])
  await pool.query(`
    insert into ai_credit_grants (user_id, kind, credits, credits_left, priority, expires_at, created_at, seq,
      total_after, used_after, held_after)
    select user_id, 'grant', 1, 1, 50, updated_at - (6000.5 - i % 5000) * interval '1 second', created_at, seq + $2 + i, 0, 0, 0
    from ai_credits, generate_series(1, $3::integer) i where user_id = $1`, [userId, holds, grants])
  await pool.query("update ai_credit_grants set credits_left = 0, state = 'revoked' where user_id = $1 and seq = 1", [userId])
  await pool.query(`
    update ai_credits set held_credits = held_credits + $2, total_credits = total_credits - 1 + $3, seq = seq + $2 + $3,
      due_at = $4 where user_id = $1`, [userId, holds, grants, new Date(Date.now() - 7_200_000)])
}

async function entriesOf (credits: Ledger, userId: string) {
  const { entries } = await credits.statement(userId)
  return entries.map(({ seq, kind, at, amount, balance }) => ({ seq, kind, at, amount, balance }))
}

async function grantsOf (pool: pg.Pool, userId: string) {
  const { rows } = await pool.query(`
    select kind, state, credits, credits_left, expires_at from ai_credit_grants where user_id = $1 order by id`, [userId])
  return rows
}

// A random number generator by Lehmer (1951): a seed always gives the same numbers.
function randomFrom (seed: number) {
  let state = seed * 7919
  return (below: number) => {
    state = state * 48_271 % 2_147_483_647
    return state % below
  }
}

function refused () {
  return false
}
