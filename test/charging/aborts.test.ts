import { once } from 'node:events'
import { request as httpRequest } from 'node:http'
import { Readable } from 'node:stream'
import { setTimeout as sleep } from 'node:timers/promises'
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import t from 'tap'
import type { RouteCredits } from '../../src/index.js'
import { buildCharged, reconciles, until, type ChargedGateway } from '../helper/charging.js'

const fixed = { operation: 'video', cost: 100 }
const metered = { operation: 'chat', hold: 500 }

// Sends chunks until it is stopped. Each chunk uses so many credits.
async function * endless (request: FastifyRequest, used?: number) {
  for (;;) {
    if (used !== undefined) request.credits!.use(used)
    yield 'x'
    await sleep(60_000, undefined, { ref: false })
  }
}

// Sends one chunk and fails.
async function * failing (request: FastifyRequest, used?: number) {
  if (used !== undefined) request.credits!.use(used)
  yield 'x'
  await sleep(20)
  throw new Error('upstream is gone')
}

const web = (source: AsyncGenerator<string>) => new ReadableStream({
  async pull (controller) {
    controller.enqueue(Buffer.from((await source.next()).value))
  }
}, { highWaterMark: 0 })

function declare (app: FastifyInstance) {
  const route = (path: string, credits: RouteCredits, handler: (request: FastifyRequest, reply: FastifyReply) => unknown) =>
    app.get(path, { config: { credits } }, handler)
  route('/used', metered, async request => Readable.from(endless(request, 30)))
  route('/least', { ...metered, minimum: 50 }, async request => Readable.from(endless(request, 30)))
  route('/fixed', fixed, async request => Readable.from(endless(request)))
  route('/fixed-used', fixed, async request => Readable.from(endless(request, 30)))
  route('/fixed-used-up', fixed, async request => Readable.from(endless(request, 300)))
  route('/none', metered, async request => Readable.from(endless(request)))
  route('/none-least', { ...metered, minimum: 50 }, async request => Readable.from(endless(request)))
  route('/counted', { ...metered, cost: () => 70 }, async request => Readable.from(endless(request)))
  route('/counted-used', { ...metered, cost: () => 70 }, async request => Readable.from(endless(request, 30)))
  route('/web', metered, async request => web(endless(request, 30)))
  route('/response', metered, async request => new Response(web(endless(request, 30))))
  route('/events', metered, async (request, reply) => {
    reply.hijack()
    reply.raw.writeHead(200)
    request.credits!.use(10)
    reply.raw.write('x')
    await once(reply.raw, 'close')
    request.credits!.use(20)
    throw new Error('The upstream was aborted')
  })
  route('/events-fixed', fixed, async (_request, reply) => {
    reply.hijack()
    reply.raw.writeHead(200)
    reply.raw.write('x')
    await once(reply.raw, 'close')
  })
  route('/fails', metered, async request => Readable.from(failing(request, 30)))
  route('/fails-fixed', fixed, async request => Readable.from(failing(request, 30)))
  route('/fails-unsaid', { ...fixed, minimum: 5 }, async request => Readable.from(failing(request)))
  route('/fails-web', metered, async request => web(failing(request, 30)))
  route('/fails-response', fixed, async request => new Response(web(failing(request))))
}

t.test('a client that leaves in mid-stream pays what was used so far', async t => {
  const gateway = await buildCharged(t, declare)
  const { leave, settled } = gateway
  for (const [path, used] of [
    ['/used', 30],
    ['/least', 50],
    ['/fixed', 100],
    ['/fixed-used', 30],
    ['/fixed-used-up', 100],
    ['/none', 0],
    ['/none-least', 50],
    ['/counted', 70],
    ['/counted-used', 30],
    ['/web', 30],
    ['/response', 30],
    ['/events', 30],
    ['/events-fixed', 100]
  ] as const) {
    await leave(path, path, 1)
    t.equal((await settled(path)).used, used, path)
  }
  await reconciles(t, gateway)
})

t.test('an upstream that fails in mid-stream pays what was used', async t => {
  const gateway = await buildCharged(t, declare)
  for (const [path, used] of [
    ['/fails', 30], ['/fails-fixed', 30], ['/fails-unsaid', 5], ['/fails-web', 30], ['/fails-response', 0]
  ] as const) {
    await t.rejects(gateway.ask(path, path), path)
    t.equal((await gateway.settled(path)).used, used, path)
  }
  await reconciles(t, gateway)
})

