import { execFile } from 'node:child_process'
import { cp, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import type { FastifyInstance } from 'fastify'
import type pg from 'pg'
import t from 'tap'
import credits, { createLedger, type FastifyAiCreditsOptions } from '../src/index.js'
import { migrations } from '../src/sql/index.js'
import { buildGateway, buildHost, defaults, getBalance, postDeduct } from './helper/app.js'
import { createDatabase, createPool } from './helper/database.js'
import { dumpDatabase, dumpSchema } from './helper/schema-dump.js'

const folder = fileURLToPath(new URL('../src/sql/', import.meta.url))
const newest = migrations.at(-1)!.id
const sampleData = { available: 8500, total: 10000, used: 1500 }

t.test('an empty database is ready after the first start', async t => {
  const app = await buildGateway(t, { sampleData: true })
  const { rows } = await app.pg.query('select id, applied_at <= now() as dated from ai_credit_migrations order by id')
  t.strictSame(rows, migrations.map(({ id }) => ({ id, dated: true })))
  t.strictSame(await getBalance(app), sampleData)
})

t.test('a second start changes nothing', async t => {
  const connectionString = await createDatabase(t)
  const first = await buildGateway(t, { sampleData: true }, { connectionString })
  await postDeduct(first, { user_id: 'ann', credits: 7, operation: 'chat' }, { 'idempotency-key': 'k' })
  const before = await dumpDatabase(first.pg)
  const second = await buildGateway(t, { sampleData: true }, { connectionString })
  t.equal(await dumpDatabase(second.pg), before)
  t.strictSame(await getBalance(second), sampleData)
})

t.test('several that start at once all succeed', async t => {
  const connectionString = await createDatabase(t)
  const pools = Array.from({ length: 5 }, () => createPool(t, connectionString, { max: 1 }))
  // With connections that are there already, they all find an empty database.
  await Promise.all(pools.map(pool => pool.query('select')))
  await Promise.all(pools.map(pool => createLedger(pool).migrate()))
  t.strictSame((await pools[0]!.query('select id from ai_credit_migrations order by id')).rows, migrations.map(({ id }) => ({ id })))
})

t.test('without migrate, missing tables are an error that says what to run', async t => {
  const app = await buildHost(t)
  const before = await dumpDatabase(app.pg)
  await t.rejects(register(app, { migrate: false }), {
    code: 'FST_CREDITS_MIGRATION_REQUIRED',
    message: `The credits tables are at migration 0 of ${newest}: start once with migrate: true, or run ` +
      migrations.map(({ file }) => `psql "$DATABASE_URL" -f node_modules/fastify-ai-credits/src/sql/${file}`).join(' && ')
  })
  t.equal(await dumpDatabase(app.pg), before)
})

t.test('without migrate, a migrated database is used as it is', async t => {
  const connectionString = await createDatabase(t)
  await buildGateway(t, {}, { connectionString })
  const app = await buildGateway(t, { migrate: false }, { connectionString })
  t.equal((await postDeduct(app, { credits: 1, operation: 'chat' })).statusCode, 200)
})

t.test('a newer schema is refused', async t => {
  const connectionString = await createDatabase(t)
  const first = await buildGateway(t, {}, { connectionString })
  await first.pg.query('insert into ai_credit_migrations (id) values ($1)', [newest + 1])
  const before = await dumpDatabase(first.pg)
  for (const migrate of [true, false]) {
    const app = await buildHost(t, { connectionString })
    await t.rejects(register(app, { migrate }), {
      code: 'FST_CREDITS_SCHEMA_TOO_NEW',
      message: `The credits tables are at migration ${newest + 1}, and this version of fastify-ai-credits knows ` +
        `${newest}: upgrade it`
    }, `migrate: ${migrate}`)
  }
  t.equal(await dumpDatabase(first.pg), before)
})

t.test('the files can be run by hand, and make what a start makes', async t => {
  const connectionString = await createDatabase(t)
  const pool = createPool(t, connectionString)
  await runByHand(pool)
  const app = await buildGateway(t, { migrate: false }, { connectionString })
  t.equal((await postDeduct(app, { credits: 1, operation: 'chat' })).statusCode, 200)
  const started = await buildGateway(t)
  t.equal(await dumpSchema(pool), await dumpSchema(started.pg))
})

t.test('a start after the files were run by hand changes nothing but the time zone', async t => {
  const connectionString = await createDatabase(t)
  const pool = createPool(t, connectionString)
  await runByHand(pool)
  await pool.query("select ai_credit_use_time_zone('UTC')")
  const before = await dumpDatabase(pool)
  await buildGateway(t, {}, { connectionString })
  t.equal(await dumpDatabase(pool), before)
})

t.test('running a file by hand again is refused and changes nothing', async t => {
  const connectionString = await createDatabase(t)
  const app = await buildGateway(t, { sampleData: true }, { connectionString })
  const before = await dumpDatabase(app.pg)
  await t.rejects(runByHand(app.pg.pool), { code: '23505', constraint: 'ai_credit_migrations_pkey' })
  t.equal(await dumpDatabase(app.pg), before)
})

t.test('a migration that fails leaves nothing behind, and can be tried again', async t => {
  const app = await buildHost(t, { pool: { max: 1 } })
  await app.pg.query('create table ai_credit_daily_usage (someone_elses integer)')
  const before = await dumpDatabase(app.pg)
  await t.rejects(register(app, {}),
    { code: '42P07', message: 'relation "ai_credit_daily_usage" already exists' })
  t.equal(await dumpDatabase(app.pg), before)

  await app.pg.query('drop table ai_credit_daily_usage')
  const other = await buildGateway(t, {}, { connectionString: app.pg.pool.options.connectionString! })
  t.equal((await postDeduct(other, { credits: 1, operation: 'chat' })).statusCode, 200)
})

t.test('the SQL in the code is the SQL in the files', async t => {
  const copy = t.testdir()
  await cp(folder, copy, { recursive: true })
  // Without the test runner's environment, which would count the copy among the covered files.
  await promisify(execFile)(process.execPath, [join(copy, 'generate.js')], { env: {} })
  t.equal(await readFile(join(copy, 'index.ts'), 'utf8'), await readFile(join(folder, 'index.ts'), 'utf8'),
    'src/sql/index.ts; to make it anew: npm run generate')
})

async function register (app: FastifyInstance, options: FastifyAiCreditsOptions) {
  await app.register(credits, { ...defaults, ...options })
}

// Each file as it is, in one go and as one simple query.
async function runByHand (pool: pg.Pool) {
  const client = await pool.connect()
  try {
    for (const { file } of migrations) await client.query(await readFile(join(folder, file), 'utf8'))
  } finally {
    client.release(true) // psql ends as well, and with it what is open
  }
}
