import { once } from 'node:events'
import { request as httpRequest } from 'node:http'
import { Readable } from 'node:stream'
import compress from '@fastify/compress'
import httpProxy from '@fastify/http-proxy'
import multipart from '@fastify/multipart'
import replyFrom from '@fastify/reply-from'
import websocket from '@fastify/websocket'
import Fastify, { type FastifyInstance, type FastifyReply, type FastifyRequest } from 'fastify'
import t, { type Test } from 'tap'
import { buildCharged, reconciles, until, type ChargedGateway } from '../helper/charging.js'

const fixed = { operation: 'video', cost: 100 }
const metered = { operation: 'chat', hold: 500 }
const prices = { chat: { per: { tokens: 1 } } }

// An upstream whose replies wait until the test releases them.
async function buildUpstream (t: Test) {
  const waiting: (() => void)[] = []
  const wait = () => new Promise<void>(resolve => waiting.push(resolve))
  const upstream = Fastify()
  upstream.all('/ok', async () => ({ done: true }))
  upstream.all('/refuses', async (_request, reply) => reply.code(500).send({ no: true }))
  upstream.all('/unchanged', async (_request, reply) => reply.code(304).send())
  upstream.all('/slow', async () => {
    await wait()
    return { done: true }
  })
  upstream.all('/slow-refuses', async (_request, reply) => {
    await wait()
    return reply.code(500).send({ no: true })
  })
  upstream.all('/slow-breaks', async (_request, reply) => {
    await wait()
    reply.raw.destroy()
  })
  upstream.all('/stream', async () => Readable.from((async function * () {
    yield 'one '
    await wait()
    yield 'two'
  })()))
  upstream.all('/breaks', async () => Readable.from((async function * () {
    yield 'one '
    await new Promise(resolve => setTimeout(resolve, 20))
    throw new Error('no more')
  })()))
  const url = await upstream.listen({ port: 0, host: '127.0.0.1' })
  t.teardown(() => upstream.close())
  return { url, waiting, goOn: () => { for (const resume of waiting.splice(0)) resume() } }
}

type Upstream = Awaited<ReturnType<typeof buildUpstream>>

// Closes the connection while the upstream works.
async function goneMeanwhile ({ url, app }: ChargedGateway, { waiting, goOn }: Upstream, path: string, { method = 'GET', user = path } = {}) {
  const sent = httpRequest(url + path, { method, agent: false, headers: { 'x-user': user } }).on('error', () => {}).end()
  await until(() => waiting.length, length => length > 0)
  sent.destroy()
  await until(() => new Promise(resolve => app.server.getConnections((_error, count) => resolve(count))), count => count === 0)
  goOn()
}

const ways: Record<string, (app: FastifyInstance, upstream: string) => unknown> = {
  'reply.from, returned': (app, base) => declareFrom(app, base, (reply, source) => reply.from(source)),
  'reply.from, returned by a promise': (app, base) => declareFrom(app, base, async (reply, source) => reply.from(source)),
  'reply.from, not returned': (app, base) => declareFrom(app, base, (reply, source) => { reply.from(source) }),
  'reply.from with headers of its own': (app, base) => declareFrom(app, base,
    (reply, source) => reply.from(source, { rewriteHeaders: headers => ({ ...headers, 'x-mine': '1' }) })),
  'http-proxy': (app, upstream) => app.register(httpProxy, { upstream, config: { credits: fixed } as object })
}

async function declareFrom (app: FastifyInstance, base: string, handler: (reply: FastifyReply, source: string) => unknown) {
  await app.register(replyFrom, { base })
  app.route({ method: ['GET', 'POST'], url: '/*', config: { credits: fixed }, handler: (request, reply) => handler(reply, request.url) })
}

