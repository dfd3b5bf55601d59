import type { FastifyInstance } from 'fastify'
import t, { type Test } from 'tap'
import { createLedger } from '../../src/index.js'
import { buildGateway, getBalance, postDeduct } from '../helper/app.js'
import { createDatabase, createPool, pglite } from '../helper/database.js'
import { originalTables } from '../helper/original-tables.js'
import { dumpDatabase, dumpSchema } from '../helper/schema-dump.js'

t.test('balances, records and ids survive', async t => {
  const nothing = {
    held_credits: '0', spent_before: '0', allocated: '0', opening_used: '0', overdraft: '0', seq: '0', due: 'infinity'
  }
  const app = await adopt(t, `
    insert into ai_credits values
      ('ann', 5000, 300, '2024-01-02 03:04:05.678901', '2024-02-03 04:05:06'), ('bob', 10, 0, '2024-01-01', '2024-01-01');
    insert into ai_credit_usage values
      (3, 'ann', 100, 'chat', '{"words": 7}', '2024-02-01 10:00:00'),
      (8, 'ann', 200, 'image', '{"b": 1, "a": 2}', '2024-02-03 04:05:06')`)
  t.strictSame(await getBalance(app, 'ann'), { available: 4700, total: 5000, used: 300 })
  t.strictSame(await getBalance(app, 'bob'), { available: 10, total: 10, used: 0 })
  t.strictSame(await rows(app, `
    select user_id, total_credits, used_credits, created_at at time zone 'UTC' || '' as created,
      updated_at at time zone 'UTC' || '' as updated, held_credits, spent_before, allocated, opening_total, opening_used,
      overdraft, seq, due_at || '' as due
    from ai_credits order by user_id`), [
    {
      user_id: 'ann',
      total_credits: '5000',
      used_credits: '300',
      created: '2024-01-02 03:04:05.678901',
      updated: '2024-02-03 04:05:06',
      ...{ ...nothing, opening_total: '5000', seq: '2' }
    },
    {
      user_id: 'bob',
      total_credits: '10',
      used_credits: '0',
      created: '2024-01-01 00:00:00',
      updated: '2024-01-01 00:00:00',
      ...{ ...nothing, opening_total: '10' }
    }
  ])
  const common = {
    user_id: 'ann',
    kind: 'deduct',
    total_after: '5000',
    held_after: '0',
    idempotency_key: null,
    request_hash: null,
    hold_id: null,
    amount: null,
    uncollected: null,
    refunded_id: null,
    reason: null,
    price_version: null,
    quantities: null,
    budgets: null
  }
  t.strictSame(await rows(app, `
    select *, created_at at time zone 'UTC' || '' as created_at from ai_credit_usage order by id`), [
    {
      ...common,
      ...{ id: '3', credits_used: '100', operation: 'chat', metadata: { words: 7 }, created_at: '2024-02-01 10:00:00' },
      ...{ seq: '1', used_after: '100' }
    },
    {
      ...common,
      ...{ id: '8', credits_used: '200', operation: 'image', metadata: { a: 2, b: 1 }, created_at: '2024-02-03 04:05:06' },
      ...{ seq: '2', used_after: '300' }
    }
  ])
})

t.test('the account\'s order is that of time, then of id', async t => {
  const app = await adopt(t, `
    insert into ai_credits (user_id, used_credits) values ('ann', 15);
    insert into ai_credit_usage (id, user_id, credits_used, operation, created_at) values
      (1, 'ann', 8, 'late', '2024-01-03'), (2, 'ann', 1, 'early', '2024-01-01'), (3, 'ann', 2, 'same', '2024-01-02'),
      (4, 'ann', 4, 'same', '2024-01-02')`)
  t.strictSame(await rows(app, 'select id, seq, used_after from ai_credit_usage order by seq'), [
    { id: '2', seq: '1', used_after: '1' },
    { id: '3', seq: '2', used_after: '3' },
    { id: '4', seq: '3', used_after: '7' },
    { id: '1', seq: '4', used_after: '15' }
  ])
})

