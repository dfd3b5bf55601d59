// needs a real server
import { setTimeout as sleep } from 'node:timers/promises'
import Fastify, { type FastifyInstance } from 'fastify'
import t, { type Test } from 'tap'
import credits, { createLedger, type FastifyAiCreditsOptions } from '../../src/index.js'
import { buildGateway } from '../helper/app.js'
import { until } from '../helper/charging.js'
import { citus } from '../helper/citus.js'
import { createLedgerDatabase, createPool } from '../helper/database.js'
import { cuts, Proxy } from './proxy.js'
import { charge, checkRecovered, checkUnavailable, unavailable } from './rest.js'

const all = <T>(count: number, call: (index: number) => T) => Promise.all(Array.from({ length: count }, (_, i) => call(i)))

for (const cut of cuts) {
  t.test(`a connection cut ${cut}: with a key every call is done once, without one it is 503`, async t => {
    const { app, proxy, direct } = await open(t)
    const spent = await app.credits.deduct({ ...charge, credits: 5 })
    const { id } = await app.credits.hold(charge)
    const calls: Array<[name: string, call: () => Promise<unknown>]> = [
      ['ai_credit_deduct', () => app.credits.deduct({ ...charge, idempotencyKey: 'k' })],
      ['ai_credit_hold', () => app.credits.hold({ ...charge, idempotencyKey: 'k' })],
      ['ai_credit_capture', () => app.credits.capture(id, { credits: 3, final: false, idempotencyKey: 'k' })],
      ['ai_credit_grant', () => app.credits.grant({ userId: 'ann', credits: 7, idempotencyKey: 'k' })],
      ['ai_credit_refund', () => app.credits.refund({ usageId: spent.id, credits: 2, idempotencyKey: 'k' })]
    ]
    for (const [name, call] of calls) {
      const happened = proxy.cutAt(cut, name)
      const answer = await call()
      await happened
      t.match(await call(), { ...answer as object, replayed: true }, name)
    }
    const release = proxy.cutAt(cut, 'ai_credit_release')
    t.match(await app.credits.release(id), { credits: 7 })
    await release
    t.match(await app.credits.balance('ann'), { total: 10_007, used: 5 + 10 + 3 - 2, held: 10 })

    const happened = proxy.cutAt(cut, 'ai_credit_deduct')
    await checkUnavailable(t, app)
    await happened
    await checkRecovered(t, app, direct)
    const charged = (await app.credits.balance('ann')).used - 16
    if (cut === 'before send') t.equal(charged, 0)
    else if (cut === 'after send') t.ok([0, 10].includes(charged))
    else t.equal(charged, 10)
  })

  t.test(`a connection cut ${cut}: a budget counts what was charged once`, async t => {
    const { app, proxy, direct } = await open(t)
    const made = proxy.cutAt(cut, 'ai_credit_set_budget')
    await app.credits.setBudget('ann', 'key:*', { total: 35 })
    await made
    for (const [name, method] of [['ai_credit_deduct', 'deduct'], ['ai_credit_hold', 'hold']] as const) {
      const happened = proxy.cutAt(cut, name)
      await app.credits[method]({ ...charge, budget: 'key:k', idempotencyKey: 'k' })
      await happened
    }
    const happened = proxy.cutAt(cut, 'ai_credit_execute')
    const outcomes = await all(10, i => app.credits.deduct({ ...charge, budget: 'key:k', idempotencyKey: `k${i}` }).catch(error => error.code))
    await happened
    t.strictSame(outcomes.filter(outcome => outcome !== 'FST_CREDITS_BUDGET_EXCEEDED').map(({ credits }) => credits), [10])
    t.match((await app.credits.budgets('ann')).entries, [{ budget: 'key:*' }, { budget: 'key:k', used: { total: 20 }, held: 10 }])
    const removed = proxy.cutAt(cut, 'ai_credit_remove_budget')
    await t.rejects(app.credits.removeBudget('ann', 'key:k'), unavailable, 'it may have been removed')
    await removed
    await checkRecovered(t, app, direct)
    const there = (await app.credits.budgets('ann')).entries.length === 2
    if (cut !== 'after send') t.equal(there, cut === 'before send')
  })

  t.test(`a connection cut ${cut}, of a statement that many calls share`, async t => {
    const { app, proxy, direct } = await open(t)
    await all(10, i => app.credits.balance(`user ${i}`))
    const happened = proxy.cutAt(cut, 'ai_credit_execute')
    const outcomes = await Promise.allSettled(Array.from({ length: 40 }, (_, i) => app.credits.deduct({
      ...charge, userId: `user ${i % 10}`, ...i < 20 && { idempotencyKey: `key ${i}` }
    })))
    await happened
    const told = outcomes.map(outcome => outcome.status === 'fulfilled' ? 200 : outcome.reason.statusCode)
    t.strictSame(told.slice(0, 20), Array(20).fill(200))
    t.ok(told.slice(20).includes(503))
    if (citus === undefined) t.strictSame(told.slice(20), Array(20).fill(503)) // on a cluster, statements to other nodes go on
    await checkRecovered(t, app, direct)
    const { rows } = await createPool(t, direct).query(`
      select idempotency_key as key, count(*)::int from ai_credit_usage where user_id <> 'later' group by 1`)
    const byKey = new Map(rows.map(({ key, count }) => [key, count]))
    for (let i = 0; i < 20; i++) t.equal(byKey.get(`key ${i}`), 1, `key ${i}`)
    const unkeyed = byKey.get(null) ?? 0
    const answered = told.slice(20).filter(status => status === 200).length
    if (cut === 'before send') t.equal(unkeyed, answered)
    else if (cut === 'after send') t.ok(unkeyed <= 20) // it passes over accounts that the repeated calls hold meanwhile
    else t.equal(unkeyed, 20)
  })
}