for (const [way, declare] of Object.entries(ways)) {
  t.test(`an upstream, with ${way}`, async t => {
    const upstream = await buildUpstream(t)
    const gateway = await buildCharged(t, app => declare(app, upstream.url))
    const { ask, settled, inFlight } = gateway
    for (const [path, status, used] of [['/ok', 200, 100], ['/refuses', 500, 0], ['/unchanged', 304, 0]] as const) {
      const answer = await ask(path, path)
      t.equal(answer.status, status)
      t.equal(answer.headers.get('credits-cost'), status === 500 ? null : String(used))
      t.match(await settled(path), { used }, path)
    }
    await t.rejects(ask('/breaks', '/breaks'))
    t.match(await settled('/breaks'), { used: 0 })
    await gateway.leave('/stream', '/stream', 1)
    t.match(await settled('/stream'), { used: 100 })
    upstream.goOn()

    // The client leaves before the first byte. What it pays is known once the upstream has replied.
    for (const [path, used] of [['/slow', 100], ['/slow-refuses', 0], ['/slow-breaks', 0]] as const) {
      for (const method of ['GET', 'POST']) {
        const user = `${method} ${path}`
        await goneMeanwhile(gateway, upstream, path, { method, user })
        await until(inFlight, count => count === 0)
        t.match(await settled(user), { used, held: 0 }, `${user}, gone`)
      }
    }
    await reconciles(t, gateway)
  })
}

t.test('a handler that returns reply and sends later is charged also if its client has gone', async t => {
  const upstream = await buildUpstream(t)
  const { waiting } = upstream
  const work = () => new Promise<void>(resolve => waiting.push(resolve))
  const later = (then: (request: FastifyRequest, reply: FastifyReply) => unknown) => ({
    async: async (request: FastifyRequest, reply: FastifyReply) => {
      work().then(() => then(request, reply))
      return reply
    },
    sync: (request: FastifyRequest, reply: FastifyReply) => {
      work().then(() => then(request, reply))
      return reply
    },
    callback: (request: FastifyRequest, reply: FastifyReply) => { work().then(() => then(request, reply)) }
  })
  const outcomes: [name: string, credits: object, used: number, (request: FastifyRequest, reply: FastifyReply) => unknown][] = [
    ['sends', fixed, 100, (_request, reply) => reply.send('ok')],
    ['sends 500', fixed, 0, (_request, reply) => reply.code(500).send('no')],
    ['sends an error', fixed, 0, (_request, reply) => reply.send(new Error('no'))],
    ['cancels', fixed, 0, ({ credits }, reply) => { credits!.cancel(); reply.send('ok') }],
    ['uses and sends', metered, 30, ({ credits }, reply) => { credits!.use(30); reply.send('ok') }],
    ['uses and sends 500', metered, 0, ({ credits }, reply) => { credits!.use(30); reply.code(500).send('ok') }],
    ['uses and never sends', { ...metered, ttl: 1000 }, 30, ({ credits }) => credits!.use(30)],
    ['never sends', { ...fixed, ttl: 1000 }, 0, () => {}],
    ['sends a stream', fixed, 100, (_request, reply) => reply.send(Readable.from(['ok']))],
    ['has hooks that fail', fixed, 0, (_request, reply) => reply.header('x-fail', '1').send('ok')],
    ['cannot be serialized', fixed, 0, (_request, reply) => reply.send({ n: 1n })],
    ['is paid before', { ...fixed, capture: 'before' }, 100, (_request, reply) => reply.send('ok')],
    ['is paid before, and a hook fails', { ...fixed, capture: 'before' }, 0, (_request, reply) => reply.header('x-fail', '1').send('ok')],
    ['is paid before, and sends 500', { ...fixed, capture: 'before' }, 0, (_request, reply) => reply.code(500).send('no')],
    ['is paid before, and sends a stream', { ...fixed, capture: 'before' }, 100, (_request, reply) => reply.send(Readable.from(['ok']))]
  ]
  const gateway = await buildCharged(t, app => {
    for (const [name, credits, , then] of outcomes) {
      for (const [style, handler] of Object.entries(later(then))) {
        app.get(`/${style}/${name.replace(/\W+/g, '-')}`, {
          config: { credits: credits as typeof fixed },
          onSend: (_request, reply, payload, done) => reply.hasHeader('x-fail') ? done(new Error('no')) : done(null, payload)
        }, handler)
      }
    }
  })
  for (const [name, , used] of outcomes) {
    for (const style of ['async', 'sync', 'callback']) {
      const path = `/${style}/${name.replace(/\W+/g, '-')}`
      await goneMeanwhile(gateway, upstream, path)
      await until(gateway.inFlight, count => count === 0)
      t.match(await gateway.app.credits.balance(path), { used, held: 0 }, path)
    }
  }
  await reconciles(t, gateway)
})

