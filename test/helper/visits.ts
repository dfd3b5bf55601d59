import { Agent, request as httpRequest, type ClientRequest } from 'node:http'
import { connect as connectHttp2, constants, type ServerHttp2Session } from 'node:http2'
import { connect } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import fc from 'fast-check'
import type { FastifyInstance, FastifyRequest } from 'fastify'
import type { Test } from 'tap'
import type { Credits, FastifyAiCreditsOptions, Queryable } from '../../src/index.js'
import { buildCharged, until, type ChargedGateway } from './charging.js'
import { catchUncaught, declareStyles, pathOf, styles, type Style } from './reply-styles.js'

// Clients of charged routes: they connect in every way, and may leave at any moment.

const transports = ['a connection each', 'kept alive', 'pipelined', 'HTTP/2'] as const

/** How a client connects. */
export type Transport = typeof transports[number]

/** One client and its requests. */
export interface Visit {
  transport: Transport
  user: string
  /** The budget in which its requests count; undefined: none. */
  budget: string | undefined
  /** The styles of the routes that it requests. */
  calls: string[]
  /** Whether it sends `te: trailers`. */
  trailers: boolean
  /** After how many milliseconds it leaves; undefined: once it has all replies. */
  leaves: number | undefined
}

/** A request of a client, and what became of it. */
export interface Called {
  /** The request's id, which is in the metadata of its usage records. */
  id: string
  style: string
  user: string
  budget: string | undefined
  transport: Transport
  /** Whether its reply arrived completely. */
  whole: boolean
}

/** The budgets of each user, by name: the one above it. Requests make those of the keys, by a template. */
const above: Record<string, string | undefined> = { team: undefined, member: 'team', 'key:k1': 'member', 'key:k2': 'member' }

const PLENTY = { day: 1e12, total: 1e12 }

/** Makes the budgets in which requests of these users may count, in three levels. None of them is ever exceeded. */
export async function setBudgets (ledger: Credits, users: string[]): Promise<void> {
  for (const user of users) {
    await ledger.setBudget(user, 'team', PLENTY)
    await ledger.setBudget(user, 'member', { ...PLENTY, within: 'team' })
    await ledger.setBudget(user, 'key:*', { ...PLENTY, within: 'member' })
  }
}

/** Generates random clients of some users. */
export function visitsOf (users: string[]): fc.Arbitrary<Visit> {
  return fc.record({
    transport: fc.constantFrom(...transports),
    user: fc.constantFrom(...users),
    budget: fc.option(fc.constantFrom(...Object.keys(above)), { freq: 2, nil: undefined }),
    calls: fc.array(fc.constantFrom(...Object.keys(styles)), { minLength: 1, maxLength: 6 }),
    trailers: fc.boolean(),
    leaves: fc.option(fc.oneof(fc.constant(0), fc.integer({ min: 0, max: 40 })), { freq: 2, nil: undefined })
  })
}

/** Two gateways of one ledger that clients visit. */
export interface Visited {
  /** The gateway that speaks HTTP/1.1; the other one speaks HTTP/2. */
  http1: ChargedGateway
  http2: ChargedGateway
  /** The requests whose handler was called. */
  begun: Set<string>
  /** The errors that were thrown outside of a request. */
  uncaught: unknown[]
  /** Makes the visits, some at a time, and returns all their requests. */
  receive (visits: Visit[]): Promise<Called[]>
  /** Waits until all charges are settled. */
  settled (): Promise<void>
}

const TOGETHER = 20

