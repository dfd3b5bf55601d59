// From number 6 of the tables, which made its functions along with them, to what a start makes now.
import type pg from 'pg'
import t, { type Test } from 'tap'
import { createLedger, type Ledger } from '../../src/index.js'
import { createClockedDatabase } from '../helper/clock.js'
import { createDatabase, createPool, pglite } from '../helper/database.js'
import { clockOfNumber6, number6 } from '../helper/number-6.js'
import { originalTables } from '../helper/original-tables.js'
import { psql, scripts, skipped } from '../helper/psql.js'
import { dumpDatabase, dumpSchema } from '../helper/schema-dump.js'

const start = '2024-05-01T12:00:00.000Z'
const allowance = JSON.stringify({ credits: 100 })
const terms = [allowance, 4500]

const original = `${originalTables}
  insert into ai_credits values ('ann', 500, 70, '2024-01-02', '2024-02-03'), ('below', 10, 25, '2024-01-02', '2024-02-03');
  insert into ai_credit_usage (user_id, credits_used, operation, created_at) values ('ann', 20, 'chat', '2024-02-01'),
    ('below', 30, 'chat', '2024-02-01');`

t.test('accounts, records, daily usage and settings stay as they are', onNumber6(async (t, { pool, old, upgrade }) => {
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

t.test('what number 6 wrote is answered, replayed, refunded and stated', onNumber6(async (t, { old, upgrade }) => {
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

t.test('an account of number 6 takes all that is new', onNumber6(async (t, { at, old, upgrade }) => {
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

t.test('accounts of the original tables come along', onNumber6(async (t, { pool, upgrade }) => {
  const credits = await upgrade()
  t.strictSame(await credits.balance('ann'), { available: 430, total: 500, used: 70, held: 0 })
  t.strictSame(await credits.balance('below'), { available: -15, total: 10, used: 25, held: 0 })
  const { id } = await credits.grant({ userId: 'below', credits: 40 })
  t.match(await credits.revoke(id), { credits: 25, balance: { available: 0, total: 25, used: 25 } }, '15 paid its debt')
  t.strictSame((await pool.query('select count(*)::integer from ai_credits')).rows, [{ count: 2 }])
}, original))

t.test('what was due is settled', onNumber6(async (t, { at, old, upgrade }) => {
  await old.deduct('ann', 10)
  await old.call('ai_credit_set_allowance', 'ann', '{"credits": 15, "every": "day"}', ...terms)
  await old.call('ai_credit_grant', 'ann', 20, null, '2024-05-01T18:00:00Z', 60, null, ...terms)
  await old.call('ai_credit_hold', 'ann', 50, 'chat', '{}', 60_000, null, ...terms)
  const credits = await upgrade()
  await at('2024-05-03T00:00:00Z')
  t.strictSame(await credits.balance('ann'), { available: 105, total: 105, used: 0, held: 0 })
  t.strictSame((await credits.statement('ann')).entries.slice(4).map(({ kind }) => kind), ['hold', 'lapse', 'expiry', 'renewal'])
}))

t.test('an account that it created keeps the one-off allowance that it knew', onNumber6(async (t, { at, old, upgrade }) => {
  await old.balance('ann')
  const credits = await upgrade()
  await at('2024-06-01T12:00:00Z')
  t.strictSame(await credits.balance('ann'), { available: 100, total: 100, used: 0, held: 0 })
}))

t.test('a process of number 6 that still runs is served no longer, and changes nothing', onNumber6(async (t, { pool, old, upgrade }) => {
  await old.deduct('ann', 7, { words: 3 }, 'k')
  await old.balance('ann')
  await old.history('ann')
  const credits = await upgrade()
  await credits.balance('ann')
  const before = await dumpDatabase(pool)
  await t.rejects(old.deduct('ann', 7, { words: 3 }, 'k'), { code: '42883' })
  await t.rejects(old.deduct('ann', 5), { code: '42883' })
  await t.rejects(old.deduct('new', 1), { code: '42883' })
  await t.rejects(old.balance('ann'), { code: '42883' })
  await t.rejects(old.history('ann'), { code: '42883' })
  t.equal(await dumpDatabase(pool), before)
}))

// Those with the same parameters would be found otherwise, by statements that were prepared before too.
t.test('no function that it called is there with the same parameters', onNumber6(async (t, { pool, upgrade }) => {
  const signatures = async () => (await pool.query(`
    select proname || '(' || oidvectortypes(proargtypes) || ')' as signature from pg_proc
    where proname = any($1) order by 1`, [called])).rows.map(({ signature }) => signature)
  const before = await signatures()
  t.equal(new Set(before.map(signature => signature.split('(')[0])).size, called.length)
  await upgrade()
  const now = await signatures()
  t.strictSame(before.filter(signature => now.includes(signature)), [])
}))

t.test('what a start with migrate makes of number 6 is what it makes of nothing', async t => {
  const pool = createPool(t, await createDatabase(t))
  await pool.query(number6)
  await createLedger(pool).migrate()
  const fresh = createPool(t, await createDatabase(t))
  await createLedger(fresh).migrate()
  t.equal(await dumpSchema(pool), await dumpSchema(fresh))
})

t.test('psql makes the same of it', { skip: skipped }, async t => {
  const connectionString = await createDatabase(t)
  const pool = createPool(t, connectionString)
  await pool.query(number6)
  await psql(connectionString, scripts)
  const fresh = createPool(t, await createDatabase(t))
  await createLedger(fresh).migrate()
  t.equal(await dumpSchema(pool), await dumpSchema(fresh))
})

t.test('an upgrade that fails leaves number 6 as it was, at work', onNumber6(async (t, { pool, old, upgrade }) => {
  await old.deduct('ann', 7)
  await pool.query('create table ai_credit_functions (someone_elses integer)')
  const before = await dumpDatabase(pool)
  await t.rejects(upgrade(), { code: '42P07', message: 'relation "ai_credit_functions" already exists' })
  t.equal(await dumpDatabase(pool), before)
  t.match(await old.deduct('ann', 5), { verdict: 'accepted', used: '12' })
  await pool.query('drop table ai_credit_functions')
  t.strictSame(await (await upgrade()).balance('ann'), { available: 88, total: 100, used: 12, held: 0 })
}))

// PGlite runs one statement at a time.
t.test('a charge while the tables are upgraded is answered, or fails and is no charge', { skip: pglite },
  onNumber6(async (t, { pool, old, upgrade, connectionString }) => {
    await old.deduct('user 0', 1)
    const charge = (call: number) => old.deduct(`user ${call % 20}`, 1, {}, call % 2 === 0 ? `k${call}` : null)
    const answered = new Map<number, Awaited<ReturnType<typeof charge>>>()
    let calls = 0
    let failed = 0
    const charging = Array.from({ length: 5 }, async () => {
      while (failed < 20) { // until all that comes finds no function
        const call = calls++
        await charge(call).then(row => answered.set(call, row), () => failed++)
      }
    })
    while (answered.size < 100) await new Promise(resolve => setImmediate(resolve))
    const credits = await upgrade(createPool(t, connectionString))
    await Promise.all(charging)
    t.ok([...answered.values()].every(({ verdict }) => verdict === 'accepted'))
    t.strictSame((await pool.query('select sum(used_credits)::integer as used from ai_credits')).rows, [{ used: 1 + answered.size }])
    t.match(await credits.reconcile(), { ok: true, accounts: 20 })

    const keyed = Array.from({ length: calls }, (_, call) => call).filter(call => call % 2 === 0)
    for (const call of keyed) {
      const row = await credits.deduct({ userId: `user ${call % 20}`, credits: 1, operation: 'chat', idempotencyKey: `k${call}` })
      t.match(row, answered.has(call) ? { id: answered.get(call).record_id, replayed: true } : { replayed: false })
    }
    const unanswered = keyed.filter(call => !answered.has(call)).length
    t.strictSame((await pool.query('select sum(used_credits)::integer as used from ai_credits')).rows,
      [{ used: 1 + answered.size + unanswered }], 'repeated by a process of now, each is charged once')
  }))

/** The functions that a process of number 6 calls with its charges and readings. */
const called = ['balance', 'capture', 'captures', 'deduct', 'execute', 'extend', 'grant', 'history', 'hold', 'prune', 'reconcile', 'refund',
  'release', 'revoke', 'set_allowance', 'set_overdraft', 'statement'].map(name => `ai_credit_${name}`)

// A test on a database at number 6, with the statements that a process of then sends on connections of its own, and the
// upgrade. At its end every account must reconcile.
function onNumber6 (body: (t: Test, database: Number6) => Promise<void>, before = '') {
  return async (t: Test) => {
    const { connectionString, setClock } = await createClockedDatabase(t, start)
    const pool = createPool(t, connectionString)
    await pool.query(clockOfNumber6 + before + number6)
    await pool.query("select ai_credit_use_time_zone('UTC')")
    let time = start
    const at = async (instant: string) => {
      time = instant
      await setClock(instant)
    }
    const upgrade = async (through = pool) => {
      const credits = createLedger(through, { allowance: 100, prepare: !pglite })
      await credits.migrate()
      await setClock(time) // for the functions that have come
      return credits
    }
    const old = oldProcess(createPool(t, connectionString, { max: 5 }))
    await body(t, { pool, connectionString, at, old, upgrade })
    t.match(await (await upgrade()).reconcile(), { ok: true, differences: [] }, 'every account reconciles')
  }
}

interface Number6 {
  pool: pg.Pool
  connectionString: string
  at: (time: string) => Promise<void>
  old: ReturnType<typeof oldProcess>
  upgrade: (through?: pg.Pool) => Promise<Ledger>
}

function oldProcess (pool: pg.Pool) {
  const call = async (name: string, ...values: unknown[]): Promise<any> => {
    const text = `select * from ${name}(${values.map((_, index) => `$${index + 1}`)})`
    return (await pool.query({ text, values, ...!pglite && { name } })).rows[0]
  }
  return {
    call,
    deduct: (userId: string, credits: number, metadata = {}, key: string | null = null) =>
      call('ai_credit_deduct', userId, credits, 'chat', JSON.stringify(metadata), key, allowance, 'UTC', 4500),
    balance: (userId: string) => call('ai_credit_balance', userId, ...terms),
    history: (userId: string) =>
      call('ai_credit_history', userId, ...terms, 'UTC', 30, 1000, null, null, null, null)
  }
}