// Routes whose handlers continue after the client has gone.
function declareSlow (app: FastifyInstance, goOn: () => Promise<unknown>) {
  const slow = { ...metered, cost: 40 }
  app.get('/json', { config: { credits: slow } }, async () => {
    await goOn()
    return { done: true }
  })
  app.get('/nothing', { config: { credits: slow } }, async () => { await goOn() })
  app.get('/used', { config: { credits: metered } }, async ({ credits }) => {
    await goOn()
    credits!.use(30)
    return 'ok'
  })
  app.get('/throws', { config: { credits: slow } }, async () => {
    await goOn()
    throw new Error('no')
  })
  app.get('/status', { config: { credits: slow } }, async (_request, reply) => {
    await goOn()
    return reply.code(500).send('no')
  })
  app.get('/hijacks-and-throws', { config: { credits: slow } }, async (_request, reply) => {
    reply.hijack()
    await goOn()
    throw new Error('no')
  })
  app.get('/callback', { config: { credits: slow } }, (_request, reply) => { goOn().then(() => reply.send('ok')) })
  app.get('/stream', { config: { credits: slow } }, async request => {
    await goOn()
    return Readable.from(endless(request))
  })
  app.get('/hooked', { config: { credits: slow }, onSend: async (_request, _reply, payload) => { await sleep(20); return payload } }, async () => {
    await goOn()
    return 'ok'
  })
  app.get('/hijacked', { config: { credits: { ...slow, ttl: 1000 } } }, (_request, reply) => {
    goOn().then(() => {
      reply.hijack()
      reply.raw.end('ok')
    })
  })
  app.get('/before-the-hold', {
    config: { credits: { ...slow, metadata: async () => { await goOn(); return {} } } }
  }, async () => 'ok')
  app.get('/never', { config: { credits: { ...slow, ttl: 1000 } } }, () => {})
}

t.test('a client that leaves before the reply pays the same as one that receives it', async t => {
  const waiting: (() => void)[] = []
  const gateway = await buildCharged(t, app => declareSlow(app, () => new Promise<void>(resolve => waiting.push(resolve))))
  for (const [path, used] of [
    ['/json', 40],
    ['/nothing', 40],
    ['/used', 30],
    ['/throws', 0],
    ['/status', 0],
    ['/hijacks-and-throws', 0],
    ['/callback', 40],
    ['/stream', 40],
    ['/hooked', 40],
    ['/before-the-hold', 40]
  ] as const) {
    await goneBefore(gateway, path, () => waiting.length > 0)
    waiting.pop()!()
    // It is not enough that nothing is held: one request has not yet made its hold.
    while (Number((await gateway.app.pg.query("select count(*) from ai_credit_holds where user_id = $1 and state <> 'open'", [path])).rows[0].count) < 1) await sleep(5)
    t.equal((await gateway.settled(path)).used, used, path)
  }
  await reconciles(t, gateway)
})

t.test('if a handler never replies after its client has left, the hold lapses', async t => {
  const waiting: (() => void)[] = []
  const gateway = await buildCharged(t, app => declareSlow(app, () => new Promise<void>(resolve => waiting.push(resolve))))
  await goneBefore(gateway, '/hijacked', () => waiting.length > 0)
  waiting.pop()!()
  await goneBefore(gateway, '/never', async () => (await gateway.app.credits.balance('/never')).held > 0)
  t.equal((await gateway.settled('/never')).used, 0)
  t.equal((await until(() => gateway.app.credits.balance('/hijacked'), ({ used }) => used > 0)).used, 40, 'unless it did reply')
  await reconciles(t, gateway)
})

// Sends a request, and closes the connection once the handler runs.
async function goneBefore ({ url, app }: ChargedGateway, path: string, atWork: () => boolean | Promise<boolean>) {
  const request = httpRequest(url + path, { headers: { 'x-user': path } }).on('error', () => {}).end()
  while (!await atWork()) await sleep(5)
  request.destroy()
  while (await connections(app) > 0) await sleep(5)
}

function connections (app: FastifyInstance): Promise<number> {
  return new Promise((resolve, reject) => app.server.getConnections((error, count) => error ? reject(error) : resolve(count)))
}