/** Opens two gateways on which all styles of routes are charged. `ttl`: how long a hold lives, in milliseconds. */
export async function openVisited (
  t: Test, connectionString: string, options: FastifyAiCreditsOptions, ttl = 2000
): Promise<Visited> {
  const uncaught = catchUncaught(t)
  const begun = new Set<string>()
  const settings = { connectionString, options: { allowance: 1e9, ...options } }
  const declare = (app: FastifyInstance) => declareVisited(app, ttl, id => begun.add(id))
  const http1 = await buildCharged(t, declare, settings)
  const http2 = await buildCharged(t, declare, { ...settings, server: { http2: true, forceCloseConnections: false } as object })
  const sessions: ServerHttp2Session[] = []
  http2.app.server.on('session', session => sessions.push(session))
  t.teardown(() => { for (const session of sessions) session.destroy() }) // Node.js 20 may keep a session whose client has gone
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

// Calls `began` for each request whose handler is called.
function declareVisited (app: FastifyInstance, ttl: number, began: (id: string) => void): void {
  const noted = Object.entries(styles).map(([name, style]): [string, Style] => [name, {
    ...style,
    handler: (request, reply) => {
      began(request.headers['x-call'] as string)
      return style.handler(request, reply)
    }
  }])
  declareStyles(app, {
    ttl,
    metadata: ({ headers }: FastifyRequest) => ({ call: headers['x-call'] }),
    budget: ({ headers }: FastifyRequest) => headers['x-budget']
  }, Object.fromEntries(noted))
}

interface Sent extends Called {
  method: string
  path: string
  headers: Record<string, string>
}

let made = 0

async function visit (urls: { http1: string, http2: string }, { transport, user, budget, calls, trailers, leaves }: Visit): Promise<Called[]> {
  const all = calls.map((style): Sent => {
    const id = String(made++)
    const headers = { 'x-user': user, 'x-call': id, ...budget !== undefined && { 'x-budget': budget }, ...trailers && { te: 'trailers' } }
    return { id, style, user, budget, transport, whole: false, method: styles[style]!.method ?? 'GET', path: `/price${pathOf(style)}`, headers }
  })
  const left = leaves === undefined ? undefined : leaves === 0 ? new Promise<void>(resolve => setImmediate(resolve)) : sleep(leaves)
  await ways[transport](transport === 'HTTP/2' ? urls.http2 : urls.http1, all, left)
  return all.map(({ id, style, user, budget, transport, whole }) => ({ id, style, user, budget, transport, whole }))
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

  // Does not look at which replies arrived completely: if nobody leaves, all do except those that fail.
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
    // Half of the clients that leave reset their streams; the others close the connection.
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

/** The styles whose reply fails by itself, unless the client leaves before. Most of these failures close the connection. */
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

/** Returns the requests that paid a wrong amount. `begun`: the requests whose handler was called. */
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

/** Returns the budgets that have not counted exactly what requests in them and below them have paid, or still hold something. */
export async function miscounted (db: Queryable, ledger: Credits, called: Called[]): Promise<object[]> {
  const { rows } = await db.query(`
    select metadata->>'call' as id, sum(credits_used)::int as paid
    from ai_credit_usage where metadata->>'call' = any($1) group by 1`, [called.map(({ id }) => id)])
  const paid = new Map<string, number>(rows.map(({ id, paid }) => [id, paid]))
  const wrong: object[] = []
  for (const user of new Set(called.map(({ user }) => user))) {
    for (const { budget, used, held } of (await ledger.budgets(user)).entries) {
      const expected = called.filter(call => call.user === user && pathOfBudget(call.budget).includes(budget))
        .reduce((sum, { id }) => sum + (paid.get(id) ?? 0), 0)
      if (used.total !== expected || held !== 0) wrong.push({ user, budget, used, held, expected })
    }
  }
  return wrong
}

function pathOfBudget (budget: string | undefined): string[] {
  return budget === undefined ? [] : [budget, ...pathOfBudget(above[budget])]
}

// Returns the amounts that a request may pay. If the client leaves before the handler runs, that is nothing; later, leaving
// changes nothing. A reply that would fail later is paid if the client leaves before the failure.
function mayPay ({ style, transport, whole }: Called, begun: boolean): number[] {
  const pays = style === 'has a header that cannot be sent' && transport === 'HTTP/2' ? 100 : styles[style]!.pays
  if (!begun) return [0]
  return failing.has(style) && !whole ? [0, 100] : [pays]
}
