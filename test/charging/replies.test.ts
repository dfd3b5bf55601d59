import { connect } from 'node:http2'
import { Readable } from 'node:stream'
import { text } from 'node:stream/consumers'
import type { FastifyInstance } from 'fastify'
import t from 'tap'
import type { RequestCredits } from '../../src/index.js'
import { buildCharged, reconciles } from '../helper/charging.js'

async function * tokens (credits: RequestCredits) {
  for (const word of ['one ', 'two ', 'three']) {
    credits.use(10)
    yield word
  }
}

function webStream (use: (credits: number) => void) {
  const words = ['one ', 'two ', 'three']
  return new ReadableStream({
    pull (controller) {
      const word = words.shift()
      if (word === undefined) return controller.close()
      use(10)
      controller.enqueue(Buffer.from(word))
    }
  })
}

const fixed = { operation: 'fixed', cost: 100 }
const metered = { operation: 'metered', hold: 500 }

function declare (app: FastifyInstance) {
  app.post('/json', { config: { credits: fixed } }, async ({ credits }) => ({ held: credits!.held }))
  app.get('/value', { config: { credits: fixed } }, () => ({ done: true }))
  app.get('/callback', { config: { credits: fixed } }, (_request, reply) => { setImmediate(() => reply.send('later')) })
  app.get('/returned-reply', { config: { credits: fixed } }, async (_request, reply) => {
    setImmediate(() => reply.send('later'))
    return reply
  })
  app.get('/nothing', { config: { credits: fixed } }, async (_request, reply) => { reply.code(204) })
  app.get('/used', { config: { credits: metered } }, async ({ credits }) => {
    credits!.use(30)
    credits!.use(12)
    return { used: credits!.used, operation: credits!.operation, userId: credits!.userId, hold: credits!.holdId }
  })
  app.get('/counted', { config: { credits: { ...metered, cost: request => request.credits.used * 2 } } }, async ({ credits }) => {
    credits!.use(30)
    return 'ok'
  })
  app.get('/counted-later', {
    config: { credits: { ...metered, hold: async () => 400, cost: async (_request, reply) => Number(reply.getHeader('x-tokens')) } }
  }, async (_request, reply) => {
    reply.header('x-tokens', 77)
    return 'ok'
  })
  app.get<{ Querystring: { n: number } }>('/asked', {
    config: { credits: { operation: 'asked', cost: async request => Number((request.query as { n: string }).n) } }
  }, async ({ credits }) => ({ held: credits!.held }))
  app.get('/piped', { config: { credits: metered } }, (request, reply) => reply.send(Readable.from(tokens(request.credits!))))
  app.get('/piped-fixed', { config: { credits: fixed } }, async () => Readable.from(['a', 'b']))
  app.get('/piped-counted', { config: { credits: { ...metered, cost: request => request.credits.used + 1 } } },
    async request => Readable.from(tokens(request.credits!)))
  app.get('/web', { config: { credits: metered } }, async ({ credits }) => webStream(n => credits!.use(n)))
  app.get('/response', { config: { credits: metered } }, async ({ credits }) =>
    new Response(webStream(n => credits!.use(n)), { status: 202, headers: { 'x-from': 'upstream' } }))
  app.get('/response-refused', { config: { credits: fixed } }, async () => new Response('no', { status: 503 }))
  app.get('/response-empty', { config: { credits: fixed } }, async () => new Response(null, { status: 204 }))
  app.get('/events', { config: { credits: metered } }, async ({ credits }, reply) => {
    reply.hijack()
    reply.raw.writeHead(200, { 'content-type': 'text/event-stream' })
    for (let n = 0; n < 3; n++) {
      credits!.use(10)
      reply.raw.write(`data: ${n}\n\n`)
    }
    reply.raw.end()
  })
  app.get('/hijacked', { config: { credits: fixed } }, (_request, reply) => {
    reply.hijack()
    setImmediate(() => reply.raw.end('raw'))
  })
  app.get('/hijacked-refused', { config: { credits: fixed } }, (_request, reply) => {
    reply.hijack()
    reply.raw.writeHead(502).end()
  })
  app.get('/free', { config: { credits: { operation: 'free', cost: 0 } } }, async ({ credits }) => {
    credits!.use(5)
    credits!.metadata({ a: 1 })
    return { holdId: credits!.holdId, held: credits!.held, used: credits!.used }
  })
  app.get('/free-hold', { config: { credits: { operation: 'free', hold: () => 0 } } }, async () => 'ok')
  app.get('/uncharged', async request => ({ credits: request.credits }))
  app.get('/least', { config: { credits: { ...metered, minimum: 5 } } }, async () => 'ok')
  app.get('/unused', { config: { credits: metered } }, async () => 'ok')
}

