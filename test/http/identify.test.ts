// about HTTP, not the database
import t from 'tap'
import type { FastifyInstance } from 'fastify'
import credits, { type Identity } from '../../src/index.js'
import { buildGateway, buildHost, defaults, getBalance, postDeduct } from '../helper/app.js'

const one = { credits: 1, operation: 'chat' }

const whoever = (identity: unknown) => ({ identify: () => identity as Identity })

t.test('a request is charged to the user that identify returns', async t => {
  const app = await buildGateway(t, { identify: async request => String(request.headers['x-user']) })
  const headers = { 'x-user': 'ann' }
  t.equal((await postDeduct(app, one, headers)).statusCode, 200)
  t.equal((await postDeduct(app, { ...one, user_id: 'ann' }, headers)).statusCode, 200)
  const { credits } = (await app.inject({ url: '/api/credits', headers })).json()
  t.equal(credits.used, 2)
})

t.test('an account that is not the client\'s own is forbidden, and untouched', async t => {
  const app = await buildGateway(t, whoever('ann'))
  for (const reply of [
    await postDeduct(app, { ...one, user_id: 'bob' }),
    await app.inject('/api/credits?user_id=bob'),
    await app.inject('/api/credits?user_id=%62ob'),
    await app.inject('/api/credits?%75ser_id=bob')
  ]) {
    t.equal(reply.statusCode, 403)
    t.equal(reply.json().code, 'FST_CREDITS_FORBIDDEN')
  }
  t.strictSame((await app.pg.query('select from ai_credits')).rows, [])
})

t.test('nobody is refused, also where there is a default user', async t => {
  for (const nobody of [undefined, null, '']) {
    const app = await buildGateway(t, whoever(nobody))
    for (const reply of [await postDeduct(app, one), await app.inject('/api/credits?user_id=ann')]) {
      t.equal(reply.statusCode, 401)
      t.equal(reply.json().code, 'FST_CREDITS_UNIDENTIFIED')
    }
  }
})

t.test('an identity that is no string is the host\'s bug', async t => {
  for (const bug of [1, true, {}, { any: false }, []]) {
    const app = await buildGateway(t, whoever(bug))
    const reply = await postDeduct(app, one)
    t.equal(reply.statusCode, 500)
    t.equal(reply.json().code, 'FST_CREDITS_INVALID_IDENTITY')
  }
})

t.test('an identity that cannot be an account is refused', async t => {
  const app = await buildGateway(t, whoever('a\0b'))
  const reply = await postDeduct(app, one)
  t.match(reply.json(), { statusCode: 400, code: 'FST_CREDITS_INVALID' })
})

t.test('a trusted service must name the account', async t => {
  const app = await buildGateway(t, whoever({ any: true }))
  t.equal((await postDeduct(app, { ...one, user_id: 'bob' })).statusCode, 200)
  for (const reply of [await postDeduct(app, one), await app.inject('/api/credits')]) {
    t.match(reply.json(), { statusCode: 400, code: 'FST_ERR_VALIDATION', message: /user_id is required/ })
  }
})

t.test('without a default user a request must name its account', async t => {
  const app = await buildGateway(t, { defaultUser: null })
  t.equal((await postDeduct(app, { ...one, user_id: 'bob' })).statusCode, 200)
  for (const reply of [await postDeduct(app, one), await app.inject('/api/credits')]) {
    t.match(reply.json(), { statusCode: 400, code: 'FST_ERR_VALIDATION', message: /user_id is required/ })
  }
  await t.rejects(app.credits.deduct(one), { code: 'FST_CREDITS_INVALID', field: 'userId' })
})

t.test('an error that identify throws is replied unchanged', async t => {
  const app = await buildGateway(t, {
    identify () { throw Object.assign(new Error('no token'), { statusCode: 401, code: 'HOST_NO_TOKEN' }) }
  })
  t.match((await postDeduct(app, one)).json(), { statusCode: 401, code: 'HOST_NO_TOKEN', message: 'no token' })
})

t.test('identify is called once, after validation and after every hook around it, whenever it was added', async t => {
  const order: string[] = []
  const host = await buildHost(t)
  const note = (name: string) => async () => { order.push(name) }
  host.addHook('onRequest', note('parent before'))
  await host.register(async gateway => {
    gateway.addHook('preHandler', note('before'))
    await gateway.register(credits, {
      ...defaults,
      identify: async () => { order.push('identify'); return 'ann' },
      routes: { deduct: { preHandler: note('route') } }
    })
    gateway.addHook('preHandler', note('after'))
    gateway.register(async sibling => { sibling.addHook('onRequest', note('sibling')) })
  })
  host.addHook('preHandler', note('parent after'))

  t.equal((await postDeduct(host, { ...one, nonsense: true })).statusCode, 400)
  t.strictSame(order.splice(0), ['parent before'])
  t.equal((await postDeduct(host, one)).statusCode, 200)
  t.strictSame(order.splice(0), ['parent before', 'before', 'after', 'parent after', 'route', 'identify'])
})

t.test('errors come in order: 400, 401, 403, 402', async t => {
  const app = await buildGateway(t, { allowance: 0, identify: request => request.headers['x-user'] as string })
  const status = async (body: object, headers = {}) => (await postDeduct(app, body, headers)).statusCode
  t.equal(await status({ ...one, credits: 0 }), 400)
  t.equal(await status(one), 401)
  t.equal(await status({ ...one, user_id: 'bob' }, { 'x-user': 'ann' }), 403)
  t.equal(await status(one, { 'x-user': 'ann' }), 402)
})

t.test('a key of one account never answers another\'s', async t => {
  const app = await buildGateway(t, { identify: request => request.headers['x-user'] as string })
  const send = (user: string) => postDeduct(app, one, { 'x-user': user, 'idempotency-key': 'same' })
  t.notOk((await send('ann')).headers['idempotency-replayed'])
  t.notOk((await send('bob')).headers['idempotency-replayed'])
  t.equal((await send('bob')).headers['idempotency-replayed'], 'true')
  t.equal((await app.credits.balance('bob')).used, 1)
})

t.test('the routes warn at start that they trust the user_id, unless identify is given', async t => {
  const warnings = async (options: object) => {
    const lines: string[] = []
    const app: FastifyInstance = await buildGateway(t, options,
      { server: { logger: { level: 'warn', stream: { write: (line: string) => { lines.push(line) } } } } })
    await app.ready()
    return lines.filter(line => line.includes('trust the user_id')).length
  }
  t.equal(await warnings({}), 1)
  t.equal(await warnings({ routes: { deduct: false } }), 1)
  t.equal(await warnings({ routes: false }), 0)
  t.equal(await warnings({ identify: () => 'ann' }), 0)
})

t.test('without identify the request\'s user_id counts', async t => {
  const app = await buildGateway(t)
  await postDeduct(app, { ...one, user_id: 'bob' })
  t.equal((await getBalance(app, 'bob')).used, 1)
})
