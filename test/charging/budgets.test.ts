import type { FastifyInstance, FastifyRequest } from 'fastify'
import t, { type Test } from 'tap'
import type { FastifyAiCreditsOptions, RouteCredits } from '../../src/index.js'
import { buildCharged, reconciles, type ChargedGateway, type ChargedSettings } from '../helper/charging.js'
import { createLedgerDatabase } from '../helper/database.js'

const NOT_ITS_OWN = {
  statusCode: 403, code: 'FST_CREDITS_FORBIDDEN', error: 'Forbidden', message: 'The request names a budget that is not its own'
}

let worked = 0

const work = async ({ credits }: FastifyRequest) => {
  worked++
  return { budget: credits!.budget }
}

const byHeader = (request: FastifyRequest) => request.headers['x-key'] as string | undefined

/** The header x-user is a user id, or `account/budget`. */
const identify: FastifyAiCreditsOptions['identify'] = ({ headers }) => {
  const [userId, budget] = String(headers['x-user']).split('/')
  return budget === undefined ? userId : { userId: userId!, budget }
}

function declare (app: FastifyInstance) {
  const route = (url: string, credits: Partial<RouteCredits>) =>
    app.get(url, { config: { credits: { operation: 'chat', cost: 10, ...credits } } }, work)
  route('/plain', {})
  route('/named', { budget: 'key:k1' })
  route('/by-header', { budget: byHeader })
  route('/later', { budget: async request => byHeader(request) ?? null })
  route('/free', { cost: 0, budget: 'nothing' })
  route('/dear', { cost: 900 })
  route('/own-user', { user: () => ({ userId: 'acme', budget: 'key:k2' }) })
  route('/own-user-and-budget', { user: () => ({ userId: 'acme', budget: 'key:k2' }), budget: byHeader })
  route('/none', { budget: () => '' })
  app.get('/by-use', { config: { credits: { operation: 'chat', hold: 50 } } }, async request => {
    request.credits!.use(30)
    return await work(request)
  })
  app.get('/handled', {
    config: { credits: { operation: 'chat', cost: 900 } },
    errorHandler: (error, _request, reply) => { reply.send({ mine: (error as { period?: string }).period }) }
  }, work)
  app.get('/schema', {
    config: { credits: { operation: 'chat', cost: 900 } },
    schema: { response: { '4xx': { type: 'object', properties: { message: { type: 'string' }, budget: { type: 'string' } } } } }
  }, work)
}

async function build (t: Test, settings: ChargedSettings = {}) {
  const gateway = await buildCharged(t, declare, { ...settings, options: { identify, ...settings.options } })
  await gateway.app.credits.setBudget('acme', 'team:ml', {})
  await gateway.app.credits.setBudget('acme', 'key:*', { within: 'team:ml', day: 100 })
  return gateway
}

async function usedIn ({ app, settled }: ChargedGateway, budget: string) {
  await settled('acme')
  return (await app.credits.history('acme', { budget })).entries.reduce((sum, { used }) => sum + used, 0)
}

t.test('the budget of a charged request: the one that identify returns, or the one that the route names', async t => {
  const gateway = await build(t)
  const ask = async (user: string, path: string, key?: string) =>
    JSON.parse((await gateway.ask(user, path, key === undefined ? {} : { headers: { 'x-key': key } })).text).budget
  t.equal(await ask('acme', '/plain'), null)
  t.equal(await ask('acme/key:k1', '/plain'), 'key:k1')
  t.equal(await ask('acme', '/named'), 'key:k1')
  t.equal(await ask('acme/key:k1', '/named'), 'key:k1')
  t.equal(await usedIn(gateway, 'key:k1'), 30)
  t.equal(await ask('acme', '/by-header', 'key:k1'), 'key:k1')
  t.equal(await ask('acme', '/later', 'key:k1'), 'key:k1')
  t.equal(await ask('acme', '/by-header'), null)
  t.equal(await ask('acme', '/later'), null)
  t.equal(await ask('acme', '/none'), null)
  t.equal(await ask('acme/key:k1', '/by-header'), 'key:k1', 'a function that names none leaves it')
  t.equal(await usedIn(gateway, 'key:k1'), 60)
  t.equal(await ask('somebody', '/own-user'), 'key:k2')
  t.equal(await ask('somebody', '/own-user-and-budget', 'key:k2'), 'key:k2')
  t.equal(await ask('acme/key:k2', '/by-use'), 'key:k2')
  t.equal(await usedIn(gateway, 'key:k2'), 50, 'what is captured counts where it was held')
  t.equal(await usedIn(gateway, 'team:ml'), 110)
  t.equal(await ask('acme', '/free'), 'nothing', 'what is free holds nothing')
  await reconciles(t, gateway)
})

t.test('a request that is bound to a budget is refused where its route counts in another one', async t => {
  const gateway = await build(t)
  worked = 0
  for (const [user, path, key] of [
    ['acme/key:k2', '/named'], ['acme/team:ml', '/named'], ['acme/key:k2', '/by-header', 'key:k1'], ['acme/key:k2', '/later', 'team:ml'],
    ['acme/key:k2', '/by-header', 'key:*'], ['acme/key:k2', '/free'], ['acme', '/own-user-and-budget', 'key:k1']
  ] as const) {
    const answer = await gateway.ask(user, path, key === undefined ? {} : { headers: { 'x-key': key } })
    t.strictSame(JSON.parse(answer.text), NOT_ITS_OWN, `${user} ${path} ${key}`)
  }
  t.equal(worked, 0)
  t.strictSame((await gateway.app.pg.query('select from ai_credit_holds')).rows, [])
})

