// not on Citus: about HTTP
import Fastify, { type FastifyRequest, type RouteShorthandOptions } from 'fastify'
import fp from 'fastify-plugin'
import t from 'tap'
import credits from '../../src/index.js'
import { buildGateway, buildHost, defaults } from '../helper/app.js'
import { createLedgerDatabase } from '../helper/database.js'
import { until } from '../helper/charging.js'

const video = { operation: 'video', cost: 100 }
const config = { credits: video }
const tooEarly = { statusCode: 500, code: 'FST_CREDITS_ROUTE_TOO_EARLY', message: /Route GET \/early/ }

t.test('a malformed config fails where it is declared, and names the route and the field', async t => {
  const app = await buildGateway(t)
  for (const [given, field] of [
    [null, ''],
    [7, ''],
    [{ cost: 1 }, '.operation'],
    [{ operation: '', cost: 1 }, '.operation'],
    [{ operation: 'x' }, '.cost'],
    [{ operation: 'x', cost: undefined }, '.cost'],
    [{ operation: 'x', cost: 1.5 }, '.cost'],
    [{ operation: 'x', cost: -1 }, '.cost'],
    [{ operation: 'x', cost: '1' }, '.cost'],
    [{ operation: 'x', hold: NaN }, '.hold'],
    [{ operation: 'x', cost: 1, minimum: -1 }, '.minimum'],
    [{ operation: 'x', cost: 1, metadata: 'x' }, '.metadata'],
    [{ operation: 'x', cost: 1, ttl: 10 }, '.ttl'],
    [{ operation: 'x', cost: 1, maxDuration: 10 }, '.maxDuration'],
    [{ operation: 'x', cost: 1, user: 'ann' }, '.user'],
    ...['', 'key:*', 'x'.repeat(256), 'a\0b', null, 7, ['key:k1']].map(budget => [{ operation: 'x', cost: 1, budget }, '.budget']),
    [{ operation: 'x', cost: 1, capture: 'never' }, '.capture'],
    [{ operation: 'x', cost: 1, onUnavailable: 'hope' }, '.onUnavailable'],
    [{ operation: 'x', cost: 1, costs: 1 }, '.costs']
  ] as [any, string][]) {
    t.throws(() => app.route({ method: ['GET', 'POST'], url: '/bad', config: { credits: given }, handler: async () => {} }), {
      code: 'FST_CREDITS_INVALID_OPTION', message: `Option config.credits${field} of GET,POST /bad `
    })
  }
  t.doesNotThrow(() => app.get('/good', { config: { credits: { ...video, minimum: undefined } as any } }, async () => {}))

  const nobody = await buildGateway(t, { defaultUser: null })
  t.throws(() => nobody.get('/', { config }, async () => {}), { message: /config\.credits\.user of GET \/ is required/ })
  t.doesNotThrow(() => nobody.get('/', { config: { credits: { ...video, user: () => 'ann' } } }, async () => {}))
})

t.test('inside encapsulated plugins, with any prefix and method', async t => {
  const app = await buildGateway(t, { prefix: '/billing', defaultUser: 'ann' })
  app.register(async child => {
    child.register(async grandchild => {
      grandchild.route({ method: ['PUT', 'DELETE'], url: '/', config, handler: async () => 'ok' })
      grandchild.get('/', { config, exposeHeadRoute: true }, async () => 'ok')
    }, { prefix: '/v1' })
  }, { prefix: '/gw' })
  app.register(fp(async host => { host.get('/wrapped', { config }, async () => 'ok') }))
  let used = 0
  for (const [method, url] of [
    ['PUT', '/gw/v1'], ['DELETE', '/gw/v1/'], ['GET', '/gw/v1'], ['GET', '/gw/v1/'], ['HEAD', '/gw/v1'], ['GET', '/wrapped']
  ] as const) {
    t.equal((await app.inject({ method, url })).statusCode, 200)
    used += 100
    await until(() => app.credits.balance('ann'), balance => balance.used === used && balance.held === 0)
  }
  t.equal((await app.inject('/nowhere')).statusCode, 404)
})

t.test('a route that was declared too early is never free', async t => {
  const host = await buildHost(t)
  let worked = 0
  const handler = async () => ++worked
  host.get('/early', { config }, handler)
  host.register(async child => {
    child.get('/early-child', { config }, handler)
    child.register(async grandchild => { grandchild.get('/early-grandchild', { config }, handler) })
  })
  host.register(credits, defaults)
  host.get('/early-without-await', { config }, handler)
  host.get('/uncharged', handler)
  host.after(() => { host.get('/in-time', { config }, handler) })
  host.register(async child => { child.get('/in-time-child', { config }, handler) })
  for (const url of ['/early', '/early-child', '/early-grandchild', '/early-without-await']) {
    t.match((await host.inject(url)).json(), tooEarly, url)
    t.equal((await host.inject({ method: 'HEAD', url })).statusCode, 500)
  }
  t.equal(worked, 0)
  for (const url of ['/uncharged', '/in-time', '/in-time-child']) t.equal((await host.inject(url)).statusCode, 200, url)
  await until(() => host.credits.balance(), ({ used }) => used === 200)
})