t.test('the amounts that are charged for complete replies', async t => {
  const gateway = await buildCharged(t, declare)
  const { ask, settled } = gateway
  for (const [path, cost, body, init] of [
    ['/json', 100, '{"held":100}', { method: 'POST' }],
    ['/value', 100, '{"done":true}'],
    ['/callback', 100, 'later'],
    ['/returned-reply', 100, 'later'],
    ['/nothing', 100, ''],
    ['/used', 42, undefined],
    ['/counted', 60, 'ok'],
    ['/counted-later', 77, 'ok'],
    ['/asked?n=33', 33, '{"held":33}'],
    ['/asked?n=0', 0, '{"held":0}'],
    ['/piped', 30, 'one two three'],
    ['/piped-fixed', 100, 'ab'],
    ['/piped-counted', 31, 'one two three'],
    ['/web', 30, 'one two three'],
    ['/response', 30, 'one two three'],
    ['/response-refused', 0, 'no'],
    ['/response-empty', 100, ''],
    ['/events', 30, 'data: 0\n\ndata: 1\n\ndata: 2\n\n'],
    ['/hijacked', 100, 'raw'],
    ['/hijacked-refused', 0, ''],
    ['/free', 0, '{"holdId":null,"held":0,"used":5}'],
    ['/free-hold', 0, 'ok'],
    ['/uncharged', 0, '{"credits":null}'],
    ['/least', 5, 'ok'],
    ['/unused', 0, 'ok'],
    // HEAD is charged like its GET, once.
    ['/value', 100, '', { method: 'HEAD' }],
    ['/piped', 30, '', { method: 'HEAD' }],
    ['/piped-fixed', 100, '', { method: 'HEAD' }],
    ['/web', 10, '', { method: 'HEAD' }] // Fastify begins the stream, and then cancels it
  ] as [string, number, string | undefined, RequestInit?][]) {
    const user = `${init?.method ?? 'GET'} ${path}`
    const { text } = await ask(user, path, init)
    if (body !== undefined) t.equal(text, body, `${user}: the body`)
    t.equal((await settled(user)).used, cost, `${user}: the cost`)
    t.equal((await records(user)).length, cost > 0 ? 1 : 0, `${user}: one record`)
  }
  await reconciles(t, gateway)
  t.strictSame(gateway.lines, [])

  async function records (user: string) {
    return (await gateway.app.pg.query('select from ai_credit_usage where user_id = $1', [user])).rows
  }
})

t.test('the usage record describes the request', async t => {
  const gateway = await buildCharged(t, app => {
    app.get('/', {
      config: {
        credits: { operation: 'chat', hold: 50, metadata: async request => ({ model: 'small', path: request.url, n: 1 }) }
      }
    }, async ({ credits }) => {
      const facts = { tokens: 7 }
      credits!.metadata(facts)
      facts.tokens = 8
      credits!.metadata({ n: 2 })
      credits!.use(7)
      return { held: credits!.held, operation: credits!.operation, userId: credits!.userId }
    })
  })
  t.equal((await gateway.ask('ann', '/')).text, '{"held":50,"operation":"chat","userId":"ann"}')
  await gateway.settled('ann')
  t.match(await gateway.app.credits.history('ann'), {
    entries: [{ used: 7, operation: 'chat', metadata: { model: 'small', path: '/', n: 2, tokens: 7 } }]
  })
  await reconciles(t, gateway)
})

t.test('a cost above the hold is taken from what is available, and the missing rest is logged', async t => {
  const gateway = await buildCharged(t, app => {
    app.get('/', { config: { credits: { operation: 'chat', hold: 100, cost: request => request.credits.used } } },
      async ({ credits, query }) => { credits!.use(Number((query as { n: string }).n)) })
  })
  await gateway.ask('ann', '/?n=300')
  t.match(await gateway.settled('ann'), { used: 300, available: 700 })
  await gateway.ask('bob', '/?n=1300')
  t.match(await gateway.settled('bob'), { used: 1000, available: 0 })
  t.match(gateway.lines, [{ userId: 'bob', holdId: String, operation: 'chat', credits: 1300, uncollected: 300 }])
  await reconciles(t, gateway)
})

t.test('requests that are injected are charged', async t => {
  const gateway = await buildCharged(t, declare)
  for (const [url, used] of [['/value', 100], ['/piped', 30], ['/events', 30], ['/nothing', 100]] as const) {
    t.ok((await gateway.app.inject({ url, headers: { 'x-user': url } })).statusCode < 300)
    t.equal((await gateway.settled(url)).used, used, url)
  }
  await reconciles(t, gateway)
})

t.test('requests over HTTP/2 are charged', async t => {
  const gateway = await buildCharged(t, declare, { server: { http2: true, forceCloseConnections: false } as object })
  const client = connect(gateway.url)
  for (const [path, used] of [['/value', 100], ['/piped', 30], ['/hijacked', 100], ['/free', 0]] as const) {
    const stream = client.request({ ':path': path, 'x-user': path })
    t.ok(await text(stream), path)
    t.equal((await gateway.settled(path)).used, used, path)
  }
  client.close()
  await reconciles(t, gateway)
})

t.test('a thousand credits buy ten requests of a hundred, however many come at once', async t => {
  const gateway = await buildCharged(t, declare)
  const answers = await Promise.all(Array.from({ length: 40 }, () => gateway.ask('ann', '/value')))
  t.equal(answers.filter(({ status }) => status === 200).length, 10)
  t.match(await gateway.settled('ann'), { used: 1000, available: 0 })
  await reconciles(t, gateway)
})
