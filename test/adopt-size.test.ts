// Adoption of more records than one part holds: its limits, its progress, by hand and at start, interrupted and by several.
import { execFile } from 'node:child_process'
import { readFile } from 'node:fs/promises'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import type pg from 'pg'
import t, { type Test } from 'tap'
import credits, { createLedger, type AdoptionProgress } from '../src/index.js'
import Fastify from 'fastify'
import { defaults } from './helper/app.js'
import { createDatabase, createPool, pglite } from './helper/database.js'
import { originalTables } from './helper/original-tables.js'

const sql = new URL('../src/sql/', import.meta.url)
const records = 60_000 // two parts, and more than the 10 seconds of Fastify's default have time for
const users = 100
const prepare = defaults.prepare ?? true

t.test('at a start with Fastify\'s defaults: refused at once, with what to run, and nothing is changed', async t => {
  const { pool, connectionString } = await database(t)
  const app = Fastify()
  t.teardown(() => app.close())
  app.register(credits, { connectionString, ...defaults })
  await t.rejects(async () => app.ready(), {
    code: 'FST_CREDITS_ADOPTION_TOO_LONG',
    message: 'There are too many usage records to adopt them within the 10 seconds of Fastify\'s pluginTimeout. Give Fastify ' +
      'the option pluginTimeout: 0 for this start, or adopt them by hand first, with (cd ' +
      'node_modules/fastify-ai-credits/src/sql && psql "$DATABASE_URL" -v ON_ERROR_STOP=1 -v schema=public ' +
      '-v time_zone=UTC -f tables.sql -f functions.sql -f daily_usage.sql)'
  })
  t.strictSame((await pool.query("select format_type(atttypid, atttypmod) as type from pg_attribute where attrelid = 'ai_credit_usage'::regclass and attname = 'id'")).rows,
    [{ type: 'integer' }])
})

t.test('without a limit it works, and the log tells how far it is', async t => {
  const { pool, connectionString } = await database(t)
  const lines: string[] = []
  const app = Fastify({ pluginTimeout: 0, logger: { stream: { write: line => { lines.push(line) } } } })
  t.teardown(() => app.close())
  await app.register(credits, { connectionString, timeout: 500, ...defaults })
  t.strictSame(lines.map(line => JSON.parse(line)).flatMap(({ adoption, msg }) =>
    adoption && msg === 'Adopting the credits tables' ? [adoption] : []), [
    { step: 'columns', done: 0, total: records },
    ...[50_000, 60_000].map(done => ({ step: 'records', done, total: records })),
    ...[50_000, 60_000].map(done => ({ step: 'days', done, total: records }))
  ])
  await isAdopted(t, pool)
})

t.test('interrupted after any part, it goes on where it was', async t => {
  const { pool } = await database(t)
  const told: AdoptionProgress[] = []
  const ledger = createLedger(pool, { prepare })
  for (;;) {
    const end = await ledger.migrate({
      onProgress (progress) {
        if (progress.step === 'columns') return
        told.push(progress)
        if (progress.step !== 'days' || progress.done < progress.total) throw new Error('interrupted')
      }
    }).then(() => 'done', error => error.message)
    if (end === 'done') break
    t.equal(end, 'interrupted')
    await t.rejects(createLedger(pool, { prepare }).balance('user 1'), /./, 'and meanwhile nothing is served')
  }
  t.strictSame(told.map(({ step, done, total }) => `${step} ${done} of ${total}`), [
    'records 50000 of 60000', 'records 10000 of 10000', 'days 50000 of 60000', 'days 10000 of 10000'
  ])
  await isAdopted(t, pool)
})

t.test('by hand, it says how far it is; killed, it goes on; run again, it changes nothing', { skip: pglite }, async t => {
  const { pool, connectionString } = await database(t)
  await pool.query('create view spent as select sum(credits_used) from ai_credit_usage')
  t.match(await psql(connectionString).catch(error => error.stderr), /1\. The view public\.spent depends .*\n {3}drop view public\.spent;/)
  await pool.query('drop view spent')

  const killed = psql(connectionString)
  const gone = t.rejects(killed)
  await until(pool, "select from pg_class where relname = 'ai_credit_adoption'")
  killed.child.kill('SIGKILL')
  await gone
  await pool.query("select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'psql' and datname = current_database()")
  await t.rejects(createLedger(pool).balance('user 1'), { code: 'FST_CREDITS_MIGRATION_REQUIRED' })

  const { stderr } = await psql(connectionString)
  t.match(stderr, /adopted \d+ of \d+ usage records/)
  await t.rejects(createLedger(pool).balance('user 1'),
    { code: 'FST_CREDITS_ADOPTION_UNFINISHED', message: /migrate: true, or run .* -v time_zone=UTC .* -f daily_usage\.sql\)/ })
  t.match((await psql(connectionString, 'daily_usage.sql')).stderr, /summed up 60000 of 60000 usage records/)
  await isAdopted(t, pool)
  await psql(connectionString, 'tables.sql', 'functions.sql', 'daily_usage.sql')
  await isAdopted(t, pool)
})

