import t, { type Test } from 'tap'
import type { FastifyInstance, FastifyRequest } from 'fastify'
import type { FastifyAiCreditsOptions } from '../src/index.js'
import { buildGateway } from './helper/app.js'

const service = { authorization: 'Bearer service' }

function authorize (request: FastifyRequest) {
  if (request.headers.authorization !== service.authorization) throw Object.assign(new Error('Who?'), { statusCode: 401 })
  return true
}

const build = (t: Test, options: FastifyAiCreditsOptions = {}) => buildGateway(t, { management: { authorize }, ...options })

async function post (app: FastifyInstance, path: string, body?: object, headers: object = service) {
  return await app.inject({ method: 'POST', url: `/api/credits${path}`, headers: { ...headers }, ...body && { body } })
}

const routes: Array<['GET' | 'POST', string]> = [
  ['POST', '/grants'], ['POST', '/holds'], ['POST', '/holds/1/capture'], ['POST', '/holds/1/release'],
  ['POST', '/holds/1/extend'], ['POST', '/refunds'], ['GET', '/statement']
]

t.test('without management there are no such routes', async t => {
  const app = await buildGateway(t)
  for (const [method, path] of routes) {
    t.equal((await app.inject({ method, url: `/api/credits${path}` })).statusCode, 404, path)
  }
})

t.test('management without authorize is refused at registration', async t => {
  for (const management of [{}, true, { authorize: 'yes' }, { authorize, guard: 1 }]) {
    await t.rejects(buildGateway(t, { management: management as never }),
      { code: 'FST_CREDITS_INVALID_OPTION', message: /management/ })
  }
})

t.test('authorize must let a request through', async t => {
  const answers: Array<[FastifyAiCreditsOptions['management'], number]> = [
    [{ authorize }, 401],
    [{ authorize: () => false }, 403],
    [{ authorize: async () => false }, 403],
    [{ authorize: (_request, reply) => reply.code(418).send({}) }, 418]
  ]
  for (const [management, status] of answers) {
    const app = await build(t, { management })
    const bodies: Record<string, object> = {
      '/grants': { credits: 1 }, '/holds': { credits: 1, operation: 'chat' }, '/holds/1/extend': { ttl: 1000 }
    }
    for (const [method, path] of routes) {
      const body = method === 'POST' ? { body: bodies[path] ?? {} } : {}
      const reply = await app.inject({ method, url: `/api/credits${path}`, ...body })
      t.equal(reply.statusCode, status, path)
    }
    t.strictSame((await app.pg.query('select from ai_credits')).rows, [])
  }
})

t.test('a hold is captured, extended and released', async t => {
  const app = await build(t)
  const held = await post(app, '/holds', { user_id: 'ann', credits: 40, operation: 'chat', metadata: { model: 'x' }, ttl: 60_000 })
  t.equal(held.statusCode, 200)
  const { id, expires_at: expiresAt, ...hold } = held.json()
  t.strictSame(hold, {
    user_id: 'ann', credits: 40, operation: 'chat', balance: { available: 9960, total: 10000, used: 0, held: 40 }
  })
  t.ok(Date.parse(expiresAt) > Date.now())

  const extended = (await post(app, `/holds/${id}/extend`, { ttl: 3_600_000 })).json()
  t.ok(Date.parse(extended.expires_at) > Date.parse(expiresAt))
  const part = (await post(app, `/holds/${id}/capture`, { credits: 10, final: false }, { ...service, 'idempotency-key': 'p' }))
  t.match(part.json(), { hold_id: id, user_id: 'ann', credits: 10, uncollected: 0, balance: { used: 10, held: 30 } })
  const again = (await post(app, `/holds/${id}/capture`, { credits: 10, final: false }, { ...service, 'idempotency-key': 'p' }))
  t.equal(again.headers['idempotency-replayed'], 'true')
  t.equal(again.body, part.body)

  const released = await post(app, `/holds/${id}/release`)
  t.match(released.json(), { id, credits: 30, balance: { available: 9990, total: 10000, used: 10 } })
  t.equal((await post(app, `/holds/${id}/release`, {})).headers['idempotency-replayed'], 'true')
  t.match((await post(app, `/holds/${id}/capture`)).json(), { statusCode: 409, code: 'FST_CREDITS_HOLD_CLOSED' })
})

t.test('credits are granted once per key, and refunded', async t => {
  const app = await build(t)
  const headers = { ...service, 'idempotency-key': 'payment-1' }
  const body = { user_id: 'ann', credits: 500, reason: 'purchase', expires_at: '2099-01-01T00:00:00Z', priority: 10 }
  const granted = await post(app, '/grants', body, headers)
  t.match(granted.json(), {
    user_id: 'ann', credits: 500, expires_at: '2099-01-01T00:00:00.000Z', priority: 10, balance: { total: 10500 }
  })
  t.equal((await post(app, '/grants', body, headers)).body, granted.body)
  t.match((await post(app, '/grants', { ...body, credits: 501 }, headers)).json(), { statusCode: 409 })

  const { id: usageId } = await app.credits.deduct({ userId: 'ann', credits: 100, operation: 'chat', idempotencyKey: 'd' })
  t.match((await post(app, '/refunds', { usage_id: usageId, credits: 30, reason: 'slow' })).json(),
    { usage_id: usageId, user_id: 'ann', credits: 30, balance: { used: 70 } })
  t.match((await post(app, '/refunds', { user_id: 'ann', deduct_key: 'd' })).json(), { credits: 70, balance: { used: 0 } })
  t.match((await post(app, '/refunds', { usage_id: usageId })).json(), { statusCode: 409, code: 'FST_CREDITS_REFUND_EXCEEDS' })
})

