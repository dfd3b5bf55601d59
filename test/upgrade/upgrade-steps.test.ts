// From number 6 to the newest, one file of the tables after the other, with data of every kind. Further files are covered as
// they come.
import type pg from 'pg'
import t, { type Test } from 'tap'
import { createLedger, type Balance, type Ledger } from '../../src/index.js'
import { inSchema } from '../../src/ledger/database/schema.js'
import { functionScript } from '../../src/ledger/database/migrate.js'
import { tables } from '../../src/sql/index.js'
import { until } from '../helper/charging.js'
import { createClockedDatabase } from '../helper/clock.js'
import { createPool, pglite } from '../helper/database.js'
import { clockOfNumber6, number6 } from '../helper/number-6.js'

const start = '2030-01-01T00:00:00.000Z'
const allowance = JSON.stringify({ credits: 1000 })
const terms = [allowance, 4500]
const day = 86_400_000
const charge = { userId: 'ann', credits: 7, operation: 'chat' }
const steps = tables.filter(({ id }) => id > 6)

/** What a function returns. */
type Row = Record<string, unknown>

/** What a method returns. */
interface Answer { id: string, usageId?: string, credits: number, balance: Balance, replayed: boolean }

t.test('every step keeps what is there, and all that was done before is replayed', async t => {
  const { pool, connectionString, at } = await databaseAt6(t)
  const calls = await live(pool)
  const before = await contentOf(pool)
  for (const { sql, file } of steps) {
    await pool.query(inSchema(sql, 'public'))
    t.strictSame(await contentOf(pool), before, `${file} changes no account and no record`)
  }
  await pool.query(inSchema(functionScript(false), 'public'))
  await at(start)

  const ledger = createLedger(createPool(t, connectionString), { allowance: 1000, prepare: !pglite })
  await ledger.migrate()
  t.match(await ledger.reconcile(), { ok: true, accounts: 3, differences: [] })
  for (const { name, row, again } of calls) {
    const { id, usageId, credits, balance: { total, used, held }, replayed } = await again(ledger)
    t.equal(replayed, true, `${name} is replayed`)
    t.strictSame({ total: `${total}`, used: `${used}`, held: `${held}` }, { total: row.total, used: row.used, held: row.held },
      'with the balance of then')
    t.equal(row.credits ?? `${credits}`, `${credits}`)
    t.ok([id, usageId].includes(String(row.id ?? row.record_id ?? id)))
  }
  t.strictSame(await contentOf(pool), before, 'and nothing is done again')

  await t.rejects(ledger.deduct({ ...charge, credits: 8, idempotencyKey: 'k' }), { code: 'FST_CREDITS_IDEMPOTENCY_CONFLICT' })
  t.match(await ledger.deduct(charge), { replayed: false })
  t.match(await ledger.reconcile(), { ok: true, differences: [] })
  await at('2030-06-01T00:00:00Z')
  await Promise.all(['ann', 'bob', 'new'].map(userId => ledger.balance(userId)))
  t.match(await ledger.prune({ before: '2030-05-01T00:00:00Z' }), { accounts: 3 })
  t.match(await ledger.reconcile(), { ok: true, differences: [] })
})

t.test('no step writes a table anew, nor an index of usage records', async t => {
  const { pool } = await databaseAt6(t)
  await live(pool)
  const files = async () => (await pool.query(`
    select relname as name, pg_relation_filenode(pg_class.oid) as file from pg_class left join pg_index on indexrelid = pg_class.oid
    where relname like 'ai\\_credit%' and (relkind = 'r' or indrelid = 'ai_credit_usage'::regclass) order by 1`)).rows
  const before = await files()
  t.equal(before.length, 9 + 5)
  for (const { sql } of steps) await pool.query(inSchema(sql, 'public'))
  t.strictSame((await files()).filter(({ name }) => before.some(one => one.name === name)), before)
})

// PGlite has one session.
t.test('a transaction that is open keeps its charges: the upgrade waits for it', { skip: pglite }, async t => {
  const { pool, connectionString } = await databaseAt6(t)
  const hosts = createPool(t, connectionString)
  const [ends, goesOn] = await Promise.all(['ann', 'bob'].map(async userId => {
    const client = await hosts.connect()
    await client.query('begin')
    const deduct = () => call(client, 'ai_credit_deduct', userId, 5, 'chat', '{}', null, allowance, 'UTC', 4500)
    t.match(await deduct(), { verdict: 'accepted' })
    return { client, deduct }
  }))
  const migration = createLedger(pool, { allowance: 1000 }).migrate()
  await until(() => pool.query('select from pg_locks where not granted'), ({ rowCount }) => rowCount! > 0)
  await ends!.client.query('commit')
  t.match(await goesOn!.deduct(), { verdict: 'accepted' })
  await goesOn!.client.query('commit')
  await migration
  ends!.client.release()
  goesOn!.client.release()

  const ledger = createLedger(pool, { allowance: 1000 })
  t.match(await ledger.balance('ann'), { used: 5 })
  t.match(await ledger.balance('bob'), { used: 10 })
  t.match(await ledger.reconcile(), { ok: true, differences: [] })
})

