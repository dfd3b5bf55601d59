import { Agent, request as httpRequest, type ClientRequest } from 'node:http'
import { connect as connectHttp2, constants, type ServerHttp2Session } from 'node:http2'
import { connect } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import fc from 'fast-check'
import type { FastifyInstance } from 'fastify'
import type { Test } from 'tap'
import type { FastifyAiCreditsOptions, Queryable } from '../../src/index.js'
import { buildCharged, until, type ChargedGateway } from './charging.js'
import { catchUncaught, declareStyles, pathOf, styles, type Style } from './reply-styles.js'

// Clients of charged routes, which come in every way and may leave at any moment.

const transports = ['a connection each', 'kept alive', 'pipelined', 'HTTP/2'] as const

/** How a client's requests come. */
export type Transport = typeof transports[number]

/** A client. */
export interface Visit {
  transport: Transport
  user: string
  /** The styles of the routes that it asks. */
  calls: string[]
  /** Whether it says `te: trailers`. */
  trailers: boolean
  /** After how many milliseconds it leaves; undefined: once it has all replies. */
  leaves: number | undefined
}

/** What is known of one of its requests. */
export interface Called {
  /** What the request is known by, in the metadata of its records. */
  id: string
  style: string
  transport: Transport
  /** Whether its reply came to its end. */
  whole: boolean
}

/** Random clients of some users. */
export function visitsOf (users: string[]): fc.Arbitrary<Visit> {
  return fc.record({
    transport: fc.constantFrom(...transports),
    user: fc.constantFrom(...users),
    calls: fc.array(fc.constantFrom(...Object.keys(styles)), { minLength: 1, maxLength: 6 }),
    trailers: fc.boolean(),
    leaves: fc.option(fc.oneof(fc.constant(0), fc.integer({ min: 0, max: 40 })), { freq: 2, nil: undefined })
  })
}

/** Gateways of one ledger that clients visit. */
export interface Visited {
  /** The gateway that speaks HTTP/1.1; the other one speaks HTTP/2. */
  http1: ChargedGateway
  http2: ChargedGateway
  /** The requests whose handler was called. */
  begun: Set<string>
  /** What was thrown outside of a request. */
  uncaught: unknown[]
  /** Makes the visits, some at a time, and returns what is known of their requests. */
  receive (visits: Visit[]): Promise<Called[]>
  /** Waits until all charges are settled. */
  settled (): Promise<void>
}

const TOGETHER = 20

/** Opens gateways with all styles of routes, charged. */
export async function openVisited (t: Test, connectionString: string, options: FastifyAiCreditsOptions): Promise<Visited> {
  const uncaught = catchUncaught(t)
  const begun = new Set<string>()
  const settings = { connectionString, options: { allowance: 1e9, ...options } }
  const declare = (app: FastifyInstance) => declareVisited(app, id => begun.add(id))
  const http1 = await buildCharged(t, declare, settings)
  const http2 = await buildCharged(t, declare, { ...settings, server: { http2: true, forceCloseConnections: false } as object })
  const sessions: ServerHttp2Session[] = []
  http2.app.server.on('session', session => sessions.push(session))
  t.teardown(() => { for (const session of sessions) session.destroy() }) // Node.js 20 may keep one whose client has gone
  return {
    http1,
    http2,
    begun,
    uncaught,
    async receive (visits) {
      const called: Called[] = []
      for (let first = 0; first < visits.length; first += TOGETHER) {
        const some = visits.slice(first, first + TOGETHER)
        called.push(...(await Promise.all(some.map(one => visit({ http1: http1.url, http2: http2.url }, one)))).flat())
      }
      return called
    },
    async settled () {
      for (const { inFlight } of [http1, http2]) await until(inFlight, count => count === 0)
    }
  }
}

// `began` hears of each request whose handler is called.
function declareVisited (app: FastifyInstance, began: (id: string) => void): void {
  const noted = Object.entries(styles).map(([name, style]): [string, Style] => [name, {
    ...style,
    handler: (request, reply) => {
      began(request.headers['x-call'] as string)
      return style.handler(request, reply)
    }
  }])
  declareStyles(app, { ttl: 2000, metadata: ({ headers }: { headers: object }) => ({ call: (headers as Record<string, string>)['x-call'] }) },
    Object.fromEntries(noted))
}

interface Sent extends Called {
  method: string
  path: string
  headers: Record<string, string>
}

let made = 0

