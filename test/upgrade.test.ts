import type pg from 'pg'
import t, { type Test } from 'tap'
import { createLedger, type Ledger } from '../src/index.js'
import { migrations } from '../src/sql/index.js'
import { createClockedDatabase } from './helper/clock.js'
import { createPool, pglite } from './helper/database.js'
import { originalTables } from './helper/original-tables.js'

const start = '2024-05-01T12:00:00.000Z'
const allowance = JSON.stringify({ credits: 100 })

const original = `${originalTables}
  insert into ai_credits values ('ann', 500, 70, '2024-01-02', '2024-02-03'), ('below', 10, 25, '2024-01-02', '2024-02-03');
  insert into ai_credit_usage (user_id, credits_used, operation, created_at) values ('ann', 20, 'chat', '2024-02-01'),
    ('below', 30, 'chat', '2024-02-01');`

t.test('accounts, records, daily usage and settings stay as they are', onVersion1(async (t, { pool, old, upgrade }) => {
  await old.deduct('ann', 7, { words: 3 }, 'k')
  await old.deduct('ann', 5)
  await old.deduct('bob', 100)
  await old.balance('new')
  const dump = async () => (await pool.query(`
    select user_id, total_credits, used_credits, held_credits, spent_before, allocated, opening_total, opening_used,
      overdraft, seq, due_at, created_at, updated_at from ai_credits order by 1`)).rows.concat((await pool.query(`
    select id, user_id, seq, kind, credits_used, operation, metadata, created_at, total_after, used_after, held_after,
      idempotency_key, request_hash from ai_credit_usage order by 1`)).rows, (await pool.query(`
    select * from ai_credit_daily_usage order by 1, 2, 3, 4`)).rows, (await pool.query(`
    select * from ai_credit_settings order by 1`)).rows)
  const before = await dump()
  await upgrade()
  t.strictSame(await dump(), before)
  t.equal(before.length, 3 + 3 + 3 + 1)
}))

t.test('what version 1 wrote is answered, replayed, refunded and stated', onVersion1(async (t, { old, upgrade }) => {
  const first = await old.deduct('ann', 7, { words: 3 }, 'k')
  await old.deduct('ann', 5)
  const credits = await upgrade()

  t.strictSame(await credits.balance('ann'), { available: 88, total: 100, used: 12, held: 0 })
  t.strictSame((await credits.history('ann')).entries, [
    { date: '2024-05-01', used: 7, operation: 'chat', metadata: { words: 3 } },
    { date: '2024-05-01', used: 5, operation: 'chat', metadata: {} }
  ])
  const charge = { userId: 'ann', credits: 7, operation: 'chat', metadata: { words: 3 }, idempotencyKey: 'k' }
  t.match(await credits.deduct(charge),
    { id: first.record_id, replayed: true, balance: { available: 93, total: 100, used: 7, held: 0 } })
  await t.rejects(credits.deduct({ ...charge, credits: 8 }), { code: 'FST_CREDITS_IDEMPOTENCY_CONFLICT' })
  await credits.refund({ userId: 'ann', deductKey: 'k', credits: 2 })
  await credits.refund({ usageId: first.record_id })
  t.match((await credits.statement('ann')).entries.map(({ seq, kind, amount }) => [seq, kind, amount]),
    [[0, 'opening', 100], [1, 'deduct', -7], [2, 'deduct', -5], [3, 'refund', 2], [4, 'refund', 5]])
}))

t.test('an account of version 1 takes all that is new', onVersion1(async (t, { at, old, upgrade }) => {
  await old.deduct('ann', 30)
  const credits = await upgrade()
  await credits.grant({ userId: 'ann', credits: 20, expiresAt: '2024-05-01T18:00:00Z' })
  const { id } = await credits.hold({ userId: 'ann', credits: 40, operation: 'chat' })
  await credits.capture(id, { credits: 25 })
  await credits.setAllowance('ann', { credits: 10, every: 'day' })
  t.strictSame(await credits.balance('ann'), { available: 75, total: 130, used: 55, held: 0 })
  await at('2024-05-02T12:00:00Z')
  t.strictSame(await credits.balance('ann'), { available: 75, total: 75, used: 0, held: 0 },
    '25 were spent of the grant and the allowance; 65 of the old one are left')
}))

t.test('accounts of the original tables come along', onVersion1(async (t, { pool, upgrade }) => {
  const credits = await upgrade()
  t.strictSame(await credits.balance('ann'), { available: 430, total: 500, used: 70, held: 0 })
  t.strictSame(await credits.balance('below'), { available: -15, total: 10, used: 25, held: 0 })
  const { id } = await credits.grant({ userId: 'below', credits: 40 })
  t.match(await credits.revoke(id), { credits: 25, balance: { available: 0, total: 25, used: 25 } }, '15 paid its debt')
  t.strictSame((await pool.query('select count(*)::integer from ai_credits')).rows, [{ count: 2 }])
}, original))