async function databaseAt6 (t: Test) {
  const { connectionString, setClock } = await createClockedDatabase(t, start)
  const pool = createPool(t, connectionString, { max: 2 })
  await pool.query(clockOfNumber6 + number6)
  await pool.query("select ai_credit_use_time_zone('UTC')")
  return { pool, connectionString, at: setClock }
}

async function call (db: pg.Pool | pg.PoolClient, name: string, ...values: unknown[]): Promise<Row> {
  return (await db.query(`select * from ${name}(${values.map((_, index) => `$${index + 1}`)})`, values)).rows[0]
}

/** Does by the functions of number 6 what they can do, and returns what each call that can be repeated was answered. */
async function live (pool: pg.Pool) {
  const deduct = (userId: string, credits: number, key: string | null) =>
    call(pool, 'ai_credit_deduct', userId, credits, 'chat', '{"words": 3}', key, allowance, 'UTC', 4500)
  const hold = async (userId: string, credits: number, key: string | null) =>
    await call(pool, 'ai_credit_hold', userId, credits, 'chat', '{}', day, key, ...terms)
  const capture = (id: unknown, credits: number, final: boolean, key: string | null) =>
    call(pool, 'ai_credit_capture', id, null, credits, null, final, 'partial', key, allowance, 'UTC', 4500)

  await call(pool, 'ai_credit_balance', 'new', ...terms)
  for (const userId of ['ann', 'bob', 'ann']) await deduct(userId, 20, null)
  const captured = String((await hold('bob', 20, null)).id)
  const released = String((await hold('bob', 30, null)).id)
  const revoked = String((await call(pool, 'ai_credit_grant', 'bob', 60, null, 'infinity', 60, null, ...terms)).id)

  const calls: { name: string, row: Row, again: (ledger: Ledger) => Promise<Answer> }[] = []
  async function made (name: string, row: Row, again: (ledger: Ledger) => Promise<Answer>) {
    calls.push({ name, row, again })
    return String(row.id)
  }
  await made('a deduct', await call(pool, 'ai_credit_deduct', 'ann', 7, 'chat', '{}', 'k', allowance, 'UTC', 4500),
    ledger => ledger.deduct({ ...charge, idempotencyKey: 'k' }))
  await made('a deduct with metadata', await deduct('bob', 5, 'k'),
    ledger => ledger.deduct({ userId: 'bob', credits: 5, operation: 'chat', metadata: { words: 3 }, idempotencyKey: 'k' }))
  await made('a grant', await call(pool, 'ai_credit_grant', 'ann', 50, 'bonus', '2030-03-01T00:00:00Z', 50, 'k', ...terms),
    ledger => ledger.grant({
      userId: 'ann', credits: 50, reason: 'bonus', expiresAt: '2030-03-01T00:00:00Z', priority: 50, idempotencyKey: 'k'
    }))
  const open = await made('a hold', await hold('ann', 40, 'k'),
    ledger => ledger.hold({ userId: 'ann', credits: 40, operation: 'chat', ttl: day, idempotencyKey: 'k' }))
  await made('a part of a capture', await capture(open, 10, false, 'k'),
    ledger => ledger.capture(open, { credits: 10, final: false, idempotencyKey: 'k' }))
  await made('a refund', await call(pool, 'ai_credit_refund', null, 'ann', 'k', 3, 'failed', 'k', allowance, 'UTC', 4500),
    ledger => ledger.refund({ userId: 'ann', deductKey: 'k', credits: 3, reason: 'failed', idempotencyKey: 'k' }))
  await made('a capture', await capture(captured, 15, true, null), ledger => ledger.capture(captured, { credits: 15 }))
  await made('a release', await call(pool, 'ai_credit_release', released, null, ...terms), ledger => ledger.release(released))
  await made('a revoke', await call(pool, 'ai_credit_revoke', revoked, null, ...terms), ledger => ledger.revoke(revoked))

  await call(pool, 'ai_credit_set_allowance', 'bob', '{"credits": 30, "every": "week"}', ...terms)
  await call(pool, 'ai_credit_set_overdraft', 'bob', 5, ...terms)
  await call(pool, 'ai_credit_execute', ['ann', 'bob'], JSON.stringify([
    [1, 'deduct', 'together', 1, 'chat', {}], [2, 'hold', 'together', 2, 'chat', {}, day]
  ]), allowance, 'UTC')
  return calls
}

async function contentOf (pool: pg.Pool): Promise<Row[]> {
  const tables = ['ai_credits', 'ai_credit_usage', 'ai_credit_daily_usage', 'ai_credit_grants', 'ai_credit_holds', 'ai_credit_events']
  const rows = await Promise.all(tables.map(table => pool.query(`select to_jsonb(r) as row from ${table} r order by 1`)))
  for (const { row } of rows[0]!.rows) delete row.summed_seq // of accounts: number 7 adds it
  for (const { row } of rows[3]!.rows) delete row.request_hash // of grants: number 7 drops it, as nothing reads it
  for (const { row } of [...rows[1]!.rows, ...rows[4]!.rows]) delete row.budgets // of records and holds: number 9 adds it
  return rows.flatMap(({ rows }) => rows)
}
