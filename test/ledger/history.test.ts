import t from 'tap'
import type { FastifyInstance, LightMyRequestResponse } from 'fastify'
import { buildGateway, postDeduct } from '../helper/app.js'
import { citus } from '../helper/citus.js'

const today = () => new Date().toISOString().slice(0, 10)

async function historyOf (app: FastifyInstance, userId: string) {
  return (await app.inject({ url: '/api/credits', query: { user_id: userId } })).json().credits.usage_history
}

/** Writes daily usage of past days, like charges on those days would have. */
async function addDay (app: FastifyInstance, daysAgo: number, used: number, operation = 'chat', metadata = {}) {
  await app.pg.query(`insert into ai_credit_daily_usage
    values ('ann', (now() at time zone 'UTC')::date - $1::integer, $2, ai_credit_hash($3), $3, $4)`,
  [daysAgo, operation, JSON.stringify(metadata), used])
}

t.test('a new account has no history', async t => {
  const app = await buildGateway(t)
  const reply = await app.inject('/api/credits?user_id=ann')
  t.strictSame(reply.json(), { credits: { available: 10000, total: 10000, used: 0, usage_history: [] } })
  t.notOk(reply.headers.link)
})

t.test('one entry for each operation and metadata, whatever the order of its keys', async t => {
  const app = await buildGateway(t)
  const charge = (credits: number, operation: string, metadata?: object) =>
    postDeduct(app, { user_id: 'ann', credits, operation, ...metadata && { metadata } })
  await charge(1, 'chat', { model: 'a', words: 5 })
  await charge(2, 'chat', { words: 5, model: 'a' })
  await charge(4, 'chat', { words: 6, model: 'a' })
  await charge(8, 'image')
  await charge(16, 'image', {})
  await charge(3, 'audio')
  t.strictSame(await historyOf(app, 'ann'), [
    { date: today(), used: 24, operation: 'image' },
    { date: today(), used: 4, operation: 'chat', model: 'a', words: 6 },
    { date: today(), used: 3, operation: 'audio' },
    { date: today(), used: 3, operation: 'chat', model: 'a', words: 5 }
  ])
})

t.test('metadata cannot overwrite date, used and operation, and its other keys are kept as they are', async t => {
  const app = await buildGateway(t)
  const metadata = { date: 'x', used: 'y', operation: 'z', toString: 1, hasOwnProperty: 2, constructor: 3, 7: 'seven' }
  await postDeduct(app, { user_id: 'ann', credits: 1, operation: 'chat', metadata })
  const [entry] = await historyOf(app, 'ann')
  t.strictSame(entry,
    { date: today(), used: 1, operation: 'chat', toString: 1, hasOwnProperty: 2, constructor: 3, 7: 'seven' })
  const { entries } = await app.credits.history('ann')
  t.strictSame(entries, [{ date: today(), used: 1, operation: 'chat', metadata }])
})

t.test('a metadata key __proto__ in old records is shown as data', async t => {
  const app = await buildGateway(t)
  await app.credits.balance('ann')
  await app.pg.query(`insert into ai_credit_daily_usage
    select 'ann', now() at time zone 'UTC', 'chat', ai_credit_hash(m), m, 1
    from (select '{"__proto__": {"admin": true}}'::jsonb as m) old`)
  const reply = await app.inject('/api/credits?user_id=ann')
  t.match(reply.body, '"operation":"chat","__proto__":{"admin":true}}')
})

t.test('newest day first, within a day the largest, then by operation', async t => {
  const app = await buildGateway(t)
  await app.credits.balance('ann')
  await addDay(app, 2, 900)
  await addDay(app, 1, 5, 'b')
  await addDay(app, 1, 5, 'a')
  await addDay(app, 1, 5, 'B')
  await addDay(app, 1, 7, 'c')
  const { entries } = await app.credits.history('ann')
  t.strictSame(entries.map(({ operation, used }) => [operation, used]), [['c', 7], ['B', 5], ['a', 5], ['b', 5], ['chat', 900]])
})

t.test('thirty days, today included, or as many as asked for', async t => {
  const app = await buildGateway(t)
  await app.credits.balance('ann')
  for (const daysAgo of [0, 1, 29, 30, 31]) await addDay(app, daysAgo, daysAgo + 1)
  t.strictSame((await historyOf(app, 'ann')).map(({ used }: { used: number }) => used), [1, 2, 30])
  t.strictSame((await app.credits.history('ann', { days: 1 })).entries.length, 1)
  t.strictSame((await app.credits.history('ann', { days: 32 })).entries.length, 5)
  const week = await buildGateway(t, { historyDays: 7 }, { connectionString: app.pg.pool.options.connectionString })
  t.equal((await historyOf(week, 'ann')).length, 2)
})

t.test('pages lead through all entries, once each', async t => {
  const app = await buildGateway(t, { historyLimit: 3 })
  await app.credits.balance('a n&n')
  for (let i = 0; i < 10; i++) {
    await app.credits.deduct({ userId: 'a n&n', credits: 1 + i % 3, operation: `op ${i % 2}`, metadata: { i } })
  }
  const seen = []
  let url: string | undefined = '/api/credits?user_id=a%20n%26n'
  for (let pages = 0; url !== undefined; pages++) {
    t.ok(pages < 4)
    const reply: LightMyRequestResponse = await app.inject(url)
    const page = reply.json().credits.usage_history
    t.ok(page.length <= 3)
    seen.push(...page)
    url = /^<(.*)>; rel="next"$/.exec(String(reply.headers.link))?.[1]
  }
  t.equal(new Set(seen.map(({ i }) => i)).size, 10)
  t.strictSame(seen, (await historyOf(await buildGateway(t, {}, { connectionString: app.pg.pool.options.connectionString }), 'a n&n')))

  const first = await app.credits.history('a n&n', { limit: 9 })
  t.equal(first.entries.length, 9)
  const second = await app.credits.history('a n&n', { limit: 9, cursor: first.cursor! })
  t.equal(second.entries.length, 1)
  t.equal(second.cursor, null)
})

t.test('a full last page has no next', async t => {
  const app = await buildGateway(t, { historyLimit: 2 })
  await app.credits.deduct({ userId: 'ann', credits: 1, operation: 'a' })
  await app.credits.deduct({ userId: 'ann', credits: 1, operation: 'b' })
  t.notOk((await app.inject('/api/credits?user_id=ann')).headers.link)
  t.equal((await app.credits.history('ann')).cursor, null)
})

t.test('a day begins where timeZone says', { skip: citus !== undefined }, async t => {
  const zones = { 'Pacific/Kiritimati': 14, 'Etc/GMT+12': -12 }
  for (const [timeZone, hours] of Object.entries(zones)) {
    const app = await buildGateway(t, { timeZone })
    await app.credits.deduct({ userId: 'ann', credits: 1, operation: 'chat' })
    const [entry] = await historyOf(app, 'ann')
    t.equal(entry.date, new Date(Date.now() + hours * 3_600_000).toISOString().slice(0, 10))
    t.equal((await app.credits.history('ann', { days: 1 })).entries.length, 1)
  }
})
