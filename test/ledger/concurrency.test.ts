// needs a real server
import t, { type Test } from 'tap'
import type pg from 'pg'
import { createLedger, type DeductInput } from '../../src/index.js'
import { citus } from '../helper/citus.js'
import { createLedgerDatabase, createPool } from '../helper/database.js'
import { startProcesses, type Outcome } from '../helper/processes.js'

const inProcesses = await startProcesses(t, 20)

t.test('of 1,000 concurrent deducts exactly the 300 are accepted that the balance covers', async t => {
  const { connectionString, pool } = await migrated(t)
  await pool.query("insert into ai_credits (user_id, total_credits) values ('ann', 300)")
  const outcomes = await deductFromProcesses(connectionString, repeat(1000, { userId: 'ann', credits: 1, operation: 'chat' }))
  t.strictSame(count(outcomes), { accepted: 300, FST_CREDITS_INSUFFICIENT: 700 })
  t.strictSame(outcomes.filter(({ error }) => error?.statusCode === 402).length, 700)
  await checkAccount(t, pool, 'ann', 300)
  const answered = outcomes.flatMap(({ balance }) => balance?.used ?? []).sort((a, b) => a - b)
  t.strictSame(answered, Array.from({ length: 300 }, (_, index) => index + 1), 'every balance was answered once')
})

t.test('the same on an account that none of them finds there', async t => {
  const { connectionString, pool } = await migrated(t)
  const outcomes = await deductFromProcesses(connectionString, repeat(1000, { userId: 'new', credits: 33, operation: 'chat' }))
  t.strictSame(count(outcomes), { accepted: 303, FST_CREDITS_INSUFFICIENT: 697 })
  await checkAccount(t, pool, 'new', 303 * 33)
})

t.test('many accounts at once, each exact', async t => {
  const { connectionString, pool } = await migrated(t)
  const users = Array.from({ length: 50 }, (_, index) => `user ${index}`)
  const calls = repeat(20, {}).flatMap(() => users.map(userId => ({ userId, credits: 1000, operation: 'chat' })))
  t.strictSame(count(await deductFromProcesses(connectionString, calls)), { accepted: 500, FST_CREDITS_INSUFFICIENT: 500 })
  for (const userId of users) await checkAccount(t, pool, userId, 10_000)
})

t.test('duplicates of one key in flight together charge once and answer the same', async t => {
  const { connectionString, pool } = await migrated(t)
  const call = { userId: 'ann', credits: 10, operation: 'chat', metadata: { a: 1 }, idempotencyKey: 'one' }
  const outcomes = await deductFromProcesses(connectionString, repeat(200, call))
  t.equal(outcomes.filter(({ replayed }) => replayed === false).length, 1)
  const { replayed: _replayed, ...first } = outcomes[0]!
  t.match(first, { userId: 'ann', credits: 10, balance: { available: 9990, total: 10000, used: 10, held: 0 } })
  for (const { replayed: _replayed, ...other } of outcomes) t.strictSame(other, first)
  await checkAccount(t, pool, 'ann', 10)
})

t.test('many keys, each from every process, are charged once each', async t => {
  const { connectionString, pool } = await migrated(t)
  const calls = Array.from({ length: 400 }, (_, index) =>
    ({ userId: 'ann', credits: 1, operation: 'chat', idempotencyKey: `key ${index % 50}` }))
  const outcomes = await deductFromProcesses(connectionString, calls)
  t.strictSame(count(outcomes), { accepted: 50, replayed: 350 })
  await checkAccount(t, pool, 'ann', 50)
})

// On a cluster no other isolation level is accepted, and the time zone is settled with the tables.
const isolations = citus ? ['read committed'] : ['read committed', 'repeatable read', 'serializable']