t.test('what a reply costs does not depend on how it is encoded', async t => {
  const declare = (app: FastifyInstance) => {
    for (const capture of ['after', 'before'] as const) {
      app.get(`/json-${capture}`, { config: { credits: { ...metered, capture } } }, async ({ credits }) => {
        credits!.use(3)
        return { text: 'x'.repeat(50_000) }
      })
      app.get(`/stream-${capture}`, { config: { credits: { ...metered, capture } } }, async ({ credits }) => {
        credits!.use(3)
        return Readable.from(['x'.repeat(50_000)])
      })
    }
  }
  for (const order of ['before', 'after', 'around'] as const) {
    const gateway = await buildCharged(t, async app => {
      if (order === 'after') await app.register(compress)
      declare(app)
    }, {
      before: async app => {
        if (order === 'before') await app.register(compress)
        // A hook of the context, which runs before every hook of a route.
        if (order === 'around') app.addHook('onSend', async (_request, _reply, payload) => Readable.from([payload as string]))
      }
    })
    for (const encoding of ['gzip', 'identity']) {
      for (const [path, used, shown] of [
        ['/json-after', 3, '3'], ['/json-before', 3, '3'], ['/stream-after', 3, null], ['/stream-before', 500, '500']
      ] as const) {
        const user = `${path} ${encoding}`
        if (order === 'around' && path.startsWith('/stream')) continue
        const { headers, text } = await gateway.ask(user, path, { headers: { 'accept-encoding': encoding } })
        t.ok(text.length >= 50_000)
        if (order !== 'around') t.equal(headers.get('content-encoding'), encoding === 'gzip' ? 'gzip' : null)
        t.equal(headers.get('credits-cost'), shown, `${user}, ${order}`)
        t.match(await gateway.settled(user), { used }, `${user}, ${order}`)
      }
    }
    await reconciles(t, gateway)
  }
})

t.test('websockets are not charged, and an upgrade makes no request free', async t => {
  const gateway = await buildCharged(t, async app => {
    app.get('/declared-before', { config: { credits: fixed } }, async () => 'worked')
    await app.register(websocket)
    app.get('/socket', { websocket: true, config: { credits: fixed } }, socket => { socket.send('hello') })
    app.route({
      method: 'GET',
      url: '/both',
      config: { credits: fixed },
      handler: async () => 'worked',
      wsHandler: socket => { socket.send('hello') }
    })
  })
  const upgrade = { 'sec-websocket-version': '13', 'sec-websocket-key': 'dGhlIHNhbXBsZSBub25jZQ==', connection: 'Upgrade', upgrade: 'websocket' }
  const ask = async (path: string, headers: Record<string, string>) => {
    const sent = httpRequest(gateway.url + path, { agent: false, headers: { 'x-user': path, ...headers } }).on('error', () => {}).end()
    const [reply, socket] = await Promise.race([once(sent, 'upgrade'), once(sent, 'response')])
    socket?.destroy()
    return reply.statusCode
  }
  t.equal(await ask('/socket', upgrade), 101)
  t.equal(await ask('/both', upgrade), 101)
  t.equal(await ask('/both', {}), 200)
  t.equal(await ask('/declared-before', upgrade), 200)
  await until(gateway.inFlight, count => count === 0)
  t.match(await gateway.app.credits.balance('/socket'), { used: 0, held: 0 })
  t.match(await gateway.app.credits.balance('/both'), { used: 100, held: 0 }, 'once')
  t.match(await gateway.app.credits.balance('/declared-before'), { used: 100, held: 0 })
  await reconciles(t, gateway)
})

t.test('uploads are charged, and not if they fail', async t => {
  const gateway = await buildCharged(t, async app => {
    await app.register(multipart)
    app.post('/upload', { config: { credits: metered } }, async request => {
      const file = await request.file()
      let bytes = 0
      for await (const chunk of file!.file) bytes += chunk.length
      request.credits!.use(bytes)
      return { bytes }
    })
  }, { options: { prices } })
  const body = new FormData()
  body.append('file', new Blob(['x'.repeat(300)]), 'x.txt')
  t.match(await gateway.ask('ann', '/upload', { method: 'POST', body }), { status: 200, text: '{"bytes":300}' })
  t.match(await gateway.settled('ann'), { used: 300 })

  const headers = { 'x-user': 'bob', 'content-type': 'multipart/form-data; boundary=b', 'content-length': 1000 }
  const sent = httpRequest(`${gateway.url}/upload`, { method: 'POST', agent: false, headers }).on('error', () => {})
  sent.write('--b\r\nContent-Disposition: form-data; name="file"; filename="x.txt"\r\n\r\nhalf')
  await until(gateway.inFlight, count => count === 1)
  sent.destroy()
  await until(gateway.inFlight, count => count === 0)
  t.match(await gateway.app.credits.balance('bob'), { used: 0, held: 0 })
  await reconciles(t, gateway)
})

