import { execFile } from 'node:child_process'
import { cp, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { promisify } from 'node:util'
import type { FastifyInstance } from 'fastify'
import t, { type Test } from 'tap'
import credits, { createLedger, type FastifyAiCreditsOptions } from '../../src/index.js'
import { functions, tables } from '../../src/sql/index.js'
import { buildGateway, buildHost, defaults, getBalance, postDeduct } from '../helper/app.js'
import { citus } from '../helper/citus.js'
import { createDatabase, createPool, pglite } from '../helper/database.js'
import { psql, scripts, skipped, sqlFolder } from '../helper/psql.js'
import { dumpDatabase, dumpSchema } from '../helper/schema-dump.js'
import { ledgerScripts } from '../../bench/ledger-scripts.js'

const execute = promisify(execFile)
const newest = tables.at(-1)!.id
const { number, oldestCaller, content } = functions
const sampleData = { available: 8500, total: 10000, used: 1500 }

t.test('an empty database is ready after the first start', async t => {
  const connectionString = await createDatabase(t)
  const app = await buildGateway(t, { sampleData: true }, { connectionString })
  const { rows } = await app.pg.query('select id, applied_at <= now() as dated from ai_credit_migrations order by id')
  t.strictSame(rows, tables.map(({ id }) => ({ id, dated: true })))
  t.strictSame((await app.pg.query('select number, oldest_caller, content, installed_at <= now() as dated from ai_credit_functions')).rows,
    [{ number, oldest_caller: oldestCaller, content, dated: true }])
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
  // The connections are open already, so all starts find an empty database.
  await Promise.all(pools.map(pool => pool.query('select')))
  await Promise.all(pools.map(pool => createLedger(pool).migrate()))
  t.strictSame((await pools[0]!.query('select id from ai_credit_migrations order by id')).rows, tables.map(({ id }) => ({ id })))
  t.strictSame((await pools[0]!.query('select number from ai_credit_functions')).rows, [{ number }])
  t.equal(await dumpSchema(pools[0]!), await dumpSchema(await startedAlone(t)))
})

t.test('without migrate, missing tables are an error that says what to run', async t => {
  const app = await buildHost(t)
  const before = await dumpDatabase(app.pg)
  await t.rejects(register(app, { migrate: false }), {
    code: 'FST_CREDITS_MIGRATION_REQUIRED',
    message: `The credits tables are at number 0 of ${newest}, and the functions at 0 of ${number}: start once with ` +
      'migrate: true, or run (cd node_modules/fastify-ai-credits/src/sql && ' +
      "psql \"$DATABASE_URL\" -v ON_ERROR_STOP=1 -v schema='public' -f tables.sql -f functions.sql)"
  })
  t.equal(await dumpDatabase(app.pg), before)
})

t.test('so are functions that are missing or older than the tables', async t => {
  const connectionString = await createDatabase(t)
  const pool = createPool(t, connectionString)
  for (const script of ledgerScripts.slice(0, -1)) await pool.query(script)
  for (const [found, change] of [[0, 'select'], [5, "insert into ai_credit_functions values (5, 5, 'older')"]] as const) {
    await pool.query(change)
    const before = await dumpDatabase(pool)
    await t.rejects(register(await buildHost(t, { connectionString }), { migrate: false }), {
      code: 'FST_CREDITS_MIGRATION_REQUIRED',
      message: new RegExp(`^The credits tables are at number ${newest} of ${newest}, and the functions at ${found} of ${number}: `)
    })
    t.equal(await dumpDatabase(pool), before)
  }
  const app = await buildGateway(t, {}, { connectionString })
  t.equal((await postDeduct(app, { credits: 1, operation: 'chat' })).statusCode, 200, 'a start with migrate replaces them')
})

t.test('what the error says to run works, whatever the name of the schema', { skip: skipped }, async t => {
  const connectionString = await createDatabase(t)
  const pool = createPool(t, connectionString)
  for (const schema of ['public', 'credits of $HOME; `ls`']) {
    await pool.query(`create schema if not exists "${schema}"`)
    const ledger = createLedger(pool, { schema, prepare: defaults.prepare ?? true })
    const { message } = await ledger.balance('ann').then(() => t.fail('it must be refused'), error => error)
    const command = /or run (.*)$/.exec(message)![1]!.replace('node_modules/fastify-ai-credits/src/sql', sqlFolder)
    await execute('sh', ['-c', command], { env: { PATH: process.env.PATH, DATABASE_URL: connectionString } })
    t.match(await ledger.balance('ann'), { available: 10_000 }, schema)
  }
})

t.test('without migrate, a migrated database is used as it is', async t => {
  const connectionString = await createDatabase(t)
  await buildGateway(t, {}, { connectionString })
  const app = await buildGateway(t, { migrate: false }, { connectionString })
  t.equal((await postDeduct(app, { credits: 1, operation: 'chat' })).statusCode, 200)
})

t.test('newer functions that still serve this version are used as they are', async t => {
  const { pool, starts } = await changedDatabase(t,
    'insert into ai_credit_migrations (id) select max(id) + 1 from ai_credit_migrations',
    "insert into ai_credit_functions (number, oldest_caller, content) values ($1::integer + 1, $1, 'newer')")
  const before = await dumpDatabase(pool)
  for (const start of starts) {
    await start()
    t.equal(await dumpDatabase(pool), before)
  }
  t.equal((await postDeduct(await starts[0]!(), { credits: 1, operation: 'chat' })).statusCode, 200)
})

t.test('newer functions that no longer serve this version are refused', async t => {
  const { pool, starts } = await changedDatabase(t,
    "insert into ai_credit_functions (number, oldest_caller, content) values ($1::integer + 2, $1::integer + 1, 'newer')")
  const before = await dumpDatabase(pool)
  for (const start of starts) {
    await t.rejects(start(), {
      code: 'FST_CREDITS_SCHEMA_TOO_NEW',
      message: `The credits functions serve callers from number ${number + 1} on, and this version is ${number}: ` +
        'upgrade fastify-ai-credits'
    })
  }
  t.equal(await dumpDatabase(pool), before)
})

t.test('newer tables, whose functions are yet to come, are refused', async t => {
  const newest = tables.at(-1)!.id
  const { pool, starts } = await changedDatabase(t, 'insert into ai_credit_migrations (id) select max(id) + 1 from ai_credit_migrations')
  const before = await dumpDatabase(pool)
  for (const start of starts) {
    await t.rejects(start(), {
      code: 'FST_CREDITS_SCHEMA_TOO_NEW',
      message: `The credits tables are at number ${newest + 1}, and this version knows them up to ${newest}: upgrade fastify-ai-credits`
    })
  }
  t.equal(await dumpDatabase(pool), before)
})

t.test('other functions with the same number are refused, and replaced as the error says', async t => {
  const { pool, starts } = await changedDatabase(t, "update ai_credit_functions set content = 'other' where number = $1",
    'create or replace function ai_credit_max() returns bigint language sql immutable return 1')
  const before = await dumpDatabase(pool)
  let advice = ''
  for (const start of starts) {
    const error = await start().then(() => t.fail('it must be refused'), error => error)
    t.match(error, {
      code: 'FST_CREDITS_FUNCTIONS_DIFFER',
      message: `The credits functions in the database have the number ${number}, like those of this version, but differ from them. To ` +
        `replace them: delete from "public".ai_credit_functions where number = ${number}, and start again`
    })
    advice = /To replace them: (.*), and start again/.exec(error.message)![1]!
  }
  t.equal(await dumpDatabase(pool), before)
  await pool.query(advice)
  t.equal((await postDeduct(await starts[0]!(), { credits: 1, operation: 'chat' })).statusCode, 200)
  t.equal(await dumpSchema(pool), await dumpSchema(await startedAlone(t)))
})

t.test('tables of a version that was never released are refused', async t => {
  const { pool, starts } = await changedDatabase(t, 'delete from ai_credit_migrations', 'insert into ai_credit_migrations values (5)')
  const before = await dumpDatabase(pool)
  for (const start of starts) {
    await t.rejects(start(), {
      code: 'FST_CREDITS_SCHEMA_TOO_OLD',
      message: `The credits tables are at number 5; upgrades begin at number ${tables[0]!.id}`
    })
  }
  t.equal(await dumpDatabase(pool), before)
})

t.test('the files run by psql make what a start makes', { skip: skipped }, async t => {
  const connectionString = await createDatabase(t)
  const pool = createPool(t, connectionString)
  await psql(connectionString, scripts)
  t.equal(await dumpSchema(pool), await dumpSchema(await startedAlone(t)))
  const app = await buildGateway(t, { migrate: false }, { connectionString })
  t.equal((await postDeduct(app, { credits: 1, operation: 'chat' })).statusCode, 200)
})

t.test('psql finds the schema as a start does, or is told', { skip: skipped || pglite || citus !== undefined }, async t => {
  const connectionString = await createDatabase(t)
  const pool = createPool(t, connectionString)
  const schemas = async () => (await pool.query("select pronamespace::regnamespace::text as name from pg_proc where proname = 'ai_credit_deduct' order by 1")).rows
  await pool.query('create schema "The ledger\'s"; create schema found; create schema first; create table found.ai_credits (user_id varchar primary key,' +
    ' total_credits bigint, used_credits bigint, created_at timestamptz, updated_at timestamptz)')
  await psql(`${connectionString}&options=-csearch_path%3Dfirst,found`, scripts)
  t.strictSame(await schemas(), [{ name: 'found' }], 'where ai_credits is found')
  await psql(connectionString, scripts, ['-v', "schema=The ledger's"])
  t.strictSame(await schemas(), [{ name: '"The ledger\'s"' }, { name: 'found' }], 'where -v schema says')
  await pool.query('drop schema found cascade')
  await psql(`${connectionString}&options=-csearch_path%3Dfirst,found`, scripts)
  t.strictSame(await schemas(), [{ name: '"The ledger\'s"' }, { name: 'first' }], 'otherwise in the first of the search_path')
})

t.test('a start after the files were run by hand changes nothing but the time zone', { skip: skipped }, async t => {
  const connectionString = await createDatabase(t)
  const pool = createPool(t, connectionString)
  await psql(connectionString, scripts)
  await pool.query("select ai_credit_use_time_zone('UTC')")
  const before = await dumpDatabase(pool)
  await buildGateway(t, {}, { connectionString })
  t.equal(await dumpDatabase(pool), before)
})

t.test('tables.sql skips what is applied, and functions.sql replaces the functions by the same', { skip: skipped }, async t => {
  const connectionString = await createDatabase(t)
  const app = await buildGateway(t, { sampleData: true }, { connectionString })
  const before = await dumpDatabase(app.pg)
  await psql(connectionString, ['tables.sql'])
  t.equal(await dumpDatabase(app.pg), before)
  await psql(connectionString, scripts)
  t.equal(await dumpDatabase(app.pg), before)
  t.equal((await postDeduct(app, { credits: 1, operation: 'chat' })).statusCode, 200, 'a process that runs goes on')
})

t.test('functions.sql leaves newer functions alone, and others with its number', { skip: skipped }, async t => {
  const { pool, connectionString } = await changedDatabase(t, "update ai_credit_functions set content = 'other' where number = $1")
  const before = await dumpDatabase(pool)
  await t.rejects(psql(connectionString, scripts), { message: new RegExp(`other functions with the same number, ${number}`) })
  t.equal(await dumpDatabase(pool), before)
  await pool.query("insert into ai_credit_functions values ($1::integer + 1, $1, 'newer')", [number])
  const newer = await dumpDatabase(pool)
  await t.rejects(psql(connectionString, scripts), { message: new RegExp(`newer functions, number ${number + 1}; these are number ${number}`) })
  t.equal(await dumpDatabase(pool), newer)
})

t.test('running a file of tables/ by hand again is refused and changes nothing', { skip: skipped }, async t => {
  const connectionString = await createDatabase(t)
  const app = await buildGateway(t, { sampleData: true }, { connectionString })
  const before = await dumpDatabase(app.pg)
  for (const { file } of tables) {
    await t.rejects(psql(connectionString, [file], ['-v', 'schema=public']), { message: /ai_credit_migrations_pkey/ }, file)
  }
  t.equal(await dumpDatabase(app.pg), before)
})

t.test('a migration of the tables that fails leaves nothing behind, and can be tried again', async t => {
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

t.test('a replacement of the functions that fails leaves none of them behind, and can be tried again', async t => {
  const app = await buildHost(t, { pool: { max: 1 } })
  for (const script of ledgerScripts.slice(0, -1)) await app.pg.query(script)
  await app.pg.query('create function ai_credit_reconcile_user(varchar, varchar) returns void language sql return null')
  await app.pg.query('create view ai_credit_entries as select 1 as someone_elses')
  const before = await dumpDatabase(app.pg)
  await t.rejects(register(app, {}), { code: /^42/ })
  t.equal(await dumpDatabase(app.pg), before)

  await app.pg.query('drop view ai_credit_entries')
  const other = await buildGateway(t, {}, { connectionString: app.pg.pool.options.connectionString! })
  t.equal((await postDeduct(other, { credits: 1, operation: 'chat' })).statusCode, 200)
  t.equal(await dumpSchema(other.pg), await dumpSchema(await startedAlone(t)))
})

t.test('the SQL in the code is the SQL in the files', async t => {
  const copy = t.testdir()
  await cp(sqlFolder, copy, { recursive: true })
  // Without the test runner's environment: it would count the copy among the covered files.
  await execute(process.execPath, [join(copy, 'generate.js')], { env: {} })
  for (const file of ['index.ts', 'functions.sql']) {
    t.equal(await readFile(join(copy, file), 'utf8'), (await readFile(join(sqlFolder, file), 'utf8')).replaceAll('\r\n', '\n'),
      `src/sql/${file}; to make it anew: npm run generate`)
  }
})

async function register (app: FastifyInstance, options: FastifyAiCreditsOptions) {
  await app.register(credits, { ...defaults, ...options })
}

/** An empty database after one start. */
async function startedAlone (t: Test) {
  return (await buildGateway(t, {}, { connectionString: await createDatabase(t) })).pg
}

/** Starts once and makes these changes ($1: our number). Returns functions that start again, with migrate and without. */
async function changedDatabase (t: Test, ...changes: string[]) {
  const connectionString = await createDatabase(t)
  await buildGateway(t, {}, { connectionString })
  const pool = createPool(t, connectionString)
  for (const change of changes) await pool.query(change, change.includes('$1') ? [number] : [])
  const starts = [true, false].map(migrate => () => buildGateway(t, { migrate }, { connectionString }))
  return { pool, connectionString, starts }
}
