import t, { type Test } from 'tap'
import type { FastifyInstance, FastifyRequest, FastifyServerOptions } from 'fastify'
import type { FastifyAiCreditsOptions } from '../../src/index.js'
import { buildGateway } from '../helper/app.js'

const service = { authorization: 'Bearer service' }

function authorize (request: FastifyRequest) {
  if (request.headers.authorization !== service.authorization) throw Object.assign(new Error('Who?'), { statusCode: 401 })
  return true
}

const build = (t: Test, options: FastifyAiCreditsOptions = {}) => buildGateway(t, { management: { authorize }, ...options })

async function post (app: FastifyInstance, path: string, body?: object, headers: object = service) {
  return await app.inject({ method: 'POST', url: `/api/credits${path}`, headers: { ...headers }, ...body && { body } })
}

const routes: Array<['GET' | 'POST' | 'PUT' | 'DELETE', string]> = [
  ['POST', '/grants'], ['POST', '/holds'], ['POST', '/holds/1/capture'], ['POST', '/holds/1/release'],
  ['POST', '/holds/1/extend'], ['POST', '/refunds'], ['GET', '/statement'],
  ['PUT', '/budgets/key:k1'], ['DELETE', '/budgets/key:k1'], ['PUT', '/budgets/a/b'], ['DELETE', `/budgets/${'x'.repeat(200)}`]
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
      const body = ['POST', 'PUT'].includes(method) ? { body: bodies[path] ?? {} } : {}
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

t.test('a budget is made, changed and removed', async t => {
  const app = await build(t)
  const put = (budget: string, body: object) => app.inject({ method: 'PUT', url: `/api/credits/budgets/${budget}`, headers: service, body })
  const remove = (budget: string, query = 'user_id=acme') =>
    app.inject({ method: 'DELETE', url: `/api/credits/budgets/${budget}?${query}`, headers: service })
  const acme = { user_id: 'acme' }
  t.strictSame((await put('team:ml', { ...acme, total: 9 })).json(), {
    budget: 'team:ml', within: null, limits: { total: 9 }, used: { total: 0 }, held: 0, resets_at: { total: null }
  })
  const made = await put('key:k1', { ...acme, within: 'team:ml', day: 5, week: 6, month: 7 })
  t.equal(made.statusCode, 200)
  const { resets_at: resetsAt, ...rest } = made.json()
  t.strictSame(rest, {
    budget: 'key:k1', within: 'team:ml', limits: { day: 5, week: 6, month: 7 }, used: { day: 0, week: 0, month: 0 }, held: 0
  })
  t.match(resetsAt, { day: /Z$/, week: /Z$/, month: /Z$/ })
  await app.credits.deduct({ userId: 'acme', budget: 'key:k1', credits: 2, operation: 'chat' })
  t.match((await put('key:k1', { ...acme, day: 0 })).json(), { within: null, limits: { day: 0 }, used: { day: 2 } })
  t.strictSame((await put('key:k1', { ...acme, within: 'team:ml' })).json().limits, {}, 'a limit that is left out is removed')

  t.match((await remove('team:ml')).json(), { statusCode: 409, code: 'FST_CREDITS_BUDGET_IN_USE' })
  const removed = await remove('key:k1')
  t.strictSame([removed.statusCode, removed.body], [204, ''])
  t.match((await remove('key:k1')).json(), { statusCode: 404, code: 'FST_CREDITS_NOT_FOUND' })
  t.equal((await remove('team:ml', 'user_id=bob')).statusCode, 404)
  t.equal((await put('own', {})).statusCode, 200)
  t.equal((await remove('own', '')).statusCode, 204, 'of the default user')
  t.strictSame((await app.credits.budgets('acme')).entries.map(({ budget }) => budget), ['team:ml'])
})

t.test('a budget of any name is made and removed, whatever the host\'s maxParamLength', async t => {
  const names = [
    'team:ml', 'key:*', 'a/b', '/', 'a//b/', '50%', '%2F', '%252F', 'ключ 😀', 'a b', 'a+b', 'a?b#c&d=e', "o'hara", ';,;', '__proto__', 'constructor',
    'prototype', '*', ':budget', '{budget}', 'x'.repeat(100), 'x'.repeat(101), 'x'.repeat(255), '😀'.repeat(255), '%'.repeat(255), `${'/'.repeat(254)}x`
  ]
  for (const routerOptions of [{}, { maxParamLength: 10 }, { maxParamLength: 5000 }, { useSemicolonDelimiter: true, caseSensitive: false }]) {
    const app = await buildGateway(t, { management: { authorize }, prefix: '/gw' }, { server: { routerOptions } })
    const ask = (method: 'PUT' | 'DELETE', name: string) => app.inject({
      method, url: `/gw/credits/budgets/${encodeURIComponent(name)}`, headers: service, ...method === 'PUT' && { body: { day: 5 } }
    })
    for (const name of names) t.strictSame((await ask('PUT', name)).json().budget, name, name.slice(0, 20))
    t.strictSame((await app.credits.budgets()).entries.map(({ budget }) => budget).sort(), [...names].sort())
    for (const name of names) t.equal((await ask('DELETE', name)).statusCode, 204, name.slice(0, 20))
    for (const name of ['x'.repeat(256), '😀'.repeat(256), 'x'.repeat(5000), 'a\0b', '\0'.repeat(101)]) {
      for (const method of ['PUT', 'DELETE'] as const) {
        t.match((await ask(method, name)).json(), { statusCode: 400, code: 'FST_ERR_VALIDATION', message: /^params\/budget must be/ })
      }
    }
  }
})

t.test('a semicolon in the path belongs to the name of the budget, unless the host lets it begin the query', async t => {
  const path = '/api/credits/budgets/a;user_id=ann'
  for (const [server, budget, userId] of [
    [{}, 'a;user_id=ann', 'bob'], [{ routerOptions: { useSemicolonDelimiter: true } }, 'a', 'ann'], [{ useSemicolonDelimiter: true }, 'a', 'ann']
  ] as const) {
    const app = await buildGateway(t, { management: { authorize } }, { server: server as FastifyServerOptions })
    const put = await app.inject({ method: 'PUT', url: path, headers: service, body: { user_id: userId } })
    t.equal(put.statusCode, userId === 'bob' ? 200 : 400, 'a PUT takes no query')
    await app.credits.setBudget(userId, budget, {})
    const removed = await app.inject({ method: 'DELETE', url: userId === 'bob' ? `${path}?user_id=bob` : path, headers: service })
    t.equal(removed.statusCode, 204, removed.body)
    t.strictSame((await app.pg.query('select user_id from ai_credits')).rows, [{ user_id: userId }])
  }
})

t.test('parameters in the prefix are no budgets, and authorize sees them', async t => {
  for (const parameter of ['budget', 'tenant']) {
    const app = await buildGateway(t, {
      prefix: `/gw/:${parameter}`,
      management: { authorize: ({ params }) => parameter === 'budget' || (params as { tenant?: string }).tenant === 'acme' }
    })
    for (const name of ['a', 'a/b', 'x'.repeat(101)]) {
      const url = `/gw/acme/credits/budgets/${name}`
      t.match((await app.inject({ method: 'PUT', url, body: {} })).json(), { budget: name }, `${parameter} ${name}`)
      t.equal((await app.inject({ method: 'DELETE', url })).statusCode, 204)
    }
  }
})

t.test('a budget\'s name that is malformed in the path is refused', async t => {
  const app = await build(t)
  for (const name of ['%', '%F', '%zz', '%FF', '%C0%AF', '%ED%A0%80', 'key%3A%', `${'x'.repeat(200)}%`]) {
    for (const method of ['PUT', 'DELETE'] as const) {
      const reply = await app.inject({ method, url: `/api/credits/budgets/${name}`, headers: service, ...method === 'PUT' && { body: {} } })
      t.equal(reply.statusCode, 400, name)
    }
  }
  t.equal((await app.inject({ method: 'PUT', url: '/api/credits/budgets/', headers: service, body: {} })).statusCode, 400)
  t.strictSame((await app.pg.query('select from ai_credit_budgets')).rows, [])
})

t.test('what is malformed of a budget is refused, and names the field', async t => {
  const app = await build(t)
  await app.credits.setBudget(undefined, 'top', {})
  await app.credits.setBudget(undefined, 'below', { within: 'top' })
  for (let level = 1; level < 8; level++) await app.credits.setBudget(undefined, `l${level + 1}`, level === 1 ? {} : { within: `l${level}` })
  const put = (budget: string, body?: unknown, query = '') => app.inject({
    method: 'PUT', url: `/api/credits/budgets/${budget}${query}`, headers: { ...service, 'content-type': 'application/json' }, body: JSON.stringify(body) ?? ''
  })
  for (const [budget, body, field] of [
    ['b', { day: '5' }, 'body/day'], ['b', { week: -1 }, 'body/week'], ['b', { month: 1.5 }, 'body/month'], ['b', { total: 2 ** 53 }, 'body/total'],
    ['b', { total: null }, 'body/total'], ['b', { year: 5 }, 'body/year'], ['b', { Day: 5 }, 'body/Day'], ['b', { within: '' }, 'body/within'],
    ['b', { within: 'key:*' }, 'body/within'], ['b', { within: null }, 'body/within'], ['b', { budget: 'c' }, 'body/budget'], ['b', { userId: 'ann' }, 'body/userId'],
    ['b', { user_id: '' }, 'body/user_id'], ['top', { within: 'top' }, 'body/within'], ['top', { within: 'below' }, 'body/within'], ['b', [], 'body'], ['b', 5, 'body']
  ] as const) t.match((await put(budget, body)).json(), { statusCode: 400, code: 'FST_ERR_VALIDATION', message: field }, JSON.stringify(body))
  await app.credits.setBudget(undefined, 'l9', { within: 'l8' })
  t.match((await put('l10', { within: 'l9' })).json(), { statusCode: 400, message: /^body\/within would make more than 8 levels/ })
  t.match((await put('b', { within: 'nothing' })).json(), { statusCode: 404, code: 'FST_CREDITS_NOT_FOUND' })
  t.match((await put('b', {}, '?user_id=ann')).json(), { statusCode: 400, message: 'querystring/user_id' })
  t.equal((await put('b')).statusCode, 400, 'a definition is needed')
  t.equal((await app.inject({ method: 'PUT', url: '/api/credits/budgets/b', headers: service })).statusCode, 400)
  for (const query of ['user_id=', 'user_id=a&user_id=b', 'userid=a', 'user_id=%FF']) {
    const reply = await app.inject({ method: 'DELETE', url: `/api/credits/budgets/top?${query}`, headers: service })
    t.match(reply.json(), { statusCode: 400, code: 'FST_ERR_VALIDATION', message: /^querystring/ }, query)
  }
  const named = await app.inject({ method: 'DELETE', url: '/api/credits/budgets/below', headers: service, body: { user_id: 'ann' } })
  t.match(named.json(), { statusCode: 400, message: 'body must not be there' })
  t.equal((await app.credits.budgets()).entries.length, 10)
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
    for (const method of ['PUT', 'DELETE'] as const) {
      const reply = await app.inject({ method, url: '/api/credits/budgets/b', headers: service, ...method === 'PUT' && { body: {} } })
      t.match(reply.json(), { statusCode: 400, message: /user_id is required/ })
    }
  }
})

t.test('the other routes can be left out', async t => {
  const app = await build(t, { routes: false })
  t.equal((await post(app, '/grants', { credits: 1 })).statusCode, 200)
  t.equal((await app.inject('/api/credits')).statusCode, 404)
})
