// needs a real server
import { once } from 'node:events'
import { Agent, request as httpRequest } from 'node:http'
import { connect as connectHttp2, constants } from 'node:http2'
import { connect, type Socket } from 'node:net'
import { Readable } from 'node:stream'
import { setTimeout as sleep } from 'node:timers/promises'
import type { FastifyInstance } from 'fastify'
import t, { type Test } from 'tap'
import { buildCharged, reconciles, until, type ChargedGateway, type ChargedSettings } from '../helper/charging.js'

// Every charged request ends, at whatever stage its client leaves: no open hold, no request in flight and no listener remains.

interface Stages extends ChargedGateway {
  /** How often requests have reached each stage. */
  reached: Map<string, number>
  /** How many holds were requested. */
  asked (): number
  /** Lets all requests continue that wait at a stage. */
  goOn (): void
}

const stages = ['before the hold', 'during the hold', 'in the handler', 'before the first byte', 'in mid-stream', 'at the end'] as const
type Stage = typeof stages[number]
const pathOf = (stage: Stage) => `/${stage.replaceAll(' ', '-')}`

// A gateway with a route for each stage. A request that reaches its stage counts itself and waits.
async function buildStages (t: Test, settings: ChargedSettings = {}): Promise<Stages> {
  const reached = new Map<string, number>()
  const waiting: (() => void)[] = []
  let asked = 0
  const reach = (user: string) => { reached.set(user, (reached.get(user) ?? 0) + 1) }
  const reachAndWait = (user: string) => new Promise<void>(resolve => {
    waiting.push(resolve)
    reach(user)
  })
  async function * words (user: string, at: Stage) {
    if (at === 'before the first byte') await reachAndWait(user)
    yield 'one '
    if (at === 'in mid-stream') await reachAndWait(user)
    yield 'two'
    if (at === 'at the end') reach(user)
  }
  function declare (app: FastifyInstance) {
    for (const stage of stages) {
      app.get(pathOf(stage), {
        config: {
          credits: {
            operation: 'video',
            cost: 1,
            ttl: 2000,
            metadata: async ({ headers }) => {
              asked++
              if (stage === 'before the hold') await reachAndWait(headers['x-user'] as string)
              if (stage === 'during the hold') reach(headers['x-user'] as string) // the hold is requested right after this
              return {}
            }
          }
        }
      }, async ({ headers }) => {
        const user = headers['x-user'] as string
        if (stage === 'in the handler') await reachAndWait(user)
        return Readable.from(words(user, stage))
      })
    }
  }
  const gateway = await buildCharged(t, declare, settings)
  return { ...gateway, reached, asked: () => asked, goOn: () => { for (const resume of waiting.splice(0)) resume() } }
}

// Waits until so many requests of a user have reached the stage at which their client leaves.
async function arrived ({ reached }: Stages, user: string, count = 1) {
  await until(() => reached.get(user) ?? 0, seen => seen >= count)
}

async function ended (t: Test, gateway: Stages) {
  // A requested hold may be made after its client has gone.
  const holds = "select count(*)::int as taken, count(*) filter (where state = 'open')::int as open from ai_credit_holds"
  await until(async () => {
    gateway.goOn()
    return (await gateway.app.pg.query(holds)).rows[0]
  }, ({ taken, open }) => taken === gateway.asked() && open === 0)
  await until(gateway.inFlight, count => count === 0)
  t.equal(gateway.inFlight(), 0)
  await reconciles(t, gateway)
}

t.test('over HTTP/1.1, one request on a connection', async t => {
  const gateway = await buildStages(t)
  for (const stage of stages) {
    const sent = httpRequest(gateway.url + pathOf(stage), { agent: false, headers: { 'x-user': stage } }).on('error', () => {}).end()
    if (stage === 'in mid-stream') {
      const [reply] = await once(sent, 'response')
      await once(reply, 'data')
    }
    await arrived(gateway, stage)
    sent.destroy()
  }
  await ended(t, gateway)
})

t.test('over HTTP/1.1, on a connection that is kept alive', async t => {
  const sockets: Socket[] = []
  const gateway = await buildStages(t)
  gateway.app.server.on('connection', socket => sockets.push(socket))
  const agent = new Agent({ keepAlive: true, maxSockets: 1 })
  const plain = async (user: string) => {
    const sent = httpRequest(gateway.url + pathOf('at the end'), { agent, headers: { 'x-user': user } }).end()
    const [reply] = await once(sent, 'response')
    await reply.toArray()
  }
  await plain('ann')
  await until(gateway.inFlight, count => count === 0)
  const listeners = listenersOf(sockets[0]!)
  for (let n = 0; n < 20; n++) await plain('ann')
  await until(gateway.inFlight, count => count === 0)
  t.equal(sockets.length, 1, 'they share a connection')
  t.strictSame(listenersOf(sockets[0]!), listeners, 'which has no more listeners than after the first')
  for (const stage of stages) {
    await plain(stage)
    const sent = httpRequest(gateway.url + pathOf(stage), { agent, headers: { 'x-user': `${stage} left` } }).on('error', () => {}).end()
    await arrived(gateway, `${stage} left`)
    sent.destroy()
  }
  agent.destroy()
  await ended(t, gateway)
})

t.test('over HTTP/1.1, pipelined', async t => {
  const warnings: Error[] = []
  const warn = (warning: Error) => { warnings.push(warning) }
  process.on('warning', warn)
  t.teardown(() => process.removeListener('warning', warn))
  const gateway = await buildStages(t)
  const { hostname, port } = new URL(gateway.url)
  for (const stage of stages) {
    const socket = connect(Number(port), hostname)
    // The first request waits. Those behind it have replies that cannot be sent yet.
    for (const path of [pathOf(stage), ...Array.from({ length: 15 }, (_, index) => pathOf(stages[index % stages.length]!))]) {
      socket.write(`GET ${path} HTTP/1.1\r\nHost: x\r\nX-User: ${stage}\r\n\r\n`)
    }
    await arrived(gateway, stage, 3)
    socket.destroy()
  }
  await ended(t, gateway)
  t.strictSame(warnings, [], 'and no connection has too many listeners')
})

