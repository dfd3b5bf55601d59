// Adoption of more records than one part has: limits, progress, interruption, and several processes.
import Fastify from 'fastify'
import t from 'tap'
import credits, { createLedger, type AdoptionProgress } from '../../src/index.js'
import { defaults } from '../helper/app.js'
import { createPool, pglite } from '../helper/database.js'
import { databaseOfMany, isAdopted, records } from '../helper/many-records.js'

const prepare = defaults.prepare ?? true

t.test('at a start with Fastify\'s defaults: refused at once, with what to run, and nothing is changed', async t => {
  const { pool, connectionString } = await databaseOfMany(t)
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
  const { pool, connectionString } = await databaseOfMany(t)
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
  const { pool } = await databaseOfMany(t)
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

t.test('by several processes at once', { skip: pglite }, async t => {
  const { pool, connectionString } = await databaseOfMany(t)
  const pools = Array.from({ length: 4 }, () => createPool(t, connectionString, { max: 1 }))
  await Promise.all(pools.map(pool => pool.query('select')))
  await Promise.all(pools.map(pool => createLedger(pool).migrate()))
  await isAdopted(t, pool)
})

t.test('a database whose tables are at number 6, and whose days were never summed up, is summed up', async t => {
  const { pool } = await databaseOfMany(t)
  const ledger = createLedger(pool, { prepare })
  await ledger.migrate()
  await pool.query("truncate ai_credit_daily_usage; delete from ai_credit_settings where name = 'time_zone'")
  await createLedger(pool, { prepare }).migrate()
  await isAdopted(t, pool)
})

t.test('while it is under way, no other writer adds records', async t => {
  const { pool } = await databaseOfMany(t)
  const ledger = createLedger(pool, { prepare })
  await t.rejects(ledger.migrate({ onProgress ({ step }) { if (step === 'records') throw new Error('interrupted') } }))
  await t.rejects(pool.query("insert into ai_credit_usage (user_id, credits_used, operation) values ('user 1', 1, 'chat')"), { code: '23502' })
})
