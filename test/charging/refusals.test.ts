import { setTimeout as sleep } from 'node:timers/promises'
import { Readable } from 'node:stream'
import type { FastifyInstance } from 'fastify'
import t from 'tap'
import { buildCharged, reconciles, until } from '../helper/charging.js'

const fixed = { operation: 'video', cost: 100 }
const tooMuch = { operation: 'video', cost: 5000 }
const message = 'Insufficient credits: 5000 required, 1000 available'
const refusal = { statusCode: 402, code: 'FST_CREDITS_INSUFFICIENT', error: 'Payment Required', message }
const balance = { available: 1000, total: 1000, used: 0 }

let worked = 0
let resume = () => {}

function declare (app: FastifyInstance) {
  app.get('/throws', { config: { credits: fixed } }, async ({ credits }) => {
    credits!.use(20)
    throw new Error('no')
  })
  app.get('/throws-at-once', { config: { credits: fixed } }, () => { throw new Error('no') })
  app.get('/recovers', {
    config: { credits: fixed },
    errorHandler: (_error, _request, reply) => { reply.code(200).send('something else') }
  }, async () => { throw new Error('no') })
  app.get('/status', { config: { credits: fixed } }, async (_request, reply) => reply.code(404).send({ no: true }))
  app.get('/status-stream', { config: { credits: fixed } }, async (_request, reply) => reply.code(500).send(Readable.from(['no'])))
  app.get('/cancels', { config: { credits: fixed } }, async ({ credits }) => {
    credits!.cancel()
    return 'on the house'
  })
  app.get('/cancels-stream', { config: { credits: fixed } }, async ({ credits }) => Readable.from((async function * () {
    yield 'on '
    credits!.cancel()
    yield 'the house'
  })()))
  app.get('/no-json', { config: { credits: fixed } }, async () => ({ n: 1n }))
  app.get('/breaks-early', { config: { credits: fixed } }, async () => new Readable({ read () { this.destroy(new Error('no')) } }))
  app.get('/hook', { config: { credits: fixed }, onSend: async () => { throw new Error('no') } }, async () => 'ok')
  app.get('/slow', { config: { credits: fixed }, handlerTimeout: 50 }, async () => {
    await new Promise<void>(resolve => { resume = resolve })
    return 'too late'
  })
  app.get('/slow-stream', { config: { credits: { operation: 'chat', hold: 100 } }, handlerTimeout: 200 }, async ({ credits }) =>
    Readable.from((async function * () {
      credits!.use(10)
      yield 'a'
      await sleep(60_000, undefined, { ref: false })
    })()))
  app.get('/malformed', { config: { credits: fixed } }, async ({ credits, query }) => {
    const [method, argument] = JSON.parse((query as { q: string }).q)
    credits![method as 'use'](argument)
  })

  app.get('/dear', { config: { credits: tooMuch } }, async () => { worked++ })
  app.get('/dear-handled', {
    config: { credits: tooMuch },
    errorHandler: (error, _request, reply) => { reply.send({ mine: (error as { required?: number }).required }) }
  }, async () => { worked++ })
  app.get('/dear-schema', {
    config: { credits: tooMuch },
    schema: { response: { '4xx': { type: 'object', properties: { message: { type: 'string' }, required: { type: 'integer' } } } } }
  }, async () => { worked++ })
  app.get('/dear-other-schema', {
    config: { credits: tooMuch }, schema: { response: { 200: { type: 'string' } } }
  }, async () => { worked++ })
  app.get<{ Querystring: { n: string } }>('/ordered', {
    config: { credits: { operation: 'x', hold: ({ query }) => (query as { order: string[] }).order.push('hold'), user: () => 'ordered' } },
    schema: { querystring: { type: 'object', required: ['n'], properties: { n: { type: 'integer' } } } },
    onRequest: async ({ headers }) => { if (headers.token === undefined) throw Object.assign(new Error('Who?'), { statusCode: 401 }) },
    preHandler: [async request => { (request as any).query.order = ['own'] }, async request => {
      if (Number(request.query.n) === 0) throw Object.assign(new Error('None'), { statusCode: 403 })
    }]
  }, async request => (request as any).query.order)
}