t.test('a client can neither name another budget nor leave out its own on a charged route', async t => {
  const gateway = await build(t)
  for (const path of ['/plain?budget=key:k2', '/plain?budget=', '/plain?budget=a&budget=b', '/plain?user_id=other']) {
    const answer = await gateway.ask('acme/key:k1', path, { headers: { 'x-key': 'key:k2', budget: 'key:k2' } })
    t.strictSame(JSON.parse(answer.text), { budget: 'key:k1' }, path)
  }
  t.equal(await usedIn(gateway, 'key:k1'), 40)
  t.equal(await usedIn(gateway, 'team:ml'), 40)
})

t.test('a budget that is exceeded is 402 before the handler runs, with its details', async t => {
  const gateway = await build(t)
  worked = 0
  const answer = await gateway.ask('acme/key:k1', '/dear')
  const { resetsAt, ...body } = JSON.parse(answer.text)
  t.strictSame([answer.status, body], [402, {
    statusCode: 402,
    code: 'FST_CREDITS_BUDGET_EXCEEDED',
    error: 'Payment Required',
    message: 'Budget key:k1 is exceeded: 900 required, 100 left',
    credits: { available: 1000, total: 1000, used: 0 },
    budget: 'key:k1',
    period: 'day',
    limit: 100,
    used: 0,
    held: 0,
    required: 900
  }])
  t.equal(resetsAt, new Date(resetsAt).toISOString())
  t.equal(Number(answer.headers.get('content-length')), Buffer.byteLength(answer.text))
  t.equal(answer.headers.get('credits-cost'), null)
  t.strictSame(JSON.parse((await gateway.ask('acme/key:k1', '/handled')).text), { mine: 'day' }, 'the host\'s own answer stays')
  t.strictSame(JSON.parse((await gateway.ask('acme/key:k1', '/schema')).text), { message: body.message, budget: 'key:k1' }, 'and its schema')
  t.equal((await gateway.ask('acme/key:k1', '/dear', { method: 'HEAD' })).status, 402)
  t.equal(worked, 0)
  t.strictSame((await gateway.app.pg.query('select from ai_credit_holds')).rows, [])
})

t.test('an unknown or malformed budget is refused, and never free', async t => {
  const gateway = await build(t)
  worked = 0
  for (const [key, status, code] of [
    ['teem:ml', 404, 'FST_CREDITS_NOT_FOUND'], ['key:*', 400, 'FST_CREDITS_INVALID'], ['x'.repeat(256), 400, 'FST_CREDITS_INVALID']
  ] as const) {
    for (const path of ['/by-header', '/later']) {
      t.match(JSON.parse((await gateway.ask('acme', path, { headers: { 'x-key': key } })).text), { statusCode: status, code }, `${path} ${key}`)
    }
  }
  t.equal((await gateway.ask('acme/nothing', '/plain')).status, 404)
  t.match(JSON.parse((await gateway.ask('acme/key:*', '/plain')).text), { statusCode: 500, code: 'FST_CREDITS_INVALID_IDENTITY' })
  t.equal(worked, 0)
  t.match(await gateway.app.credits.balance('acme'), { available: 1000, held: 0 })
})

t.test('without the database a request is served in its budget as without one', async t => {
  const gateway = await buildCharged(t, app => {
    app.get('/allow', { config: { credits: { operation: 'chat', cost: 10, onUnavailable: 'allow' } } }, work)
    app.get('/refuse', { config: { credits: { operation: 'chat', cost: 10 } } }, work)
    app.get('/elsewhere', { config: { credits: { operation: 'chat', cost: 10, onUnavailable: 'allow', budget: 'key:k2' } } }, work)
  }, { options: { identify } })
  gateway.app.pg.pool.connect = () => Promise.reject(new Error('gone'))
  t.strictSame(JSON.parse((await gateway.ask('acme/key:k1', '/allow')).text), { budget: 'key:k1' })
  t.equal((await gateway.ask('acme/key:k1', '/refuse')).status, 503)
  t.equal((await gateway.ask('acme/key:k1', '/elsewhere')).status, 403)
})

t.test('charged requests and deducts of two gateways together never pass the limit of a key', async t => {
  const connectionString = await createLedgerDatabase(t)
  const gateways = [await build(t, { connectionString }), await build(t, { connectionString })]
  await gateways[0]!.app.credits.setBudget('acme', 'key:*', { within: 'team:ml', day: 185 })
  worked = 0
  const post = { method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify({ credits: 10, operation: 'chat' }) }
  const answers = await Promise.all(Array.from({ length: 60 }, (_, index) => {
    const { ask } = gateways[index % 2]!
    return index % 4 < 2 ? ask('acme/key:new', '/plain') : ask('acme/key:new', '/api/credits/deduct', post)
  }))
  t.equal(answers.filter(({ status }) => status === 200).length, 18, 'exactly those that fit')
  const refused = answers.filter(({ status }) => status !== 200).map(({ text }) => JSON.parse(text))
  t.ok(refused.every(({ code, period, limit }) => code === 'FST_CREDITS_BUDGET_EXCEEDED' && period === 'day' && limit === 185))
  for (const gateway of gateways) t.equal(await usedIn(gateway, 'key:new'), 180)
  t.match((await gateways[0]!.app.credits.budgets('acme')).entries.find(({ budget }) => budget === 'key:new'), { used: { day: 180 }, held: 0 })
  await reconciles(t, gateways[1]!)
})
