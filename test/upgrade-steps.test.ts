// From the schema of every version to the newest, one migration after the other, with data in it. Written so that further
// migrations are covered as they come.
import { setTimeout as sleep } from 'node:timers/promises'
import type pg from 'pg'
import t, { type Test } from 'tap'
import { createLedger } from '../src/index.js'
import { migrations } from '../src/sql/index.js'
import { createClockedDatabase } from './helper/clock.js'
import { createPool, pglite } from './helper/database.js'

const start = '2030-01-01T00:00:00.000Z'
const allowance = JSON.stringify({ credits: 1000 })
const terms = [allowance, 4500]
const day = 86_400_000

/** What a function answers. */
type Row = Record<string, unknown>

for (const { id: from, file } of migrations.slice(0, -1)) {
  t.test(`from ${file} on`, async t => {
    const { pool, connectionString, at } = await databaseAt(t, from)
    const process = oldProcess(pool)
    const answers = await process.live()
    const balances = await balancesOf(pool)
    for (const { sql, file: next } of migrations.filter(({ id }) => id > from)) {
      await pool.query(sql)
      t.strictSame(await balancesOf(pool), balances, `${next} changes no balance`)
      t.strictSame(await process.replay(), answers, `and all that was done before ${next} is answered again`)
      t.strictSame(await balancesOf(pool), balances, 'without being done again')
    }

    const ledger = createLedger(createPool(t, connectionString), { allowance: 1000, prepare: !pglite })
    await ledger.migrate()
    t.match(await ledger.reconcile(), { ok: true, differences: [] })
    t.match(await ledger.deduct({ ...charge, idempotencyKey: 'k' }), { replayed: true })
    await t.rejects(ledger.deduct({ ...charge, credits: 8, idempotencyKey: 'k' }), { code: 'FST_CREDITS_IDEMPOTENCY_CONFLICT' })
    t.match(await ledger.deduct(charge), { replayed: false })
    t.match(await process.more(), { verdict: 'accepted' }, 'the old process goes on')
    t.match(await ledger.reconcile(), { ok: true, differences: [] })
    await at('2030-06-01T00:00:00Z')
    await Promise.all(['ann', 'bob', 'new'].map(userId => ledger.balance(userId)))
    t.match(await ledger.prune({ before: '2030-05-01T00:00:00Z' }), { accounts: 3 })
    t.match(await ledger.reconcile(), { ok: true, differences: [] })
  })
}

// A call that began with records of the old shape could not hand them to functions of the new one.
for (const { id, file, sql } of migrations.slice(1).filter(({ sql }) => /^alter table/m.test(sql))) {
  t.test(`${file} waits for calls that are under way`, { skip: pglite }, async t => {
    const { pool, connectionString } = await databaseAt(t, id - 1)
    const call = await pool.connect()
    await call.query("begin; select ai_credit_lock('ann', '{\"credits\":1000}', 4500)")
    const migration = pool.query(sql)
    const waiting = until(createPool(t, connectionString), "select from pg_locks where not granted and mode = 'AccessExclusiveLock'")
    t.equal(await Promise.race([waiting.then(() => 'waits'), migration.then(() => 'did not wait')]), 'waits')
    await call.query('commit')
    call.release()
    await migration
  })
}

async function until (pool: pg.Pool, query: string) {
  while ((await pool.query(query)).rowCount === 0) await sleep(5)
}

t.test('the functions of every version are there in the newest, with the same parameters and answers', async t => {
  const { pool } = await databaseAt(t, 1)
  const seen = new Map<string, number>()
  for (const { id, sql } of migrations) {
    if (id > 1) await pool.query(sql)
    const present = await signatures(pool)
    t.strictSame([...seen.keys()].filter(signature => !present.includes(signature)), [], `with migration ${id}`)
    for (const signature of present) if (!seen.has(signature)) seen.set(signature, id)
  }
  t.ok([...seen.keys()].some(signature => signature.startsWith('ai_credit_deduct(')))
})

const charge = { userId: 'ann', credits: 7, operation: 'chat' }

