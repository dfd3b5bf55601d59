import type { FastifyInstance } from 'fastify'
import t, { type Test } from 'tap'
import { createLedger, type Queryable } from '../../src/index.js'
import { buildGateway, defaults } from '../helper/app.js'
import { citus } from '../helper/citus.js'
import { activity, createDatabase, createLedgerDatabase, createPool, pglite } from '../helper/database.js'

const charge = { userId: 'ann', credits: 10, operation: 'chat' }
// Tests that wait for another session: PGlite has only one.
const contention = { skip: pglite }

t.test('the charge commits with the host\'s writes', async t => {
  const { app, client } = await inTransaction(t)
  await client.query('insert into videos values (1)')
  const { balance } = await app.credits.deduct({ ...charge, client })
  t.strictSame(balance, { available: 9990, total: 10000, used: 10, held: 0 })
  await client.query('commit')
  t.equal((await app.credits.balance('ann')).used, 10)
  t.strictSame(await count(app, 'videos'), 1)
  t.strictSame(await count(app, 'ai_credit_usage'), 1)
})

t.test('the charge goes with the host\'s rollback, the account too', async t => {
  const { app, client } = await inTransaction(t)
  await app.credits.deduct({ ...charge, client })
  await app.credits.deduct({ ...charge, idempotencyKey: 'k', client })
  await client.query('rollback')
  for (const table of ['ai_credits', 'ai_credit_usage', 'ai_credit_daily_usage']) t.equal(await count(app, table), 0, table)
})

t.test('a key commits with the host\'s writes', async t => {
  const { app, client } = await inTransaction(t)
  const first = await app.credits.deduct({ ...charge, idempotencyKey: 'k', client })
  await client.query('commit')
  t.strictSame(await app.credits.deduct({ ...charge, idempotencyKey: 'k' }), { ...first, replayed: true })
  t.strictSame(await app.credits.deduct({ ...charge, idempotencyKey: 'k', client }), { ...first, replayed: true })
})

t.test('outside a transaction the charge commits at once', async t => {
  const { app, client } = await inTransaction(t)
  await client.query('rollback')
  await app.credits.deduct({ ...charge, client })
  t.equal((await app.credits.balance('ann')).used, 10)
})

t.test('a refusal leaves the transaction usable', async t => {
  const { app, client } = await inTransaction(t)
  await client.query('insert into videos values (1)')
  await t.rejects(app.credits.deduct({ ...charge, credits: 10_001, client }), { code: 'FST_CREDITS_INSUFFICIENT', required: 10_001 })
  await app.credits.deduct({ ...charge, idempotencyKey: 'k', client })
  await t.rejects(app.credits.deduct({ ...charge, credits: 1, idempotencyKey: 'k', client }), { code: 'FST_CREDITS_IDEMPOTENCY_CONFLICT' })
  await t.rejects(app.credits.deduct({ ...charge, credits: 0, client }), { code: 'FST_CREDITS_INVALID' })
  await client.query('commit')
  t.equal(await count(app, 'videos'), 1)
  t.equal((await app.credits.balance('ann')).used, 10)
})

t.test('a savepoint takes the charge back alone', async t => {
  const { app, client } = await inTransaction(t)
  await app.credits.deduct({ ...charge, client })
  await client.query('savepoint before')
  await app.credits.deduct({ ...charge, client })
  await client.query('rollback to before')
  await client.query('commit')
  t.equal((await app.credits.balance('ann')).used, 10)
})

t.test('what is no client is refused', async t => {
  const { credits } = await buildGateway(t)
  for (const client of [null, {}, 'client', { query: 1 }]) {
    await t.rejects(credits.deduct({ ...charge, client: client as unknown as Queryable }), { code: 'FST_CREDITS_INVALID', field: 'client' })
  }
})

t.test('all that is needed of a client is a method query', async t => {
  const { app, client } = await inTransaction(t)
  const queryable: Queryable = { query: async (text, values) => ({ rows: (await client.query(text, values)).rows }) }
  await app.credits.deduct({ ...charge, client: queryable })
  await client.query('rollback')
  t.equal(await count(app, 'ai_credits'), 0)
})

t.test('a pool of one is enough, also for a ledger that has not been used yet', async t => {
  const connectionString = await createLedgerDatabase(t)
  await createLedger(createPool(t, connectionString), ledgerOptions).migrate()
  const pool = createPool(t, connectionString, { max: 1 })
  const ledger = createLedger(pool, ledgerOptions)
  const client = await pool.connect()
  await client.query('begin')
  t.equal((await ledger.deduct({ ...charge, client })).balance.used, 10)
  t.equal((await ledger.deduct({ ...charge, client })).balance.used, 20)
  await client.query('commit')
  client.release()
  t.equal((await ledger.balance('ann')).used, 20)
})

t.test('a ledger that has not been used yet checks the client\'s database', async t => {
  const pool = createPool(t, await createDatabase(t))
  const client = await pool.connect()
  t.teardown(() => client.release())
  await t.rejects(createLedger(pool, ledgerOptions).deduct({ ...charge, client }), { code: 'FST_CREDITS_MIGRATION_REQUIRED' })
})

t.test('a closed ledger charges nothing through a client either', async t => {
  const pool = createPool(t, await createLedgerDatabase(t))
  const ledger = createLedger(pool, ledgerOptions)
  await ledger.migrate()
  await ledger.close()
  const queries: string[] = []
  const client = { query: async (text: string) => { queries.push(text); return { rows: [] } } }
  await t.rejects(ledger.deduct({ ...charge, client }), { code: 'FST_CREDITS_UNAVAILABLE' })
  t.strictSame(queries, [])
})