async function visit (urls: { http1: string, http2: string }, { transport, user, calls, trailers, leaves }: Visit): Promise<Called[]> {
  const all = calls.map((style): Sent => {
    const id = String(made++)
    const headers = { 'x-user': user, 'x-call': id, ...trailers && { te: 'trailers' } }
    return { id, style, transport, whole: false, method: styles[style]!.method ?? 'GET', path: `/price${pathOf(style)}`, headers }
  })
  const left = leaves === undefined ? undefined : leaves === 0 ? new Promise<void>(resolve => setImmediate(resolve)) : sleep(leaves)
  await ways[transport](transport === 'HTTP/2' ? urls.http2 : urls.http1, all, left)
  return all.map(({ id, style, transport, whole }) => ({ id, style, transport, whole }))
}

type Way = (url: string, all: Sent[], left: Promise<void> | undefined) => Promise<void>

const ways: Record<Transport, Way> = {
  'a connection each': async (url, all, left) => {
    await Promise.all(all.map(sent => ask(url, sent, new Agent(), left)))
  },

  'kept alive': async (url, all, left) => {
    const agent = new Agent({ keepAlive: true, maxSockets: 1 })
    let gone = false
    left?.then(() => { gone = true })
    for (const sent of all) if (!gone) await ask(url, sent, agent, left)
    agent.destroy()
  },

  // What of it came whole is not looked into: of requests that nobody leaves, all but those that fail.
  pipelined: async (url, all, left) => {
    const { hostname, port } = new URL(url)
    const socket = connect(Number(port), hostname)
    socket.on('error', () => {})
    left?.then(() => socket.destroy())
    socket.write(all.map(({ method, path, headers }, index) => `${method} ${path} HTTP/1.1\r\nHost: x\r\n` +
      Object.entries(headers).map(([name, value]) => `${name}: ${value}\r\n`).join('') +
      (index === all.length - 1 ? 'Connection: close\r\n\r\n' : '\r\n')).join(''))
    socket.resume()
    await new Promise(resolve => socket.on('close', resolve))
    if (left === undefined && !all.some(({ style }) => failing.has(style))) for (const sent of all) sent.whole = true
  },

  'HTTP/2': async (url, all, left) => {
    const session = connectHttp2(url)
    session.on('error', () => {})
    const closed: Promise<void>[] = []
    let gone = false
    const streams = all.map(sent => {
      const stream = session.request({ ':method': sent.method, ':path': sent.path, ...sent.headers })
      stream.on('error', () => {})
      stream.on('end', () => { sent.whole = !gone })
      stream.resume()
      closed.push(new Promise(resolve => stream.on('close', resolve)))
      return stream
    })
    // Half of those who leave reset their streams, the others close the connection.
    left?.then(() => {
      gone = true
      if (all.length % 2 === 0) session.destroy()
      else for (const stream of streams) stream.close(constants.NGHTTP2_CANCEL)
    })
    await Promise.all(closed)
    for (const [index, stream] of streams.entries()) if (stream.rstCode !== constants.NGHTTP2_NO_ERROR) all[index]!.whole = false
    session.destroy()
  }
}

/** The styles whose reply fails by itself, if the client does not leave before. After most of them the connection is closed. */
const failing = new Set(Object.keys(styles).filter(name =>
  /fails in mid-stream|fails before the first byte|breaks off|without hijack, and sends/.test(name)))

async function ask (url: string, sent: Sent, agent: Agent, left: Promise<void> | undefined) {
  const request: ClientRequest = httpRequest(url + sent.path, { agent, method: sent.method, headers: sent.headers })
  left?.then(() => request.destroy())
  await new Promise<void>(resolve => {
    request.on('error', () => resolve())
    request.on('close', resolve)
    request.on('response', reply => {
      reply.on('error', () => {})
      reply.on('end', () => { sent.whole = reply.complete })
      reply.resume()
    })
    request.end()
  })
}

/** The requests that paid something else than they had to; `begun`: those whose handler was called. */
export async function misjudged (db: Queryable, called: Called[], begun: Set<string>): Promise<object[]> {
  const { rows } = await db.query(`
    select metadata->>'call' as id, count(*)::int as records, sum(credits_used)::int as paid
    from ai_credit_usage where metadata->>'call' = any($1) group by 1`, [called.map(({ id }) => id)])
  const byId = new Map(rows.map(({ id, ...sum }) => [id, sum]))
  return called.flatMap(call => {
    const { records, paid } = byId.get(call.id) ?? { records: 0, paid: 0 }
    const expected = mayPay(call, begun.has(call.id))
    return records <= 1 && expected.includes(paid) ? [] : [{ ...call, begun: begun.has(call.id), records, paid, expected }]
  })
}

// A client that leaves does not change what its request pays, once the handler is at work; before that it pays nothing. A
// reply that would have failed later is the client's to pay if it leaves first.
function mayPay ({ style, transport, whole }: Called, begun: boolean): number[] {
  const pays = style === 'has a header that cannot be sent' && transport === 'HTTP/2' ? 100 : styles[style]!.pays
  if (!begun) return [0]
  return failing.has(style) && !whole ? [0, 100] : [pays]
}