async function databaseAt (t: Test, version: number) {
  const { connectionString, setClock } = await createClockedDatabase(t, start)
  const pool = createPool(t, connectionString, { max: 2 })
  // Migration 1 asks with this one, too, whether it is late.
  await pool.query(`create or replace function test_clock.clock_timestamp() returns timestamptz
    language sql stable return statement_timestamp()`)
  for (const { id, sql } of migrations) if (id <= version) await pool.query(sql)
  await pool.query("select ai_credit_use_time_zone('UTC')")
  return { pool, connectionString, at: setClock }
}

/** What a process does by the functions that its version of the schema has, on connections that stay. */
function oldProcess (pool: pg.Pool) {
  const ids: Row = {}
  let known: string[]

  // Answers nothing where this version had no such function.
  async function call (name: string, ...values: unknown[]): Promise<Row | undefined> {
    if (!known.includes(name)) return
    const text = `select * from ${name}(${values.map((_, index) => `$${index + 1}`)})`
    return (await pool.query({ text, values, ...!pglite && { name } })).rows[0]
  }

  const deduct = (userId: string, credits: number, key: string | null) =>
    call('ai_credit_deduct', userId, credits, 'chat', '{"words": 3}', key, allowance, 'UTC', 4500)
  const capture = (id: unknown, credits: number, final: boolean, key: string | null) =>
    call('ai_credit_capture', id, null, credits, null, final, 'partial', key, allowance, 'UTC', 4500)

  const keyed: Array<() => Promise<Row | undefined>> = [
    () => call('ai_credit_deduct', 'ann', 7, 'chat', '{}', 'k', allowance, 'UTC', 4500),
    () => deduct('bob', 5, 'k'),
    () => call('ai_credit_grant', 'ann', 50, 'bonus', '2030-03-01T00:00:00Z', 50, 'k', ...terms),
    async () => {
      const row = await call('ai_credit_hold', 'ann', 40, 'chat', '{}', day, 'k', ...terms)
      ids.hold = row?.id
      return row
    },
    () => capture(ids.hold, 10, false, 'k'),
    () => call('ai_credit_refund', null, 'ann', 'k', 3, 'failed', 'k', allowance, 'UTC', 4500),
    async () => ids.closed === undefined ? undefined : await capture(ids.closed, 15, true, null),
    async () => ids.released === undefined ? undefined : await call('ai_credit_release', ids.released, null, ...terms),
    async () => ids.grant === undefined ? undefined : await call('ai_credit_revoke', ids.grant, null, ...terms)
  ]

  async function answers () {
    const rows = []
    for (const call of keyed) rows.push(await call())
    // That it is a replay may differ, and what nobody reads but where a call is refused.
    return rows.map(row => row === undefined ? undefined : { ...row, verdict: '', required: '' })
  }

  return {
    async live () {
      known = (await pool.query("select proname from pg_proc where proname like 'ai_credit_%'")).rows.map(({ proname }) => proname)
      await call('ai_credit_balance', 'new', ...terms)
      for (const userId of ['ann', 'bob', 'ann']) await deduct(userId, 20, null)
      ids.closed = (await call('ai_credit_hold', 'bob', 20, 'chat', '{}', day, null, ...terms))?.id
      ids.released = (await call('ai_credit_hold', 'bob', 30, 'chat', '{}', day, null, ...terms))?.id
      ids.grant = (await call('ai_credit_grant', 'bob', 60, null, 'infinity', 60, null, ...terms))?.id
      const first = await answers()
      await call('ai_credit_set_allowance', 'bob', '{"credits": 30, "every": "week"}', ...terms)
      await call('ai_credit_set_overdraft', 'bob', 5, ...terms)
      await call('ai_credit_execute', ['ann', 'bob'], JSON.stringify([
        [1, 'deduct', 'together', 1, 'chat', {}], [2, 'hold', 'together', 2, 'chat', {}, day]
      ]), allowance, 'UTC')
      return first
    },
    replay: answers,
    more: () => deduct('bob', 1, null)
  }
}

async function balancesOf (pool: pg.Pool) {
  return (await pool.query('select user_id, total_credits, used_credits, held_credits, seq from ai_credits order by 1')).rows
}

async function signatures (pool: pg.Pool): Promise<string[]> {
  const { rows } = await pool.query(`
    select proname || '(' || pg_get_function_identity_arguments(oid) || ') returns ' || pg_get_function_result(oid) as line
    from pg_proc where proname like 'ai\\_credit\\_%'`)
  return rows.map(({ line }) => line)
}