t.test('over HTTP/2', async t => {
  const sessions: import('node:http2').ServerHttp2Session[] = []
  const gateway = await buildStages(t, { server: { http2: true, forceCloseConnections: false } as object })
  gateway.app.server.on('session', session => sessions.push(session))
  const client = connectHttp2(gateway.url)
  client.on('error', () => {})
  const open = (stage: Stage, user: string = stage) =>
    client.request({ ':path': pathOf(stage), 'x-user': user }).on('error', () => {})
  for (const stage of stages) {
    const stream = open(stage)
    await arrived(gateway, stage)
    stream.close(constants.NGHTTP2_CANCEL)
  }
  await until(() => { gateway.goOn(); return gateway.inFlight() }, count => count === 0)
  const listeners = listenersOf(sessions[0]!)

  // A hundred early aborts, each after another delay.
  for (let n = 0; n < 100; n++) {
    const stream = open(stages[n % stages.length]!, 'random')
    if (n % 3 === 0) await sleep(n % 7)
    else if (n % 3 === 1) await new Promise(resolve => setImmediate(resolve))
    stream.close(constants.NGHTTP2_CANCEL)
  }
  await ended(t, gateway)
  t.strictSame(listenersOf(sessions[0]!), listeners, 'the session has no more listeners')

  const left = open('in the handler', 'session')
  await arrived(gateway, 'session')
  client.destroy()
  await once(left, 'close')
  await ended(t, gateway)
})

t.test('over HTTP/2, a handler that waits for the end of its reply does not keep the hold open', async t => {
  const waiting: (() => void)[] = []
  const config = { credits: { operation: 'video', cost: 100 } }
  const gateway = await buildCharged(t, app => {
    for (const [path, payload] of [['/value', () => 'done'], ['/stream', () => Readable.from(['done'])]] as const) {
      app.get(path, { config }, async (_request, reply) => {
        await new Promise<void>(resolve => waiting.push(resolve))
        return reply.send(payload())
      })
      app.get(`${path}/304`, { config }, async (_request, reply) => {
        await new Promise<void>(resolve => waiting.push(resolve))
        reply.code(304).send(payload())
        await reply
      })
      app.get(`${path}/later`, { config }, async (_request, reply) => {
        waiting.push(() => reply.send(payload()))
        return reply
      })
    }
  }, { server: { http2: true, forceCloseConnections: false } as object })
  const client = connectHttp2(gateway.url)
  const paths = ['/value', '/value/304', '/value/later', '/stream', '/stream/304', '/stream/later']
  for (const path of paths) {
    const stream = client.request({ ':path': path, 'x-user': path }).on('error', () => {})
    await until(() => waiting.length, count => count === 1)
    stream.close(constants.NGHTTP2_CANCEL)
    await once(stream, 'close')
    await sleep(20)
    waiting.pop()!()
  }
  await until(gateway.inFlight, count => count === 0)
  const used = await Promise.all(paths.map(async path => (await gateway.settled(path)).used))
  t.strictSame(used, [100, 0, 100, 100, 0, 100])
  client.destroy()
  await reconciles(t, gateway)
})

t.test('a request whose handlerTimeout passes while its hold is taken pays nothing', async t => {
  let resume = () => {}
  const gateway = await buildCharged(t, app => {
    app.get('/', {
      handlerTimeout: 20,
      config: {
        credits: {
          operation: 'video',
          cost: 100,
          metadata: async () => {
            await new Promise<void>(resolve => { resume = resolve })
            return {}
          }
        }
      }
    }, async () => t.fail('the handler is not run'))
  })
  const { status } = await gateway.ask('ann', '/')
  t.equal(status, 503)
  resume()
  await until(async () => (await gateway.app.pg.query('select from ai_credit_holds')).rows.length, length => length === 1)
  t.match(await gateway.settled('ann'), { used: 0 })
  await until(gateway.inFlight, count => count === 0)
  await reconciles(t, gateway)
})

t.test('no request is awaited longer than maxDuration', async t => {
  let end = () => {}
  const metered = { operation: 'chat', hold: 500, ttl: 1000, maxDuration: 2000 }
  const gateway = await buildCharged(t, app => {
    app.get('/stream', { config: { credits: metered } }, async ({ credits }) => Readable.from((async function * () {
      credits!.use(30)
      yield 'one '
      await new Promise<void>(resolve => { end = resolve })
      credits!.use(30)
      yield 'two'
    })()))
    app.get('/hangs', { config: { credits: { ...metered, cost: 100 } } }, () => {})
  })
  const answer = gateway.ask('ann', '/stream')
  gateway.ask('bob', '/hangs').catch(() => {})
  await until(() => gateway.app.credits.balance('ann'), ({ used }) => used > 0)
  t.match(await gateway.settled('ann'), { used: 30 }, 'it pays what it used so far')
  t.match(await gateway.settled('bob'), { used: 0 }, 'or nothing')
  end()
  t.equal((await answer).text, 'one two', 'and goes on')
  await until(gateway.inFlight, count => count === 0)
  t.equal(gateway.lines.filter(({ msg }) => /takes longer than maxDuration/.test(msg)).length, 2)
  await reconciles(t, gateway)
})

function listenersOf (emitter: NodeJS.EventEmitter) {
  return Object.fromEntries(emitter.eventNames().map(name => [String(name), emitter.listenerCount(name)]))
}