t.test('the commands of the documents run as they are written', { skip: pglite }, async t => {
  const { pool, connectionString } = await database(t)
  const page = await readFile(new URL('../docs/operations.md', import.meta.url), 'utf8')
  const [, command] = /^## Adopting.*?^```sh\n(.*?)^```/ms.exec(page)!
  const here = command!.replace('cd node_modules/fastify-ai-credits/src/sql', `cd '${fileURLToPath(sql)}'`)
  await promisify(execFile)('sh', ['-ec', here], { env: { ...process.env, DATABASE_URL: connectionString } })
  await isAdopted(t, pool)
})

t.test('by several processes at once', { skip: pglite }, async t => {
  const { pool, connectionString } = await database(t)
  const pools = Array.from({ length: 4 }, () => createPool(t, connectionString, { max: 1 }))
  await Promise.all(pools.map(pool => pool.query('select')))
  await Promise.all(pools.map(pool => createLedger(pool).migrate()))
  await isAdopted(t, pool)
})

t.test('a database whose tables are at number 6, and whose days were never summed up, is summed up', async t => {
  const { pool } = await database(t)
  const ledger = createLedger(pool, { prepare })
  await ledger.migrate()
  await pool.query("truncate ai_credit_daily_usage; delete from ai_credit_settings where name = 'time_zone'")
  await createLedger(pool, { prepare }).migrate()
  await isAdopted(t, pool)
})

t.test('while it is under way, no other writer adds records', async t => {
  const { pool } = await database(t)
  const ledger = createLedger(pool, { prepare })
  await t.rejects(ledger.migrate({ onProgress ({ step }) { if (step === 'records') throw new Error('interrupted') } }))
  await t.rejects(pool.query("insert into ai_credit_usage (user_id, credits_used, operation) values ('user 1', 1, 'chat')"), { code: '23502' })
})

async function database (t: Test) {
  const connectionString = await createDatabase(t)
  const pool = createPool(t, connectionString, { max: 2 })
  await pool.query(originalTables)
  await pool.query(`
    insert into ai_credits (user_id, used_credits) select 'user ' || i, ${records / users} from generate_series(1, ${users}) i;
    insert into ai_credit_usage (user_id, credits_used, operation, metadata, created_at)
    select 'user ' || 1 + i % ${users}, 1, 'chat', '{"words": 7}', timestamp '2024-01-01' + i * interval '1 minute'
    from generate_series(1, ${records}) i`)
  return { pool, connectionString }
}

function psql (connectionString: string, ...files: string[]) {
  const names = files.length > 0 ? files : ['tables.sql', 'functions.sql']
  return promisify(execFile)('psql', [connectionString, '-v', 'ON_ERROR_STOP=1', '-v', 'time_zone=UTC',
    ...names.flatMap(name => ['-f', fileURLToPath(new URL(name, sql))])])
}

async function until (pool: pg.Pool, query: string) {
  while ((await pool.query(query)).rowCount === 0);
}

// Each record once in its place, each account and day with its sum, and nothing of adoption left.
async function isAdopted (t: Test, pool: pg.Pool) {
  const ledger = createLedger(pool, { prepare })
  t.match(await ledger.reconcile(), { ok: true, differences: [], accounts: users })
  t.strictSame((await pool.query(`
    select count(*)::integer as records, min(seq)::integer as first, max(seq)::integer as last,
      bool_and(used_after = seq and total_after = 10000) as balanced
    from ai_credit_usage`)).rows, [{ records, first: 1, last: records / users, balanced: true }])
  t.strictSame((await pool.query("select name from ai_credit_settings where name like '%\\_to'")).rows, [])
  t.strictSame((await pool.query("select reloptions from pg_class where relname = 'ai_credit_usage'")).rows, [{ reloptions: null }])
}