t.test('a request that ends with an error is not charged', async t => {
  const gateway = await buildCharged(t, declare)
  const { ask, settled, app } = gateway
  for (const [path, status, text] of [
    ['/throws', 500],
    ['/throws-at-once', 500],
    ['/recovers', 200, 'something else'],
    ['/status', 404],
    ['/status-stream', 500, 'no'],
    ['/cancels', 200, 'on the house'],
    ['/cancels-stream', 200, 'on the house'],
    ['/no-json', 500],
    ['/breaks-early', 500],
    ['/hook', 500]
  ] as const) {
    const answer = await ask(path, path)
    t.equal(answer.status, status, path)
    if (text) t.equal(answer.text, text)
    t.match(await settled(path), { used: 0, available: 1000 }, path)
  }

  t.equal((await ask('/slow', '/slow')).status, 503)
  t.match(await settled('/slow'), balance, 'a timeout is not charged, whatever the handler still does')
  resume()
  await t.rejects(ask('/slow-stream', '/slow-stream'), 'a timeout in mid-stream ends it')
  t.match(await settled('/slow-stream'), balance)

  for (const [method, argument] of [['use', -1], ['use', 1.5], ['use', '1'], ['use', 2 ** 53], ['metadata', 'x'], ['metadata', { a: 'x'.repeat(9000) }]]) {
    const answer = await ask('malformed', `/malformed?q=${encodeURIComponent(JSON.stringify([method, argument]))}`)
    t.match(JSON.parse(answer.text), { code: 'FST_CREDITS_INVALID', message: method === 'use' ? /^credits/ : /^metadata/ })
  }
  t.match(await settled('malformed'), balance)
  t.strictSame((await app.pg.query('select from ai_credit_usage')).rows, [])
  await reconciles(t, gateway)
})

t.test('a user with too few credits is refused before the handler runs', async t => {
  const gateway = await buildCharged(t, declare)
  const { ask, settled } = gateway
  t.strictSame(JSON.parse((await ask('ann', '/dear')).text), { ...refusal, credits: balance, required: 5000 })
  t.strictSame(JSON.parse((await ask('ann', '/dear-other-schema')).text), { ...refusal, credits: balance, required: 5000 })
  t.strictSame(JSON.parse((await ask('ann', '/dear-handled')).text), { mine: 5000 }, 'the host\'s own answer stays')
  t.strictSame(JSON.parse((await ask('ann', '/dear-schema')).text), { message, required: 5000 }, 'and its schema')
  t.equal((await ask('ann', '/dear', { method: 'HEAD' })).status, 402)
  t.equal((await ask('ann', '/dear')).headers.get('credits-cost'), null)
  t.equal(worked, 0)
  t.match(await settled('ann'), balance)

  t.equal((await ask('ordered', '/ordered?n=x')).status, 401, 'authentication comes first')
  const headers = { token: 'x' }
  t.equal((await ask('ordered', '/ordered?n=x', { headers })).status, 400, 'then validation')
  t.equal((await ask('ordered', '/ordered?n=0', { headers })).status, 403, 'then the route\'s own preHandlers')
  t.strictSame((await gateway.app.pg.query('select from ai_credit_holds')).rows, [], 'nothing was held so far')
  t.strictSame(JSON.parse((await ask('ordered', '/ordered?n=1', { headers })).text), ['own', 'hold'])
  await until(() => gateway.app.credits.balance('ordered'), ({ held }) => held === 0)
  await reconciles(t, gateway)
})

t.test('a function of config.credits that returns no valid amount is the host\'s bug', async t => {
  const any = (value: unknown): any => async () => value
  const gateway = await buildCharged(t, app => {
    app.get('/cost', { config: { credits: { operation: 'x', cost: any(1.5) } } }, async () => 'ok')
    app.get('/hold', { config: { credits: { operation: 'x', hold: any('10') } } }, async () => 'ok')
    app.get('/metadata', { config: { credits: { operation: 'x', cost: 1, metadata: any(7) } } }, async () => 'ok')
    app.get('/cost-afterwards', { config: { credits: { operation: 'x', hold: 10, cost: any(-1) } } }, async () => 'ok')
    app.get('/cost-of-stream', { config: { credits: { operation: 'x', hold: 10, cost: any(undefined) } } }, async ({ credits }) => {
      credits!.use(4)
      return Readable.from(['ok'])
    })
    app.get('/user', { config: { credits: { operation: 'x', cost: 1, user: any(17) } } }, async () => 'ok')
    app.get('/budget', { config: { credits: { operation: 'x', cost: 1, budget: any(17) } } }, async () => 'ok')
  })
  for (const [path, code, message] of [
    ['/cost', 'FST_CREDITS_INVALID_CHARGE', /config\.credits\.cost of GET \/cost .* must be a whole number/],
    ['/hold', 'FST_CREDITS_INVALID_CHARGE', /config\.credits\.hold/],
    ['/metadata', 'FST_CREDITS_INVALID_CHARGE', /config\.credits\.metadata/],
    ['/cost-afterwards', 'FST_CREDITS_INVALID_CHARGE', /config\.credits\.cost/],
    ['/budget', 'FST_CREDITS_INVALID_CHARGE', /config\.credits\.budget of GET \/budget .* must be a string/],
    ['/user', 'FST_CREDITS_INVALID_IDENTITY', /number/]
  ] as const) {
    t.match(JSON.parse((await gateway.ask('ann', path)).text), { statusCode: 500, code, message })
    t.match(await gateway.settled('ann'), balance)
  }
  t.equal((await gateway.ask('bob', '/cost-of-stream')).text, 'ok')
  t.equal((await gateway.settled('bob')).used, 4, 'of a stream that was sent, what it used is charged')
  t.match(gateway.lines.at(-1), { msg: /cost of a request is not known/, holdId: String })
  await reconciles(t, gateway)
})