t.test('the statement, in pages', async t => {
  const app = await build(t)
  await app.credits.deduct({ userId: 'ann', credits: 100, operation: 'chat' })
  await app.credits.grant({ userId: 'ann', credits: 5, reason: 'bonus' })
  const get = (query: string) => app.inject({ url: `/api/credits/statement?${query}`, headers: service })
  const first = await get('user_id=ann&limit=2')
  t.match(first.json(), {
    entries: [{ seq: 0, kind: 'opening', amount: 10000 }, { seq: 1, kind: 'deduct', amount: -100, operation: 'chat' }]
  })
  const next = /^<(.*)>; rel="next"$/.exec(String(first.headers.link))![1]!
  const second = await app.inject({ url: next, headers: service })
  t.match(second.json(), { entries: [{ seq: 2, kind: 'grant', amount: 5, reason: 'bonus' }], cursor: null })
  t.notOk(second.headers.link)
  t.strictSame((await get('user_id=ann&from=2099-01-01T00:00:00Z')).json().entries, [])
})

t.test('what is malformed is refused, and names the field', async t => {
  const app = await build(t)
  const { id } = (await post(app, '/holds', { credits: 10, operation: 'chat' })).json()
  const refused: Array<[path: string, body: object | undefined, field: string]> = [
    ['/grants', {}, 'credits'],
    ['/grants', { credits: '5' }, 'credits'],
    ['/grants', { credits: 5, expires_at: '2001-01-01T00:00:00Z' }, 'expires_at'],
    ['/grants', { credits: 5, expires_at: 'tomorrow' }, 'expires_at'],
    ['/grants', { credits: 5, priority: 101 }, 'priority'],
    ['/grants', { credits: 5, userId: 'ann' }, 'userId'],
    ['/grants', { credits: Number.MAX_SAFE_INTEGER }, 'credits'],
    ['/grants', undefined, 'body'],
    ['/holds', { credits: 5, operation: 'chat', ttl: 10 }, 'ttl'],
    [`/holds/${id}/capture`, { credits: 0 }, 'credits'],
    [`/holds/${id}/capture`, { final: 'yes' }, 'final'],
    [`/holds/${id}/capture`, { shortfall: 'ask' }, 'shortfall'],
    [`/holds/${id}/extend`, {}, 'ttl'],
    [`/holds/${id}/extend`, undefined, 'body'],
    ['/refunds', {}, 'usage_id'],
    ['/refunds', { usage_id: 1 }, 'usage_id']
  ]
  for (const [path, body, field] of refused) {
    const reply = await post(app, path, body)
    t.match(reply.json(), { statusCode: 400, code: 'FST_ERR_VALIDATION', message: field }, `${path} ${JSON.stringify(body)}`)
  }
  for (const query of ['limit=x', 'limit=0', 'cursor=x', 'from=x', 'limit=1&limit=2', 'userid=ann']) {
    const reply = await app.inject({ url: `/api/credits/statement?${query}`, headers: service })
    t.match(reply.json(), { statusCode: 400, code: 'FST_ERR_VALIDATION' }, query)
  }
  t.match((await post(app, '/grants', { credits: 5 }, { ...service, 'idempotency-key': 'x'.repeat(256) })).json(), { statusCode: 400 })
})

t.test('an unknown id is not found, and neither is another account\'s', async t => {
  const app = await build(t)
  const { id } = (await post(app, '/holds', { user_id: 'ann', credits: 10, operation: 'chat' })).json()
  for (const reply of [
    await post(app, `/holds/${id}/capture`, { user_id: 'bob' }),
    await post(app, '/holds/999/release'),
    await post(app, '/holds/nonsense/release'),
    await post(app, '/holds/99999999999999999999/extend', { ttl: 1000 }),
    await post(app, '/refunds', { usage_id: '999' })
  ]) t.match(reply.json(), { statusCode: 404, code: 'FST_CREDITS_NOT_FOUND' })
})

t.test('with identify, or without a default user, a service must name the account', async t => {
  for (const options of [{ identify: () => 'ann' }, { defaultUser: null }]) {
    const app = await build(t, options)
    t.match((await post(app, '/grants', { credits: 1 })).json(), { statusCode: 400, message: /user_id is required/ })
    t.equal((await post(app, '/grants', { user_id: 'bob', credits: 1 })).statusCode, 200)
  }
})

t.test('the other routes can be left out', async t => {
  const app = await build(t, { routes: false })
  t.equal((await post(app, '/grants', { credits: 1 })).statusCode, 200)
  t.equal((await app.inject('/api/credits')).statusCode, 404)
})