t.test('the host\'s lock_timeout stays as it was', async t => {
  const { app, client } = await inTransaction(t)
  await client.query("set local lock_timeout to '123s'")
  await app.credits.deduct({ ...charge, client }) // creates the account, the slow way
  await app.credits.deduct({ ...charge, client })
  t.strictSame((await client.query('show lock_timeout')).rows, [{ lock_timeout: '123s' }])
  await client.query('commit')
  t.strictSame((await client.query('show lock_timeout')).rows, [{ lock_timeout: '0' }])
})

t.test('the host\'s lock_timeout stays as it was after a wait too', contention, async t => {
  const { app, client } = await inTransaction(t)
  const unlock = await lock(t, app, 'ann')
  const waiting = app.credits.deduct({ ...charge, client })
  await someoneWaits(app)
  await unlock()
  t.equal((await waiting).balance.used, 10)
  t.strictSame((await client.query('show lock_timeout')).rows, [{ lock_timeout: '0' }])
})

t.test('an account that stays locked elsewhere is PostgreSQL\'s 55P03', contention, async t => {
  const { app, client } = await inTransaction(t, { timeout: 3000 }) // PostgreSQL gives up after nine tenths of it
  await client.query('savepoint before')
  await lock(t, app, 'ann')
  await t.rejects(app.credits.deduct({ ...charge, client }), { code: '55P03', severity: 'ERROR' })
  await client.query('rollback to before')
  t.strictSame((await client.query('show lock_timeout')).rows, [{ lock_timeout: '0' }])
})

for (const isolation of ['repeatable read', 'serializable']) {
  // On a cluster the transaction sees the account's node as it is when it first asks there.
  t.test(`in a ${isolation} transaction, what changed meanwhile is PostgreSQL's 40001`, { skip: pglite || citus !== undefined }, async t => {
    const { app, client } = await inTransaction(t)
    await app.credits.balance('ann')
    await client.query('commit')
    await client.query(`begin isolation level ${isolation}`)
    await client.query('select')
    await app.credits.deduct(charge)
    await t.rejects(app.credits.deduct({ ...charge, client }), { code: '40001', severity: 'ERROR' })
    await client.query('rollback')
    t.equal((await app.credits.balance('ann')).used, 10)
  })

  t.test(`in a ${isolation} transaction, charges that nobody disturbs are exact`, async t => {
    const { app, client } = await inTransaction(t)
    await client.query('commit')
    await client.query(`begin isolation level ${isolation}`)
    for (const used of [10, 20]) t.equal((await app.credits.deduct({ ...charge, client })).balance.used, used)
    await client.query('commit')
    t.equal((await app.credits.balance('ann')).used, 20)
  })
}

t.test('two transactions that lock each other out are PostgreSQL\'s 40P01', contention, async t => {
  const { app, client } = await inTransaction(t)
  const other = await connect(t, app)
  await other.query('begin')
  await app.credits.deduct({ ...charge, userId: 'ann', client })
  await app.credits.deduct({ ...charge, userId: 'bob', client: other })
  const results = await Promise.allSettled([
    app.credits.deduct({ ...charge, userId: 'bob', client }).finally(() => client.query('rollback')),
    app.credits.deduct({ ...charge, userId: 'ann', client: other }).finally(() => other.query('rollback'))
  ])
  const [failure] = results.filter(({ status }) => status === 'rejected') as PromiseRejectedResult[]
  t.match(failure!.reason, { code: '40P01', severity: 'ERROR' })
})

t.test('an aborted transaction is the host\'s to end', async t => {
  const { app, client } = await inTransaction(t)
  await client.query('select 1/0').catch(() => {})
  await t.rejects(app.credits.deduct({ ...charge, client }), { code: '25P02' })
  await client.query('rollback')
  await app.credits.deduct({ ...charge, client })
  t.equal((await app.credits.balance('ann')).used, 10)
})

t.test('a client that never answers is late within timeout', async t => {
  const { credits } = await buildGateway(t, { timeout: 1000 })
  const client = { query: () => new Promise<never>(() => {}) }
  await t.rejects(credits.deduct({ ...charge, client }), { code: 'FST_CREDITS_UNAVAILABLE' })
})

const { prepare } = defaults
const ledgerOptions = { prepare: prepare ?? true }

async function connect (t: Test, app: FastifyInstance) {
  const client = await app.pg.connect()
  t.teardown(() => client.release(true))
  return client
}

// A gateway with a table of the host's, and a client of the host's in an open transaction.
async function inTransaction (t: Test, options = {}) {
  const app = await buildGateway(t, options)
  await app.pg.query('create table videos (id integer)')
  const client = await connect(t, app)
  await client.query('begin')
  return { app, client }
}

async function count (app: FastifyInstance, table: string): Promise<number> {
  const { rows: [{ count }] } = await app.pg.query(`select count(*)::integer from ${table}`)
  return count
}

// Holds the account's lock in another session, until the test releases it.
async function lock (t: Test, app: FastifyInstance, userId: string) {
  await app.credits.balance(userId)
  const session = await connect(t, app)
  await session.query('begin')
  await session.query('select from ai_credits where user_id = $1 for update', [userId])
  return () => session.query('commit')
}

async function someoneWaits (app: FastifyInstance) {
  for (;;) {
    const { rows } = await app.pg.query(`
      select from ${activity} where datname = current_database() and wait_event_type = 'Lock'`)
    if (rows.length > 0) return
  }
}
