import pg from 'pg'
import t, { type Test } from 'tap'
import { createLedger, type Connection, type LedgerOptions } from '../../src/index.js'
import { defaults } from '../helper/app.js'
import { createDatabase, createPool, pglite } from '../helper/database.js'
import { originalTables } from '../helper/original-tables.js'

const charge = { userId: 'ann', credits: 10, operation: 'chat', metadata: { words: 3 } }
const today = () => new Date().toISOString().slice(0, 10)
const shared: LedgerOptions = { prepare: defaults.prepare ?? true }

t.test('a ledger needs a pool and nothing else', async t => {
  const { ledger } = await migrated(t)
  const { id, ...deduction } = await ledger.deduct(charge)
  t.match(id, /^\d+$/)
  t.strictSame(deduction, {
    userId: 'ann',
    credits: 10,
    operation: 'chat',
    balance: { available: 9990, total: 10000, used: 10, held: 0 },
    replayed: false
  })
  t.strictSame(await ledger.balance('ann'), deduction.balance)
  const { entries, cursor } = await ledger.history('ann')
  t.strictSame(entries.map(({ date: _date, ...entry }) => entry), [{ used: 10, operation: 'chat', metadata: { words: 3 } }])
  t.equal(cursor, null)
})

t.test('it has the methods of the contract and no others', async t => {
  const { ledger } = await migrated(t)
  t.strictSame(Object.keys(ledger).sort(), [
    'balance', 'budgets', 'canAfford', 'capture', 'close', 'deduct', 'extend', 'grant', 'history', 'hold', 'migrate', 'off', 'on', 'once', 'prune',
    'quote', 'reconcile', 'refund', 'release', 'removeBudget', 'revoke', 'setAllowance', 'setBudget', 'setOverdraft', 'statement'
  ])
  t.strictSame(Object.keys(await ledger.history()).sort(), ['cursor', 'entries'])
})

t.test('its methods can be taken off it', async t => {
  const { ledger: { deduct, balance, history, migrate, close } } = await migrated(t)
  await migrate()
  t.equal((await deduct({ credits: 1, operation: 'chat' })).userId, 'default_user')
  t.equal((await balance()).used, 1)
  t.equal((await history()).entries.length, 1)
  await close()
})

t.test('its options are those of the contract', async t => {
  const { ledger } = await migrated(t, { defaultUser: 'house', allowance: 50, historyDays: 1, historyLimit: 1 })
  t.equal((await ledger.deduct({ credits: 1, operation: 'chat' })).userId, 'house')
  await ledger.deduct({ credits: 1, operation: 'image' })
  t.strictSame(await ledger.balance(), { available: 48, total: 50, used: 2, held: 0 })
  t.equal((await ledger.history()).entries.length, 1)
  t.type((await ledger.history()).cursor, 'string')
})

t.test('without a default user, every call names its account', async t => {
  const { ledger } = await migrated(t, { defaultUser: null })
  await t.rejects(ledger.deduct({ credits: 1, operation: 'chat' }), { code: 'FST_CREDITS_INVALID', field: 'userId' })
  await t.rejects(ledger.balance(), { code: 'FST_CREDITS_INVALID', field: 'userId' })
  await t.rejects(ledger.history(), { code: 'FST_CREDITS_INVALID', field: 'userId' })
  t.equal((await ledger.deduct(charge)).userId, 'ann')
})

t.test('options of the plugin, unknown and malformed ones are refused', async t => {
  const pool = createPool(t, await createDatabase(t))
  for (const [name, value] of Object.entries({ prefix: '/api', migrate: true, allowence: 1, allowance: '1', timeout: 0 })) {
    t.throws(() => createLedger(pool, { [name]: value }), { code: 'FST_CREDITS_INVALID_OPTION', option: name }, name)
  }
})

t.test('without migrate() an empty database is refused, until it is migrated', async t => {
  const ledger = createLedger(createPool(t, await createDatabase(t)), shared)
  await t.rejects(ledger.deduct(charge), { code: 'FST_CREDITS_MIGRATION_REQUIRED' })
  await t.rejects(ledger.balance(), { code: 'FST_CREDITS_MIGRATION_REQUIRED' })
  await t.rejects(ledger.history(), { code: 'FST_CREDITS_MIGRATION_REQUIRED' })
  await ledger.migrate()
  t.equal((await ledger.deduct(charge)).balance.used, 10)
})

t.test('on a migrated database it needs no migrate()', async t => {
  const { pool } = await migrated(t)
  t.equal((await createLedger(pool, shared).deduct(charge)).balance.used, 10)
})

t.test('a second migrate() does nothing', async t => {
  const { ledger } = await migrated(t)
  await ledger.deduct(charge)
  await ledger.migrate()
  t.equal((await ledger.balance('ann')).used, 10)
})

t.test('a ledger with another time zone is refused', async t => {
  const { pool } = await migrated(t)
  const other = createLedger(pool, { ...shared, timeZone: 'Asia/Tokyo' })
  await t.rejects(other.migrate(), { code: 'FST_CREDITS_TIME_ZONE' })
  await t.rejects(other.deduct(charge), { code: 'FST_CREDITS_TIME_ZONE' })
})

t.test('a time zone that only JavaScript knows is refused', async t => {
  const pool = createPool(t, await createDatabase(t))
  await t.rejects(async () => await createLedger(pool, { ...defaults, timeZone: 'SystemV/AST4' }).migrate(),
    { code: 'FST_CREDITS_INVALID_OPTION', option: 'timeZone' })
  t.strictSame((await pool.query('select from ai_credit_settings')).rows, [])
})