t.test('daily usage is filled from the records, however many there are of one kind', async t => {
  const app = await adopt(t, `
    insert into ai_credits (user_id, used_credits) values ('ann', 111111);
    insert into ai_credit_usage (user_id, credits_used, operation, metadata, created_at) values
      ('ann', 1, 'chat', '{"b": 1, "a": 2}', '2024-12-03 00:00:00'), ('ann', 10, 'chat', '{"a": 2, "b": 1}', '2024-12-03 23:59:59.999'),
      ('ann', 100, 'chat', '{}', '2024-12-03 12:00:00'), ('ann', 1000, 'chat', null, '2024-12-03 12:00:00'),
      ('ann', 10000, 'image', '{}', '2024-12-03 12:00:00'), ('ann', 100000, 'chat', '{}', '2024-12-04 00:00:00')`)
  t.strictSame(await history(app, 'ann'), [
    { date: '2024-12-04', used: 100000, operation: 'chat', metadata: {} },
    { date: '2024-12-03', used: 10000, operation: 'image', metadata: {} },
    { date: '2024-12-03', used: 1100, operation: 'chat', metadata: {} },
    { date: '2024-12-03', used: 11, operation: 'chat', metadata: { a: 2, b: 1 } }
  ])
})

t.test('the days are those of the option timeZone', async t => {
  const app = await adopt(t, `
    insert into ai_credits (user_id, used_credits) values ('ann', 3);
    insert into ai_credit_usage (user_id, credits_used, operation, created_at) values
      ('ann', 1, 'chat', '2024-12-03 22:59:59'), ('ann', 2, 'chat', '2024-12-03 23:00:00')`,
  { timeZone: 'Europe/Berlin' })
  t.strictSame((await history(app, 'ann')).map(({ date, used }) => ({ date, used })),
    [{ date: '2024-12-04', used: 2 }, { date: '2024-12-03', used: 1 }])
})

// PGlite has one session, whose time zone no other can set.
t.test('old times are read in the server\'s time zone, in which they were written', { skip: pglite }, async t => {
  const connectionString = await createDatabase(t)
  const pool = createPool(t, connectionString)
  const { rows: [{ name }] } = await pool.query('select current_database() as name')
  await pool.query(`alter database ${name} set timezone to 'America/New_York'`)
  const app = await adopt(t, `
    insert into ai_credits values ('ann', 10, 1, '2024-07-01 12:00:00', '2024-12-03 20:00:00');
    insert into ai_credit_usage values (1, 'ann', 1, 'chat', '{}', '2024-12-03 20:00:00')`, { connectionString })
  t.strictSame(await rows(app, 'select created_at, updated_at from ai_credits'),
    [{ created_at: new Date('2024-07-01T16:00:00Z'), updated_at: new Date('2024-12-04T01:00:00Z') }])
  t.strictSame((await history(app, 'ann'))[0].date, '2024-12-04')
})

t.test('used_credits is kept where it differs from the records', async t => {
  const app = await adopt(t, `
    insert into ai_credits (user_id, used_credits) values ('more', 500), ('less', 50), ('none', 70), ('clean', 0);
    insert into ai_credit_usage (user_id, credits_used, operation, created_at) values
      ('more', 100, 'chat', '2024-01-01'), ('more', 200, 'chat', '2024-01-02'),
      ('less', 100, 'chat', '2024-01-01'), ('less', 200, 'chat', '2024-01-02')`)
  t.strictSame(await rows(app, `
    select user_id, used_credits, spent_before, allocated, opening_used, seq from ai_credits order by user_id`), [
    { user_id: 'clean', used_credits: '0', spent_before: '0', allocated: '0', opening_used: '0', seq: '0' },
    { user_id: 'less', used_credits: '50', spent_before: '250', allocated: '250', opening_used: '-250', seq: '2' },
    { user_id: 'more', used_credits: '500', spent_before: '-200', allocated: '-200', opening_used: '200', seq: '2' },
    { user_id: 'none', used_credits: '70', spent_before: '-70', allocated: '-70', opening_used: '70', seq: '0' }
  ])
  t.strictSame(await rows(app, 'select user_id, seq, used_after from ai_credit_usage order by user_id, seq'), [
    { user_id: 'less', seq: '1', used_after: '-150' },
    { user_id: 'less', seq: '2', used_after: '50' },
    { user_id: 'more', seq: '1', used_after: '300' },
    { user_id: 'more', seq: '2', used_after: '500' }
  ])
})

