import { fork } from 'node:child_process'
import { once } from 'node:events'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { Readable } from 'node:stream'
import t from 'tap'
import { build } from 'tsup'
import { createLedger } from '../../src/index.js'
import { defaults } from '../helper/app.js'
import { citus } from '../helper/citus.js'
import { createLedgerDatabase, createPool, pglite } from '../helper/database.js'
import { buildCharged, reconciles, until } from '../helper/charging.js'

t.test('a stream that outlives its hold extends it', async t => {
  let end = () => {}
  const gateway = await buildCharged(t, app => {
    app.get('/', { config: { credits: { operation: 'chat', hold: 500, ttl: 1000 } } }, async ({ credits }) =>
      Readable.from((async function * () {
        credits!.use(30)
        yield 'x'
        await new Promise<void>(resolve => { end = resolve })
      })()))
  })
  const answer = gateway.ask('ann', '/')
  const { pool } = gateway.app.pg
  const extended = "select from ai_credit_holds where expires_at > created_at + interval '2 seconds'"
  await until(() => pool.query(extended), ({ rows }) => rows.length > 0)
  t.equal((await gateway.app.credits.balance('ann')).held, 500, 'more than a second later')
  end()
  await answer
  t.match(await gateway.settled('ann'), { used: 30 })
  t.strictSame(gateway.lines, [])
  await reconciles(t, gateway)
})

t.test('if the database is away for a while, the hold is extended as soon as it is back', { skip: pglite }, async t => {
  const [timeout, ttl] = citus ? [1500, 8000] : [300, 2000] // the first calls of a session on a cluster take longer
  let end = () => {}
  const gateway = await buildCharged(t, app => {
    app.get('/', { config: { credits: { operation: 'chat', hold: 500, ttl } } }, async ({ credits }) =>
      Readable.from((async function * () {
        credits!.use(30)
        yield 'x'
        await new Promise<void>(resolve => { end = resolve })
      })()))
  }, { options: { timeout } })
  const answer = gateway.ask('ann', '/')
  const { pool } = gateway.app.pg
  await until(() => pool.query('select from ai_credit_holds'), ({ rows }) => rows.length > 0)
  const client = await pool.connect()
  await client.query("begin; select from ai_credits where user_id = 'ann' for update")
  await until(() => gateway.lines, ({ length }) => length > 0)
  await client.query('rollback')
  client.release()
  t.match(gateway.lines[0], { msg: /could not be extended/, err: { code: 'FST_CREDITS_UNAVAILABLE' }, userId: 'ann' })
  const extended = `select from ai_credit_holds where expires_at > created_at + interval '${ttl * 1.5} milliseconds'`
  await until(() => pool.query(extended), ({ rows }) => rows.length > 0)
  end()
  await answer
  t.match(await gateway.settled('ann'), { used: 30 })
  await reconciles(t, gateway)
})

t.test('a hold that another call has closed is not extended, and the log says so', async t => {
  let end = () => {}
  const gateway = await buildCharged(t, app => {
    app.get('/', { config: { credits: { operation: 'chat', hold: 500, ttl: 1000 } } }, async ({ credits }) => {
      await gateway.app.credits.release(credits!.holdId!)
      await new Promise<void>(resolve => { end = resolve })
      credits!.use(30)
    })
  })
  const answer = gateway.ask('ann', '/')
  await until(() => gateway.lines, ({ length }) => length > 0)
  t.match(gateway.lines[0], { msg: /could not be extended/, err: { code: 'FST_CREDITS_HOLD_CLOSED' }, userId: 'ann' })
  end()
  await answer
  await until(() => gateway.lines, ({ length }) => length > 1)
  t.match(gateway.lines[1], { msg: /could not be settled/, err: { code: 'FST_CREDITS_HOLD_CLOSED' }, holdId: String, credits: 30 })
  await reconciles(t, gateway)
})

t.test('the hold of a process that dies lapses', async t => {
  const connectionString = await createLedgerDatabase(t)
  const outDir = t.testdir()
  await build({
    entry: { gateway: fileURLToPath(new URL('../helper/charged-process.ts', import.meta.url)) },
    outDir,
    outExtension: () => ({ js: '.mjs' }),
    format: 'esm',
    skipNodeModulesBundle: true,
    config: false,
    silent: true
  })
  const child = fork(join(outDir, 'gateway.mjs'), [connectionString], { execArgv: [] })
  await once(child, 'message') // the handler runs
  const ledger = createLedger(createPool(t, connectionString), defaults as object)
  t.equal((await ledger.balance('ann')).held, 500)
  child.kill('SIGKILL')
  await once(child, 'exit')
  await until(() => ledger.balance('ann'), ({ held }) => held === 0)
  t.match(await ledger.balance('ann'), { used: 0, available: 10_000 })
  t.match(await ledger.reconcile(), { ok: true })
})