t.test('tables that were taken away are an outage', async t => {
  const { pool } = await migrated(t)
  await pool.query('alter table ai_credit_settings rename to elsewhere')
  await t.rejects(createLedger(pool, defaults).balance('ann'), { code: 'FST_CREDITS_UNAVAILABLE', cause: { code: '42P01' } })
})

t.test('close() waits for calls under way and refuses later ones', async t => {
  const { ledger, pool } = await migrated(t)
  const calls = Array.from({ length: 20 }, () => ledger.deduct(charge))
  await ledger.close()
  t.strictSame((await pool.query('select used_credits from ai_credits')).rows, [{ used_credits: '200' }])
  await Promise.all(calls)
  const unavailable = { statusCode: 503, code: 'FST_CREDITS_UNAVAILABLE' }
  await t.rejects(ledger.deduct(charge), unavailable)
  await t.rejects(ledger.balance(), unavailable)
  await t.rejects(ledger.history(), unavailable)
  await t.rejects(ledger.migrate(), unavailable)
  await ledger.close()
  t.equal((await createLedger(pool, shared).balance('ann')).used, 200, 'the pool is still the caller\'s')
})

t.test('two ledgers on one pool keep out of each other\'s way', async t => {
  const { ledger, pool } = await migrated(t)
  const other = createLedger(pool, { ...shared, defaultUser: 'bob', allowance: 5 })
  await Promise.all([ledger.deduct({ credits: 1, operation: 'chat' }), other.deduct({ credits: 2, operation: 'chat' })])
  t.equal((await ledger.balance()).available, 9999)
  t.equal((await other.balance()).available, 3)
  await other.close()
  t.equal((await ledger.balance()).available, 9999)
})

t.test('many ledgers on one pool listen to it once', async t => {
  const pool = createPool(t, await createDatabase(t))
  createLedger(pool)
  const before = pool.listenerCount('error')
  for (let count = 0; count < 20; count++) createLedger(pool)
  t.equal(pool.listenerCount('error'), before)
})

t.test('a pool of one connection is enough', async t => {
  const { ledger } = await migrated(t, {}, { max: 1 })
  const calls = Array.from({ length: 50 }, () => ledger.deduct(charge))
  await Promise.all([...calls, ledger.balance('ann'), ledger.history('ann')])
  t.equal((await ledger.balance('ann')).used, 500)
})

t.test('connections are given back as they were lent', async t => {
  const { pool } = await migrated(t, {}, { max: 1 })
  const ledger = createLedger(pool, shared)
  const before = await listeners(pool)
  for (let count = 0; count < 30; count++) await ledger.deduct(charge)
  await t.rejects(ledger.deduct({ ...charge, credits: 100_000 }), { code: 'FST_CREDITS_INSUFFICIENT' })
  t.equal(await listeners(pool), before)
  t.equal(pool.idleCount, 1)
})

t.test('all a ledger needs of a pool is connect and on', async t => {
  const { pool } = await migrated(t)
  const ledger = createLedger({ connect: () => pool.connect() as Promise<Connection>, on: () => {} }, shared)
  t.equal((await ledger.deduct(charge)).balance.used, 10)
})

t.test('prepared statements have names, and none without prepare', { skip: pglite }, async t => {
  const { pool } = await migrated(t, {}, { max: 1 })
  const names = async () => (await pool.query('select name from pg_prepared_statements order by name')).rows.map(({ name }) => name)
  const use = async (options: LedgerOptions) => {
    const ledger = createLedger(pool, options)
    await ledger.deduct(charge)
    await ledger.balance('ann')
    await ledger.history('ann')
  }
  await use({ prepare: false })
  t.strictSame(await names(), [])
  await use({})
  t.strictSame(await names(), ['ai_credit_balance', 'ai_credit_deduct', 'ai_credit_history'])
})

// A host may set the type parsers of its pg: bigint as BigInt or number, jsonb as text, and any form of dates.
t.test('the host\'s type parsers change no answer', async t => {
  const connectionString = await createDatabase(t)
  const plain = createLedger(createPool(t, connectionString), shared)
  await plain.migrate()
  const call = { ...charge, idempotencyKey: 'k' }
  const { id } = await plain.deduct(call)
  const parsers: Array<(value: string) => unknown> = [BigInt, Number, String]
  for (const parse of parsers) {
    const types = {
      getTypeParser: (oid: number) =>
        oid === pg.types.builtins.INT8 ? parse : (value: string) => oid === pg.types.builtins.INT4 ? Number(value) : value
    }
    const ledger = createLedger(createPool(t, connectionString, { types: types as unknown as pg.CustomTypesConfig }), shared)
    t.strictSame(await ledger.deduct(call), { ...(await plain.deduct(call)), id, replayed: true })
    t.strictSame(await ledger.balance('ann'), { available: 9990, total: 10000, used: 10, held: 0 })
    const history = await ledger.history('ann', { limit: 1 })
    t.strictSame(history, await plain.history('ann'))
    t.ok(history.entries[0]!.date <= today())
    await ledger.migrate()
    const adopting = createPool(t, await createDatabase(t), { types: types as unknown as pg.CustomTypesConfig })
    await adopting.query(originalTables)
    const adopted = createLedger(adopting, shared)
    await adopted.migrate()
    t.match(await adopted.balance('ann'), { total: 10000 })
  }
})

async function migrated (t: Test, options: LedgerOptions = {}, poolOptions: pg.PoolConfig = {}) {
  const pool = createPool(t, await createDatabase(t), poolOptions)
  const ledger = createLedger(pool, { ...shared, ...options })
  await ledger.migrate()
  return { pool, ledger }
}

async function listeners (pool: pg.Pool) {
  const client = await pool.connect()
  try {
    return client.listenerCount('error')
  } finally {
    client.release()
  }
}