t.test('a line that is cut again and again', async t => {
  const { app, proxy, direct } = await open(t, { timeout: 20_000 })
  // A line that is cut while it connects is 503 at once: whoever has a key repeats the call until it is answered.
  const deduct = async (i: number): Promise<unknown> => {
    const call = { ...charge, userId: `user ${i % 7}`, credits: 1, idempotencyKey: `${i}` }
    return await app.credits.deduct(call).catch(() => deduct(i))
  }
  const calls = all(200, deduct)
  for (let cut = 0; cut < 5; cut++) {
    await sleep(20)
    proxy.cutAll()
  }
  await calls
  await checkRecovered(t, app, direct)
  t.equal((await createPool(t, direct).query("select from ai_credit_usage where user_id <> 'later'")).rowCount, 200)
})

t.test('a line that stalls: 503 in time, and with a key charged once when it flows again', async t => {
  const { app, proxy, direct } = await open(t, { timeout: 1500 })
  await app.credits.deduct(charge)
  proxy.stall()
  await Promise.all([
    ...Array.from({ length: 30 }, () => checkUnavailable(t, app)),
    checkUnavailable(t, app, 'k'),
    t.rejects(app.credits.balance('ann'), unavailable),
    t.rejects(app.credits.statement('ann'), unavailable),
    t.rejects(app.credits.grant({ userId: 'ann', credits: 1 }), unavailable)
  ])
  proxy.flow()
  await app.credits.deduct({ ...charge, idempotencyKey: 'k' })
  t.equal((await app.credits.deduct({ ...charge, idempotencyKey: 'k' })).replayed, true)
  await checkRecovered(t, app, direct)
  const { rowCount } = await createPool(t, direct).query("select from ai_credit_usage where idempotency_key = 'k'")
  t.equal(rowCount, 1)
})

t.test('a server that stops answering, and that nothing tells from a slow one: as soon as it is back, so are calls', async t => {
  const { app, proxy, direct } = await open(t, { timeout: 1500 })
  await app.credits.deduct(charge)
  proxy.hush()
  for (let round = 0; round < 3; round++) {
    const calls = Array.from({ length: 20 }, () => app.credits.balance('ann'))
    for (const { status } of await Promise.allSettled(calls)) t.equal(status, 'rejected')
    await checkUnavailable(t, app)
  }
  proxy.speak()
  t.equal((await app.credits.deduct(charge)).balance.used, 20)
  await checkRecovered(t, app, direct)
})

t.test('the same on a pool of the plugin\'s own', async t => {
  const direct = await createLedgerDatabase(t)
  const proxy = await Proxy.open(t, direct)
  const app = Fastify()
  t.teardown(() => app.close())
  await app.register(credits, { connectionString: proxy.connectionString, timeout: 1500 })
  await app.credits.deduct(charge)
  proxy.hush()
  await Promise.all(Array.from({ length: 30 }, () => t.rejects(app.credits.balance('ann'), unavailable)))
  proxy.speak()
  t.equal((await app.credits.deduct(charge)).balance.used, 20)
})

t.test('while the server is away, no more wait than may, and the pool is asked for no more than it can have', async t => {
  const { app, proxy, direct } = await open(t, { timeout: 1500, maxQueue: 50 })
  await app.credits.deduct(charge)
  proxy.hush()
  let refused = 0
  const calls = Array.from({ length: 500 }, (_, i) => (i % 2 ? app.credits.balance('ann') : app.credits.deduct(charge))
    .catch(error => { if (/maxQueue/.test(error.cause.message)) refused++ }))
  await until(() => refused, refused => refused >= 500 - 2 * 50 - 20)
  t.ok(app.pg.pool.waitingCount + app.pg.pool.totalCount <= app.pg.pool.options.max)
  await Promise.all(calls)
  proxy.speak()
  await app.credits.balance('ann')
  await checkRecovered(t, app, direct)
})

t.test('a server that goes away in the moment it has let somebody in', async t => {
  const { app, proxy, direct } = await open(t)
  await app.credits.deduct(charge)
  proxy.cutAll()
  while (app.pg.pool.totalCount > 0) await sleep(10)
  proxy.endAtWelcome()
  t.equal((await app.credits.deduct({ ...charge, idempotencyKey: 'k' })).balance.used, 20)
  await checkRecovered(t, app, direct)
})

t.test('a pool that tells nothing of itself, and one that has a limit of its own', async t => {
  const pool = createPool(t, await createLedgerDatabase(t), { max: 5, connectionTimeoutMillis: 60_000 })
  const wrapped = { connect: () => pool.connect(), on: () => {} }
  for (const one of [wrapped, pool]) {
    const ledger = createLedger(one, { timeout: 20_000 })
    await ledger.migrate()
    await all(30, i => ledger.balance(`user ${i}`))
    t.match(await ledger.reconcile(), { ok: true })
    const taken = await all(5, () => pool.connect())
    await t.rejects(createLedger(one, { timeout: 200 }).balance('ann'), unavailable)
    for (const client of taken) client.release()
    while (pool.idleCount < pool.totalCount) await sleep(10) // what comes too late is given back
    t.equal(pool.waitingCount, 0)
  }
})

// A gateway that reaches its database by way of a proxy.
async function open (t: Test, options: FastifyAiCreditsOptions = {}): Promise<{ app: FastifyInstance, proxy: Proxy, direct: string }> {
  const direct = await createLedgerDatabase(t)
  const proxy = await Proxy.open(t, direct)
  const app = await buildGateway(t, options, { connectionString: proxy.connectionString })
  t.teardown(() => proxy.cutAll()) // before the gateway closes: its pool waits for silent connections
  return { app, proxy, direct }
}
