// not on Citus: tables are distributed or partitioned
import { randomUUID } from 'node:crypto'
import { fileURLToPath } from 'node:url'
import t, { type Test } from 'tap'
import { createLedger } from '../../src/index.js'
import { onLedger, type ClockedLedger } from '../helper/clocked-ledger.js'
import { createDatabase, createPool, pglite } from '../helper/database.js'
import { psql, scripts, skipped } from '../helper/psql.js'
import { partitionScript } from '../../bench/ledger-scripts.js'
import { partitionFile } from '../helper/templates.js'

const charge = { userId: 'ann', credits: 7, operation: 'chat' }

const month = (number: number, day = 10) => new Date(Date.UTC(2030, number - 1, day)).toISOString()

function partitionTest (name: string, body: (t: Test, ledger: ClockedLedger & { partition: () => Promise<void> }) => Promise<void>) {
  t.test(name, onLedger(month(1), { allowance: 10_000 }, async (t, ledger) => {
    await body(t, { ...ledger, async partition () { await ledger.pool.query(partitionScript) } })
  }))
}

partitionTest('what was there is answered as before, in sessions that were there before too', async (t, { credits, pool, partition }) => {
  const keyed = { ...charge, idempotencyKey: 'k' }
  const first = await credits.deduct(keyed)
  const { id } = await credits.hold({ ...charge, credits: 50 })
  const capture = await credits.capture(id, { credits: 10, final: false, idempotencyKey: 'part' })
  await credits.refund({ usageId: first.id, credits: 2 })
  await Promise.all(Array.from({ length: 50 }, () => credits.deduct(charge)))
  const statement = await credits.statement('ann')
  await partition()

  t.strictSame(await credits.statement('ann'), statement)
  t.match(await credits.reconcile(), { ok: true, accounts: 1 })
  t.strictSame(await credits.deduct(keyed), { ...first, replayed: true })
  await t.rejects(credits.deduct({ ...keyed, credits: 8 }), { code: 'FST_CREDITS_IDEMPOTENCY_CONFLICT' })
  t.strictSame(await credits.capture(id, { credits: 10, final: false, idempotencyKey: 'part' }), { ...capture, replayed: true })
  await t.rejects(credits.refund({ usageId: first.id, credits: 6 }), { code: 'FST_CREDITS_REFUND_EXCEEDS' })
  t.match(await Promise.all(Array.from({ length: 50 }, (_, i) => credits.deduct({ ...charge, idempotencyKey: `${i % 25}` }))), [])
  t.strictSame((await pool.query("select count(*)::int from ai_credit_usage where kind = 'deduct'")).rows, [{ count: 76 }])
  await credits.migrate()
})

partitionTest('a second run changes nothing', async (t, { credits, partition, pool }) => {
  await partition()
  await credits.deduct(charge)
  const partitions = async () => (await pool.query("select inhrelid::regclass::text as name from pg_inherits where inhparent = 'ai_credit_usage'::regclass order by 1")).rows
  const before = await partitions()
  t.equal(before.length, 5)
  await partition()
  t.strictSame(await partitions(), before)
})

partitionTest('keys, refunds, holds and statements reach over months', async (t, { credits, pool, at, partition }) => {
  await partition()
  const keyed = { ...charge, idempotencyKey: 'k' }
  const first = await credits.deduct(keyed)
  await at(month(2))
  const hold = await credits.hold({ ...charge, credits: 40, ttl: 86_400_000 })
  const { id } = await credits.capture(hold.id, { credits: 10, final: false, idempotencyKey: 'part' })
  await at(month(5))
  t.strictSame(await credits.deduct(keyed), { ...first, replayed: true })
  await Promise.all(Array.from({ length: 20 }, (_, i) => credits.deduct({ ...keyed, idempotencyKey: `k${i % 2 ? '' : i}` })))
  await credits.refund({ usageId: id })
  await credits.refund({ userId: 'ann', deductKey: 'k' })
  t.strictSame((await credits.statement('ann')).entries.map(({ seq }) => seq), Array.from({ length: 17 }, (_, seq) => seq))
  const { rows } = await pool.query('select tableoid::regclass::text as name, count(*)::int from ai_credit_usage group by 1 order by 1 desc')
  t.strictSame(rows, [
    { name: 'ai_credit_usage_default', count: 12 },
    { name: 'ai_credit_usage_before', count: 1 },
    { name: 'ai_credit_usage_2030_02', count: 1 }
  ])
})

partitionTest('the table says of itself and of its rows what it said before', async (t, { credits, pool, partition }) => {
  await credits.deduct(charge)
  const said = async () => (await pool.query("select obj_description('ai_credit_usage'::regclass, 'pg_class') as said")).rows[0].said
  const before = await said()
  t.match(before, /^Usage records/)
  await partition()
  t.equal(await said(), before)
  for (const table of ['ai_credit_usage', 'ai_credit_usage_before', 'ai_credit_usage_2030_02', 'ai_credit_usage_default']) {
    t.strictSame((await pool.query("select convalidated from pg_constraint where conrelid = $1::regclass and conname = 'ai_credit_usage_kind'",
      [table])).rows, [{ convalidated: true }], table)
  }
  await t.rejects(pool.query("update ai_credit_usage set kind = 'other'"), { code: '23514' })
})