t.test('routes that are declared while the plugin loads are charged', async t => {
  const host = await buildHost(t)
  host.addHook('onRegister', () => {})
  host.register(credits, defaults)
  const ready = host.ready()
  while (!host.hasRequestDecorator('credits')) await new Promise(resolve => setImmediate(resolve))
  t.notOk(host.hasDecorator('credits'), 'it is still loading')
  host.get('/', { config }, async () => 'ok')
  await ready
  t.equal((await host.inject('/')).headers['credits-cost'], '100')
})

t.test('the innermost registration charges', async t => {
  const host = await buildHost(t)
  await host.register(credits, { ...defaults, defaultUser: 'outer' })
  await host.register(async child => {
    child.get('/early', { config }, async () => 'ok') // the outer registration knows it, but the inner one must charge it
    await child.register(credits, { ...defaults, defaultUser: 'inner', prefix: '/inner' })
    child.get('/inside', { config }, async () => 'ok')
    child.register(async grandchild => { grandchild.get('/deeper', { config }, async () => 'ok') })
  })
  host.get('/outside', { config }, async () => 'ok')
  for (const url of ['/inside', '/deeper', '/outside']) t.equal((await host.inject(url)).statusCode, 200, url)
  t.match((await host.inject('/early')).json(), tooEarly)
  await until(() => host.credits.balance('inner'), ({ used }) => used === 200)
  await until(() => host.credits.balance('outer'), ({ used }) => used === 100)
})

t.test('a registration in a child, and then one in its parent', async t => {
  const host = await buildHost(t)
  await host.register(async child => {
    await child.register(credits, { ...defaults, defaultUser: 'inner', prefix: '/inner' })
    child.get('/inside', { config }, async () => 'ok')
  })
  await host.register(credits, { ...defaults, defaultUser: 'outer' })
  host.get('/outside', { config }, async () => 'ok')
  for (const url of ['/inside', '/outside']) t.equal((await host.inject(url)).statusCode, 200, url)
  await until(() => host.credits.balance('inner'), ({ used }) => used === 100)
  await until(() => host.credits.balance('outer'), ({ used }) => used === 100)
})

t.test('registrations in sibling contexts, each with its own database', async t => {
  const host = Fastify()
  t.teardown(() => host.close())
  const settled: (() => Promise<unknown>)[] = []
  for (const name of ['red', 'blue']) {
    const connectionString = await createLedgerDatabase(t)
    await host.register(async context => {
      await context.register(credits, { ...defaults, prefix: `/${name}`, defaultUser: name, connectionString })
      context.get(`/${name}`, { config }, async ({ credits }) => credits!.userId)
      settled.push(() => until(() => context.credits.balance(), ({ used }) => used === 100))
    })
  }
  for (const name of ['red', 'blue']) t.equal((await host.inject(`/${name}`)).body, name)
  for (const one of settled) await one()
})

t.test('the account that pays', async t => {
  const app = await buildGateway(t, { identify: ({ headers }) => headers['x-user'] === 'service' ? { any: true } : headers['x-user'] as string })
  app.get('/identified', { config }, async ({ credits }) => credits!.userId)
  app.get('/named', { config: { credits: { ...video, user: async ({ headers }) => headers['x-tenant'] as string } } },
    async ({ credits }) => credits!.userId)
  const ask = (url: string, headers = {}) => app.inject({ url, headers })
  t.equal((await ask('/identified', { 'x-user': 'ann' })).body, 'ann')
  t.equal((await ask('/identified')).json().code, 'FST_CREDITS_UNIDENTIFIED')
  t.match((await ask('/identified', { 'x-user': 'service' })).json(), { statusCode: 400, code: 'FST_ERR_VALIDATION' })
  t.match((await ask('/identified', { 'x-user': 'a'.repeat(300) })).json(), { statusCode: 400, code: 'FST_CREDITS_INVALID' })
  t.equal((await ask('/named', { 'x-user': 'ann', 'x-tenant': 'acme' })).body, 'acme')
  t.equal((await ask('/named', { 'x-user': 'ann' })).statusCode, 401)
  await until(() => app.credits.balance('acme'), ({ used }) => used === 100)
})

t.test('websockets are not charged', async t => {
  const app = await buildGateway(t)
  app.decorateRequest('ws', false)
  app.addHook('onRequest', async request => { Object.assign(request, { ws: request.headers['x-simulated'] !== undefined }) })
  const handler = async ({ credits }: FastifyRequest) => ({ held: credits?.held ?? null })
  app.get('/socket', { websocket: true, config } as RouteShorthandOptions, handler)
  app.get('/both', { wsHandler () {}, config } as RouteShorthandOptions, handler)
  const ask = async (url: string, headers = {}) => (await app.inject({ url, headers })).json()
  t.strictSame(await ask('/socket'), { held: null })
  t.strictSame(await ask('/both', { 'x-simulated': 'a socket' }), { held: null })
  t.strictSame(await ask('/both', { upgrade: 'websocket' }), { held: 100 }, 'what a client says makes no websocket')
})