t.test('records of users without an account get one', async t => {
  const app = await adopt(t, `
    insert into ai_credit_usage (user_id, credits_used, operation, created_at) values ('ann', 30, 'chat', '2024-01-01')`)
  t.strictSame(await getBalance(app, 'ann'), { available: 10000, total: 10000, used: 0 })
  t.strictSame(await rows(app, 'select seq, spent_before from ai_credits'), [{ seq: '1', spent_before: '30' }])
  t.equal((await history(app, 'ann'))[0].used, 30)
})

t.test('gaps are filled with what a new row would have had', async t => {
  const app = await adopt(t, `
    insert into ai_credits values
      ('ann', null, null, null, null), ('bob', 5, 1, null, '2024-02-02'), ('cid', 5, 1, '2024-01-01', null);
    insert into ai_credit_usage values
      (1, null, null, null, null, null), (2, 'ann', 5, null, null, '2024-01-01'), (3, 'ann', null, 'chat', '{}', '2024-01-02')`)
  t.strictSame(await getBalance(app, 'ann'), { available: 10000, total: 10000, used: 0 })
  t.strictSame(await rows(app, `
    select user_id, created_at at time zone 'UTC' || '' as created, updated_at at time zone 'UTC' || '' as updated
    from ai_credits where user_id in ('bob', 'cid') order by user_id`), [
    { user_id: 'bob', created: '2024-02-02 00:00:00', updated: '2024-02-02 00:00:00' },
    { user_id: 'cid', created: '2024-01-01 00:00:00', updated: '2024-01-01 00:00:00' }
  ])
  t.strictSame(await rows(app, 'select id, user_id, credits_used, operation, metadata, seq from ai_credit_usage order by id'), [
    { id: '1', user_id: '', credits_used: '0', operation: '', metadata: {}, seq: '1' },
    { id: '2', user_id: 'ann', credits_used: '5', operation: '', metadata: {}, seq: '1' },
    { id: '3', user_id: 'ann', credits_used: '0', operation: 'chat', metadata: {}, seq: '2' }
  ])
  t.equal((await app.inject('/api/credits?user_id=ann')).statusCode, 200)
})

t.test('metadata that is no object is kept, and shown as one', async t => {
  const values = ['[1, "two"]', '"text"', '5', 'true', 'null']
  const app = await adopt(t, `
    insert into ai_credits (user_id) values ('ann');
    ${values.map((value, index) => `insert into ai_credit_usage values
      (${index + 1}, 'ann', ${5 - index}, 'chat', '${value}', current_timestamp);`).join('')}`)
  t.strictSame(await rows(app, 'select metadata::text from ai_credit_usage order by id'),
    values.map(metadata => ({ metadata })))
  const { usage_history: shown } = (await app.inject('/api/credits?user_id=ann')).json().credits
  t.strictSame(shown.map(({ metadata }: { metadata: unknown }) => metadata), values.map(value => JSON.parse(value)))
})

t.test('a metadata key __proto__ or of our own is data and harms nothing', async t => {
  const app = await adopt(t, `
    insert into ai_credits (user_id) values ('ann');
    insert into ai_credit_usage (user_id, credits_used, operation, metadata)
      values ('ann', 1, 'chat', '{"__proto__": {"polluted": true}, "constructor": 1, "used": 99, "date": "x", "operation": "y"}')`)
  const [entry] = await history(app, 'ann')
  t.equal(Object.getPrototypeOf(entry.metadata), Object.prototype)
  t.strictSame(Object.keys(entry.metadata).sort(), ['__proto__', 'constructor', 'date', 'operation', 'used'])
  const reply = await app.inject('/api/credits?user_id=ann')
  t.match(reply.body, '"__proto__":{"polluted":true}')
  const [shown] = JSON.parse(reply.body).credits.usage_history
  t.match(shown, { used: 1, operation: 'chat', constructor: 1, date: /^\d{4}-\d\d-\d\d$/ })
  t.equal(({} as { polluted?: boolean }).polluted, undefined)
})