t.test('OPTIONS is free, except on a route for OPTIONS alone', async t => {
  const upstream = await buildUpstream(t)
  const gateway = await buildCharged(t, async app => {
    app.all('/all', { config: { credits: fixed } }, async ({ credits }) => ({ held: credits?.held ?? null }))
    app.options('/asked', { config: { credits: fixed } }, async () => 'ok')
    await app.register(httpProxy, { upstream: upstream.url, prefix: '/proxied', httpMethods: ['GET', 'OPTIONS'], config: { credits: fixed } as object })
  })
  const { url } = gateway
  const preflight = { method: 'OPTIONS', headers: { origin: 'https://app.example', 'access-control-request-method': 'POST' } }
  const nobody = await fetch(`${url}/all`, preflight)
  t.equal(nobody.status, 200, 'nobody has to say who is asking')
  t.strictSame(await nobody.json(), { held: null })
  t.equal((await fetch(`${url}/proxied/ok`, preflight)).status, 200)
  t.equal((await fetch(`${url}/asked`, preflight)).status, 401)
  t.equal((await gateway.ask('ann', '/asked', preflight)).status, 200)
  t.match(await gateway.settled('ann'), { used: 100 })
  t.equal((await gateway.ask('ann', '/all', { method: 'DELETE' })).status, 200)
  t.match(await gateway.settled('ann'), { used: 200 })
  await reconciles(t, gateway)
})

t.test('the headers do not show a cost that is not paid', async t => {
  const fails = async () => { throw new Error('no') }
  const gateway = await buildCharged(t, app => {
    app.addHook('onRoute', route => {
      if (route.url.startsWith('/later-hook')) route.onSend = [route.onSend ?? [], fails].flat()
      if (route.url.startsWith('/later-status')) {
        route.onSend = [route.onSend ?? [], (_request: unknown, reply: FastifyReply, payload: unknown, done: (error: null, payload: unknown) => void) => {
          reply.code(500)
          done(null, payload)
        }].flat()
      }
    })
    for (const capture of ['after', 'before'] as const) {
      const config = { credits: { ...fixed, capture } }
      app.get(`/later-hook-${capture}`, { config }, async () => 'ok')
      app.get(`/later-hook-of-stream-${capture}`, { config }, async () => Readable.from(['ok']))
      app.get(`/later-status-${capture}`, { config }, async () => 'ok')
      app.get(`/unserializable-${capture}`, { config }, async () => ({ n: 1n }))
      app.get(`/no-payload-${capture}`, { config }, async (_request, reply) => reply.type('text/plain').send({ no: true }))
      app.get(`/no-first-byte-${capture}`, { config }, async () => new Readable({ read () { this.destroy(new Error('no')) } }))
      app.get(`/changed-${capture}`, { config, onSend: async (_request, reply) => { reply.code(304) } }, async () => 'ok')
    }
  })
  for (const capture of ['after', 'before']) {
    for (const name of ['later-hook', 'later-hook-of-stream', 'later-status', 'unserializable', 'no-payload', 'no-first-byte']) {
      const path = `/${name}-${capture}`
      const { status, headers } = await gateway.ask(path, path)
      t.equal(status, 500, path)
      t.equal(headers.get('credits-cost'), null, path)
      await until(gateway.inFlight, count => count === 0)
      t.match(await gateway.app.credits.balance(path), { used: 0, held: 0, available: 1000 }, path)
    }
    const { status, headers } = await gateway.ask(capture, `/changed-${capture}`)
    t.strictSame([status, headers.get('credits-cost')], [304, '0'])
    t.match(await gateway.settled(capture), { used: 0 })
  }
  await reconciles(t, gateway)
})

t.test('a callback handler writes to the raw response, and its client leaves in mid-stream', async t => {
  const gateway = await buildCharged(t, app => {
    app.get('/', { config: { credits: metered } }, ({ credits }, reply) => {
      reply.raw.writeHead(200)
      credits!.use(30)
      reply.raw.write('one ')
    })
  })
  await gateway.leave('ann', '/', 1)
  t.match(await gateway.settled('ann'), { used: 30, held: 0 })
  await reconciles(t, gateway)
})