partitionTest('partitions that were pruned can be dropped', async (t, { credits, pool, at, partition }) => {
  await partition()
  for (const metadata of [{}, { words: 3 }]) await credits.deduct({ ...charge, metadata })
  const { id: usageId } = await credits.deduct(charge)
  const drop = async () => (await pool.query('select ai_credit_usage_drop_partitions() as name')).rows
  t.strictSame(await drop(), [], 'not this month')
  await at(month(2))
  await credits.refund({ usageId, credits: 2 })
  const history = await credits.history('ann', { days: 90 })
  t.match(await credits.prune({ before: month(2, 1) }), { records: 2 })
  t.match(await credits.reconcile(), { ok: true })
  t.strictSame(await drop(), [], 'a record of it was refunded since')
  await at(month(3))
  await pool.query('select ai_credit_usage_add_partitions(3)')
  t.match(await credits.prune({ before: month(3, 1) }), { records: 2 })
  t.strictSame(await drop(), [{ name: 'ai_credit_usage_before' }, { name: 'ai_credit_usage_2030_02' }])
  t.strictSame(await credits.history('ann', { days: 90 }), history)
  t.match(await credits.deduct(charge), { replayed: false })
})

partitionTest('functions and views keep what they were, and who may use them', async (t, { pool, partition }) => {
  const role = `reader_${randomUUID().replaceAll('-', '')}`
  await pool.query(`create role ${role}; grant select on ai_credit_usage, ai_credit_entries to ${role};
    grant execute on all functions in schema public to ${role}`)
  t.teardown(() => pool.query(`drop owned by ${role}; drop role ${role}`))
  const properties = async () => (await pool.query(`
    select pg_get_functiondef(oid) || coalesce(obj_description(oid, 'pg_proc'), '') as is, pg_get_userbyid(proowner) as owner, has_function_privilege('public', oid, 'execute') as everybody,
      has_function_privilege('${role}', oid, 'execute') as reader
    from pg_proc where proname like 'ai\\_credit\\_%' and proname not like 'ai\\_credit\\_usage\\_%'
    union all
    select relname || pg_get_viewdef(pg_class.oid) || obj_description(pg_class.oid, 'pg_class'), pg_get_userbyid(relowner), has_table_privilege('public', pg_class.oid, 'select'),
      has_table_privilege('${role}', pg_class.oid, 'select')
    from pg_class where relname = 'ai_credit_entries'
    order by 1`)).rows
  const before = await properties()
  t.ok(before.some(({ is }) => /SECURITY DEFINER/.test(is)))
  await partition()
  t.strictSame(await properties(), before)
  t.strictSame((await pool.query(`select has_table_privilege('${role}', 'ai_credit_usage', 'select') as reads`)).rows, [{ reads: true }])
  t.strictSame((await pool.query(`select has_function_privilege('public', oid, 'execute') as everybody from pg_proc
    where proname like 'ai\\_credit\\_usage\\_%'`)).rows, [{ everybody: false }, { everybody: false }])
})

// Objects that a role may create in a schema of the search_path: equal names, with exactly the types that a call has.
const hostile = ['date_trunc(text, timestamp) returns timestamp', 'to_char(timestamp, text) returns text', 'to_regclass(text) returns regclass',
  'pg_get_viewdef(regclass) returns text', 'pg_get_functiondef(oid) returns text', 'to_char(timestamp, varchar) returns text',
  'current_setting(text) returns text', 'array_cat(text[], text[]) returns text[]', 'set_config(text, varchar, boolean) returns text']

t.test('psql runs it for the schema that it is told, whatever the search_path finds', { skip: skipped }, async t => {
  const connectionString = await createDatabase(t)
  const pool = createPool(t, connectionString)
  await pool.query('create schema "The ledger\'s"; create schema hostile')
  for (const signature of hostile) {
    await pool.query(`create function hostile.${signature} language plpgsql as $$ begin raise 'taken over'; end $$`)
  }
  await psql(connectionString, scripts, ['-v', "schema=The ledger's"])
  const path = `${connectionString}&options=-csearch_path%3Dhostile,pg_catalog`
  for (const run of ['first', 'second']) await psql(path, [fileURLToPath(partitionFile)], ['-v', "schema=The ledger's"]).then(() => t.pass(run))

  const client = createPool(t, connectionString)
  client.on('connect', client => client.query('set search_path to hostile, pg_catalog'))
  await client.query('select "The ledger\'s".ai_credit_usage_add_partitions(5)')
  await client.query('select "The ledger\'s".ai_credit_usage_drop_partitions()')
  t.strictSame((await pool.query('select count(*)::integer from pg_inherits where inhparent = $1::regclass', ['"The ledger\'s".ai_credit_usage'])).rows,
    [{ count: 7 }], 'those of five months, of before, and the default')
})

t.test('psql finds the schema by the search_path', { skip: skipped || pglite }, async t => {
  const connectionString = await createDatabase(t)
  const pool = createPool(t, connectionString)
  const ledger = createLedger(pool, { schema: 'credits', prepare: !pglite })
  await ledger.migrate()
  const { id } = await ledger.deduct({ ...charge, idempotencyKey: 'k' })
  await t.rejects(psql(connectionString, [fileURLToPath(partitionFile)]), { message: /no rows returned/ })
  await psql(`${connectionString}&options=-csearch_path%3Dpublic,credits`, [fileURLToPath(partitionFile)])
  t.strictSame((await pool.query("select relkind from pg_class where oid = 'credits.ai_credit_usage'::regclass")).rows, [{ relkind: 'p' }])
  t.match(await ledger.deduct({ ...charge, idempotencyKey: 'k' }), { id, replayed: true })
  t.match(await ledger.reconcile(), { ok: true, accounts: 1 })
})