t.test('new deducts continue where the old records end', async t => {
  const app = await adopt(t, `
    insert into ai_credits (user_id, used_credits) values ('ann', 30);
    insert into ai_credit_usage (user_id, credits_used, operation, created_at) values
      ('ann', 10, 'chat', '2024-01-01'), ('ann', 20, 'chat', '2024-01-02')`)
  const reply = await postDeduct(app, { user_id: 'ann', credits: 5, operation: 'chat' })
  t.strictSame(reply.json().credits, { available: 9965, total: 10000, used: 35 })
  t.strictSame(await rows(app, 'select id, seq, used_after from ai_credit_usage order by id'), [
    { id: '1', seq: '1', used_after: '10' }, { id: '2', seq: '2', used_after: '30' }, { id: '3', seq: '3', used_after: '35' }
  ])
})

t.test('ids go on beyond the old type', async t => {
  const app = await adopt(t, "select setval('ai_credit_usage_id_seq', 2147483647)")
  t.equal((await app.credits.deduct({ credits: 1, operation: 'chat' })).id, '2147483648')
})

t.test('balances go on beyond the old type', async t => {
  const app = await adopt(t, `
    insert into ai_credits (user_id, total_credits, used_credits) values ('ann', 2147483647, 2147483647);
    insert into ai_credit_usage (user_id, credits_used, operation) values ('ann', 2147483647, 'chat'), ('ann', 2147483647, 'chat')`)
  t.equal((await history(app, 'ann'))[0].used, 4294967294)
  await app.pg.query('update ai_credits set total_credits = 5000000000')
  t.equal((await app.credits.deduct({ userId: 'ann', credits: 2500000000, operation: 'chat' })).balance.used, 4647483647)
})

t.test('operations and users go on beyond the old length', async t => {
  const app = await adopt(t, '')
  const deduction = { user_id: 'ü'.repeat(255), credits: 1, operation: 'o'.repeat(255) }
  t.equal((await postDeduct(app, deduction)).statusCode, 200)
})

t.test('the second start changes nothing', async t => {
  const connectionString = await createDatabase(t)
  const app = await adopt(t, `
    insert into ai_credits (user_id, used_credits) values ('ann', 30), ('bob', 1);
    insert into ai_credit_usage (user_id, credits_used, operation) values ('ann', 10, 'chat'), (null, null, null)`, { connectionString })
  const before = await dumpDatabase(app.pg)
  await buildGateway(t, {}, { connectionString })
  t.equal(await dumpDatabase(app.pg), before)
})

t.test('sample data is not given to an adopted default user', async t => {
  const app = await adopt(t, "insert into ai_credits (user_id, total_credits) values ('default_user', 7)", { sampleData: true })
  t.strictSame(await getBalance(app), { available: 7, total: 7, used: 0 })
})

t.test('the catalog is that of a new database', async t => {
  const fresh = await buildGateway(t)
  const adopted = await adopt(t, '')
  t.equal(await dumpSchema(adopted.pg), await dumpSchema(fresh.pg))
})

interface Settings {
  connectionString?: string
  timeZone?: string
  sampleData?: boolean
}

// A gateway started on a database with the original tables, and these rows in them.
t.test('what keeps the tables from being checked is told as it is, and a later start adopts them', { skip: pglite }, async t => {
  const connectionString = await createDatabase(t)
  const pool = createPool(t, connectionString)
  await pool.query(originalTables)
  await pool.query(`alter database ${new URL(connectionString).pathname.slice(1)} set lock_timeout = '50ms'`)
  const client = await pool.connect()
  await client.query('begin; lock table ai_credits')
  const ledger = createLedger(createPool(t, connectionString))
  await t.rejects(ledger.migrate(), { code: '55P03' })
  await client.query('rollback')
  client.release()
  await ledger.migrate()
  t.match(await ledger.balance('ann'), { total: 10_000 })
})

async function adopt (t: Test, sql: string, { connectionString, ...options }: Settings = {}) {
  connectionString ??= await createDatabase(t)
  const pool = createPool(t, connectionString)
  await pool.query(originalTables)
  await pool.query(sql)
  return await buildGateway(t, options, { connectionString })
}

async function rows (app: FastifyInstance, query: string): Promise<any[]> {
  return (await app.pg.query(query)).rows
}

async function history (app: FastifyInstance, userId: string): Promise<any[]> {
  return (await app.credits.history(userId, { days: 36_500 })).entries
}