for (const isolation of isolations) {
  t.test(`twenty processes that start at once on an empty database all succeed (${isolation})`, async t => {
    const connectionString = await createLedgerDatabase(t)
    const pool = createPool(t, connectionString)
    await setDefaultIsolation(pool, isolation)
    const starts = await inProcesses(repeat(20, { connectionString, options: { sampleData: true } }))
    for (const [start] of starts) t.strictSame(start, { balance: { available: 8500, total: 10000, used: 1500, held: 0 } })
    await checkAccount(t, pool, 'default_user', 1500)
    t.strictSame((await pool.query('select count(*)::integer from ai_credit_usage')).rows, [{ count: 5 }])
  })
}

for (const isolation of isolations) {
  t.test(`ledgers that settle the time zone at once agree (${isolation})`, { skip: citus !== undefined }, async t => {
    const connectionString = await createLedgerDatabase(t)
    const pool = createPool(t, connectionString)
    await createLedger(pool).migrate()
    await setDefaultIsolation(pool, isolation)
    const pools = Array.from({ length: 20 }, () => createPool(t, connectionString, { max: 1 }))
    await Promise.all(pools.map(pool => pool.query('select')))
    for (let round = 0; round < 10; round++) {
      await pool.query('delete from ai_credit_settings')
      await Promise.all(pools.map(pool => createLedger(pool).migrate()))
    }
    t.strictSame((await pool.query('select * from ai_credit_settings')).rows, [{ name: 'time_zone', value: 'UTC' }])
  })
}

async function setDefaultIsolation (pool: pg.Pool, isolation: string) {
  const { rows: [{ name }] } = await pool.query('select current_database() as name')
  await pool.query(`alter database ${name} set default_transaction_isolation to '${isolation}'`)
}

async function migrated (t: Test) {
  const connectionString = await createLedgerDatabase(t)
  const pool = createPool(t, connectionString)
  await createLedger(pool).migrate()
  return { connectionString, pool }
}

async function deductFromProcesses (connectionString: string, calls: DeductInput[]): Promise<Outcome[]> {
  const share = Math.ceil(calls.length / 4)
  const tasks = [0, 1, 2, 3].map(index => ({ connectionString, calls: calls.slice(index * share, (index + 1) * share) }))
  return (await inProcesses(tasks)).flat()
}

function repeat<T> (times: number, value: T): T[] {
  return Array.from({ length: times }, () => value)
}

function count (outcomes: Outcome[]): Record<string, number> {
  const counts: Record<string, number> = {}
  for (const { error, replayed } of outcomes) {
    const outcome = error?.code ?? error?.message ?? (replayed ? 'replayed' : 'accepted')
    counts[outcome] = (counts[outcome] ?? 0) + 1
  }
  return counts
}

// Asserts that all tables agree on what was spent, and that the postings are numbered without a gap.
async function checkAccount (t: Test, pool: pg.Pool, userId: string, spent: number) {
  const { rows: [account] } = await pool.query(`
    select used_credits::integer as used, seq::integer,
      (select sum(credits_used)::integer from ai_credit_usage where user_id = $1) as records,
      ((select coalesce(sum(used_credits), 0) from ai_credit_daily_usage where user_id = $1)
        + (select coalesce(sum(credits_used), 0) from ai_credit_usage where user_id = $1 and seq > summed_seq))::integer as daily,
      (select array_agg(seq::integer order by seq) from ai_credit_usage where user_id = $1) as seqs,
      (select bool_and(created_at >= earlier and used_after = credits_used + before) from (
        select *, lag(created_at, 1, created_at) over w as earlier, lag(used_after, 1, 0) over w as before
        from ai_credit_usage where user_id = $1 window w as (order by seq)) records) as in_order
    from ai_credits where user_id = $1`, [userId])
  t.strictSame(account, {
    used: spent,
    seq: account.seqs.length,
    records: spent,
    daily: spent,
    seqs: Array.from({ length: account.seqs.length }, (_, index) => index + 1),
    in_order: true
  }, userId)
}
