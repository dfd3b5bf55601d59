// The ledger's schema is the one that PostgreSQL finds, or that the option names. A second ledger is never made beside it.
import t, { type Test } from 'tap'
import { createLedger, type LedgerOptions } from '../../src/index.js'
import { createDatabase, createPool, pglite } from '../helper/database.js'
import { originalTables } from '../helper/original-tables.js'

const options: LedgerOptions = { prepare: !pglite }
const needed = { code: 'FST_CREDITS_INVALID_OPTION', option: 'schema' }

/** Returns a pool whose sessions have this search_path. On PGlite all share one session, and its path. */
async function poolWith (t: Test, connectionString: string, path: string) {
  const pool = createPool(t, connectionString, { max: 3 })
  if (pglite) await pool.query(`set search_path to ${path}`)
  else pool.on('connect', client => { client.query(`set search_path to ${path}`) })
  return pool
}

t.test('original tables behind the first schema of the path are adopted where they are', async t => {
  const connectionString = await createDatabase(t)
  const pool = await poolWith(t, connectionString, 'postgres, public')
  await pool.query(`create schema postgres; set search_path to public; ${originalTables}
    insert into ai_credits (user_id, total_credits, used_credits) values ('ann', 150, 50); set search_path to postgres, public`)
  const ledger = createLedger(pool, options)
  await ledger.migrate()
  t.match(await ledger.balance('ann'), { available: 100, total: 150, used: 50 })
  t.match(await ledger.deduct({ userId: 'ann', credits: 1, operation: 'chat' }), { balance: { available: 99 } })
  t.strictSame((await pool.query("select schemaname from pg_tables where tablename like 'ai_credit%' group by 1")).rows,
    [{ schemaname: 'public' }])
})

t.test('a ledger is found behind a schema that has come meanwhile', async t => {
  const connectionString = await createDatabase(t)
  const pool = await poolWith(t, connectionString, 'public')
  const first = createLedger(pool, options)
  await first.migrate()
  await first.deduct({ userId: 'ann', credits: 100, operation: 'chat' })
  await pool.query('create schema tenant')
  const ledger = createLedger(await poolWith(t, connectionString, 'tenant, public'), options)
  await ledger.migrate()
  t.match(await ledger.balance('ann'), { used: 100 })
})

t.test('tables that the path does not reach are not made anew', async t => {
  const connectionString = await createDatabase(t)
  const pool = await poolWith(t, connectionString, 'public')
  await createLedger(pool, options).migrate()
  await pool.query('create schema tenant')
  const elsewhere = await poolWith(t, connectionString, 'tenant')
  await t.rejects(createLedger(elsewhere, options).migrate(),
    { ...needed, message: 'Option schema must be given: there are credits tables in public, which the search_path does not reach' })
  await t.rejects(createLedger(elsewhere, options).balance('ann'), needed)
  await createLedger(elsewhere, { ...options, schema: 'public' }).migrate()
  await createLedger(elsewhere, { ...options, schema: 'tenant' }).migrate()
  const tables = "select schemaname, count(*)::integer from pg_tables where tablename like 'ai_credit%' group by 1 order by 1"
  const { rows: [one, other] } = await pool.query(tables)
  t.match([one, other], [{ schemaname: 'public' }, { schemaname: 'tenant', count: one.count }])
})

t.test('original tables that the path does not reach, or in two schemas, are not adopted by chance', async t => {
  const connectionString = await createDatabase(t)
  const pool = await poolWith(t, connectionString, 'public')
  await pool.query(`create schema host; set search_path to host; ${originalTables}; set search_path to public`)
  await t.rejects(createLedger(pool, options).migrate(), needed)
  await pool.query('alter table host.ai_credits set schema public')
  await t.rejects(createLedger(pool, options).migrate(), { ...needed, message: /in different schemas: public, host$/ })
  await t.rejects(createLedger(await poolWith(t, connectionString, 'public, host'), options).migrate(),
    { ...needed, message: /in different schemas: (host, public|public, host)$/ })
  t.strictSame((await pool.query("select from pg_tables where tablename like 'ai_credit%'")).rowCount, 2, 'nothing was made')
})

t.test('a path without a schema is named', async t => {
  const pool = await poolWith(t, await createDatabase(t), 'nowhere')
  await t.rejects(createLedger(pool, options).migrate(), needed)
  const ledger = createLedger(pool, { ...options, schema: 'a "new" one'.replaceAll('"', '') })
  await ledger.migrate()
  t.match(await ledger.balance(), { available: 10_000 }, 'the schema was made')
})

t.test('one ledger for each tenant, in one database and on one pool', async t => {
  const pool = await poolWith(t, await createDatabase(t), 'public')
  const ledgers = await Promise.all(['tenant one', 'tenant two', 'UPPER'].map(async schema => {
    const ledger = createLedger(pool, { ...options, schema })
    await ledger.migrate()
    return ledger
  }))
  const charge = { userId: 'ann', credits: 1, operation: 'chat', idempotencyKey: 'k' }
  for (const [index, ledger] of ledgers.entries()) {
    await Promise.all(Array.from({ length: 10 }, (_, call) => ledger.deduct({ ...charge, credits: index + 1, idempotencyKey: `k ${call}` })))
    const { id } = await ledger.hold({ ...charge, credits: 5 })
    await ledger.capture(id)
    await ledger.grant({ userId: 'ann', credits: 3, expiresAt: new Date(Date.now() + 60_000) })
    await ledger.refund({ userId: 'ann', deductKey: 'k 0' })
    await ledger.prune({ before: new Date(Date.now() - 1) })
  }
  for (const [index, ledger] of ledgers.entries()) {
    t.match(await ledger.balance('ann'), { used: 9 * (index + 1) + 5 })
    t.match(await ledger.reconcile(), { ok: true, accounts: 1 })
  }
})

// PGlite has one session: a path that stays set applies to all.
t.test('the path that a host sets, in a transaction or for good, changes nothing', { skip: pglite }, async t => {
  const connectionString = await createDatabase(t)
  const pool = await poolWith(t, connectionString, 'public')
  const ledger = createLedger(pool, options)
  await ledger.migrate()
  await pool.query('create schema tenant')
  const client = await pool.connect()
  await client.query('begin; set local search_path to tenant')
  t.match(await ledger.deduct({ userId: 'ann', credits: 1, operation: 'chat', client }), { balance: { used: 1 } })
  const { id } = await ledger.hold({ userId: 'ann', credits: 2, operation: 'chat', client })
  await ledger.capture(id, { client })
  await client.query('commit; set search_path to tenant') // and left so
  client.release()
  const calls = Array.from({ length: 40 }, (_, index) => ledger.deduct({ userId: `user ${index % 5}`, credits: 1, operation: 'chat' }))
  t.equal((await Promise.all(calls)).length, 40)
  t.match(await ledger.balance('ann'), { used: 3 })
  t.match(await ledger.reconcile(), { ok: true })
})

t.test('a name that is no schema\'s is refused', async t => {
  const pool = createPool(t, await createDatabase(t))
  for (const schema of ['', "it's", 'a"b', 'pg_temp', 'é'.repeat(32), 5, null]) {
    t.throws(() => createLedger(pool, { ...options, schema } as LedgerOptions), needed, String(schema))
  }
})