t.test('a running process of version 1 goes on as before', onVersion1(async (t, { old, upgrade }) => {
  const first = await old.deduct('ann', 7, { words: 3 }, 'k')
  await old.balance('ann')
  await old.history('ann')
  const credits = await upgrade()

  t.strictSame(await old.deduct('ann', 7, { words: 3 }, 'k'), { ...first, verdict: 'replayed' })
  t.match(await old.deduct('ann', 8, { words: 3 }, 'k'), { verdict: 'conflict' })
  t.match(await old.deduct('ann', 5), { verdict: 'accepted', total: '100', used: '12', held: '0' })
  t.match(await old.deduct('ann', 89), { verdict: 'insufficient', total: '100', used: '12', held: '0' })
  t.strictSame(await old.balance('ann'), { total: '100', used: '12', held: '0' })
  t.match(await old.history('ann'), { used: '12', entries: /^\[\["2024-05-01", 7, .*"2024-05-01", 5, /s })
  t.match(await old.deduct('new', 1), { verdict: 'accepted', total: '100', used: '1' })
  t.strictSame(await credits.balance('new'), { available: 99, total: 100, used: 1, held: 0 })
  t.match(await credits.deduct({ userId: 'ann', credits: 5, operation: 'chat', idempotencyKey: 'n' }), { replayed: false })
  t.match(await old.deduct('ann', 5, {}, 'n'), { verdict: 'replayed', used: '17' })
}))

t.test('it counts what is held', onVersion1(async (t, { old, upgrade }) => {
  await old.deduct('ann', 10)
  const credits = await upgrade()
  await credits.hold({ userId: 'ann', credits: 60, operation: 'chat' })
  t.match(await old.deduct('ann', 31), { verdict: 'insufficient', held: '60' })
  t.match(await old.deduct('ann', 30), { verdict: 'accepted', total: '100', used: '40', held: '60' })
}))

for (const touch of ['deduct', 'balance', 'history'] as const) {
  t.test(`it settles what is due: ${touch}`, onVersion1(async (t, { at, old, upgrade }) => {
    await old[touch]('ann', 10)
    const credits = await upgrade()
    const used = touch === 'deduct' ? 10 : 0
    await credits.setAllowance('ann', { credits: 15, every: 'day' })
    await credits.grant({ userId: 'ann', credits: 20, expiresAt: '2024-05-01T18:00:00Z', priority: 60 })
    await credits.hold({ userId: 'ann', credits: 50, operation: 'chat', ttl: 60_000 })
    await at('2024-05-03T00:00:00Z')
    t.match(await old[touch]('ann', 1), { total: `${115 - used}`, used: touch === 'deduct' ? '1' : '0', held: '0' })
    t.strictSame((await credits.statement('ann')).entries.slice(used === 0 ? 4 : 5).map(({ kind }) => kind),
      ['lapse', 'expiry', 'renewal', ...touch === 'deduct' ? ['deduct'] : []])
  }))
}

t.test('an account that it creates has the one-off allowance that it knows', onVersion1(async (t, { at, old, upgrade }) => {
  const credits = await upgrade()
  await old.balance('ann')
  await at('2024-06-01T12:00:00Z')
  t.strictSame(await credits.balance('ann'), { available: 100, total: 100, used: 0, held: 0 })
}))

// PGlite runs one statement at a time.
t.test('no charge fails or is lost while the tables are upgraded', { skip: pglite },
  onVersion1(async (t, { pool, old, upgrade, connectionString }) => {
    await old.deduct('user 0', 1)
    let calls = 0
    const charging = Promise.allSettled(Array.from({ length: 5 }, async () => {
      for (let call = 0; call < 300; call++) {
        await old.deduct(`user ${calls++ % 20}`, 1)
      }
    }))
    const credits = await upgrade(createPool(t, connectionString))
    const before = calls
    t.strictSame((await charging).flatMap(end => end.status === 'rejected' ? [String(end.reason)] : []), [])
    t.ok(before < calls, 'charges went on after the upgrade')
    t.strictSame((await pool.query('select sum(used_credits)::integer as used from ai_credits')).rows, [{ used: 1501 }])
    t.match(await credits.reconcile(), { ok: true, accounts: 20 })
  }))

// Migration 1 asks with this one, too, whether it is late.
const CLOCK_OF_VERSION_1 = `
  create or replace function test_clock.clock_timestamp() returns timestamptz
  language sql stable return statement_timestamp();`

// A test on a database as version 0.1.0 of this library left it, with the statements that a process of that version
// sends on connections of its own, and the upgrade. At its end every account must reconcile.
function onVersion1 (body: (t: Test, database: Version1) => Promise<void>, before = '') {
  return async (t: Test) => {
    const { connectionString, setClock } = await createClockedDatabase(t, start)
    const pool = createPool(t, connectionString)
    await pool.query(CLOCK_OF_VERSION_1 + before + migrations[0]!.sql)
    await pool.query("select ai_credit_use_time_zone('UTC')")
    const upgrade = async (through = pool) => {
      const credits = createLedger(through, { allowance: 100, prepare: !pglite })
      await credits.migrate()
      return credits
    }
    const old = oldProcess(createPool(t, connectionString, { max: 5 }))
    await body(t, { pool, connectionString, at: setClock, old, upgrade })
    t.match(await (await upgrade()).reconcile(), { ok: true, differences: [] }, 'every account reconciles')
  }
}

interface Version1 {
  pool: pg.Pool
  connectionString: string
  at: (time: string) => Promise<void>
  old: ReturnType<typeof oldProcess>
  upgrade: (through?: pg.Pool) => Promise<Ledger>
}

function oldProcess (pool: pg.Pool) {
  const row = async (name: string, values: unknown[]): Promise<any> => {
    const text = `select * from ${name}(${values.map((_, index) => `$${index + 1}`)})`
    return (await pool.query({ text, values, ...!pglite && { name } })).rows[0]
  }
  return {
    deduct: (userId: string, credits: number, metadata = {}, key: string | null = null) =>
      row('ai_credit_deduct', [userId, credits, 'chat', JSON.stringify(metadata), key, allowance, 'UTC', 4500]),
    balance: (userId: string, _credits?: number) => row('ai_credit_balance', [userId, allowance, 4500]),
    history: (userId: string, _credits?: number) =>
      row('ai_credit_history', [userId, allowance, 4500, 'UTC', 30, 1000, null, null, null, null])
  }
}
