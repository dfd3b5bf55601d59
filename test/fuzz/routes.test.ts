// needs a real server
import assert from 'node:assert'
import { Agent, request as httpRequest } from 'node:http'
import type { AddressInfo } from 'node:net'
import { text } from 'node:stream/consumers'
import { inspect } from 'node:util'
import type { FastifyInstance, LightMyRequestResponse } from 'fastify'
import fc from 'fast-check'
import t from 'tap'
import { sendCheck } from './checks.js'
import type { Reply } from './conformance.js'
import { buildFuzzed, ROUTE, setBudgets, settings } from './gateway.js'
import { checkExchange, type Exchange } from './outcome.js'
import { requestsOf, type Sent } from './requests.js'
import { allowTime, seed, share } from './settings.js'
import { reconcile, Shadow } from './shadow.js'

const BATCH = 400
const TOGETHER = 40

/** Sends a request. Resolves to undefined if the client itself refuses to send it. */
type Send = (sent: Sent) => Promise<Reply | undefined>

allowTime(t)

const titles = Object.keys(settings)

for (const title of titles) {
  t.test(`requests to a gateway, ${title} (FUZZ_SEED=${seed})`, async t => {
    const gateway = await buildFuzzed(t, title)
    await gateway.app.listen({ port: 0, host: '127.0.0.1' })
    const agent = new Agent({ keepAlive: false, maxSockets: TOGETHER }) // kept open: see sockets.test.ts
    t.teardown(() => agent.destroy())
    const total = share(0.8 / titles.length)
    const shadow = new Shadow()
    for (const userId of await setBudgets(gateway)) shadow.name(userId)
    const holds = new Map<string, string>()
    const counts: Record<string, Record<string, number>> = {}
    for (let made = 0, batch = 0; made < total; batch++) {
      // Sends every sixth batch over a socket.
      const send = batch % 6 === 5 ? overHttp(gateway.app, agent) : overInject(gateway.app)
      const requests = fc.sample(requestsOf(gateway.document, 10 + batch * 5), { seed: seed + batch, numRuns: Math.min(BATCH, total - made) })
      // The charged route runs alone: otherwise a request to capture or release its hold could guess the id.
      const exchanges = [
        ...await sendAll(send, requests.filter(isCharged)),
        ...await sendAll(send, requests.filter(sent => !isCharged(sent) && !isCheck(sent)))
      ]
      for (const sent of requests.filter(isCheck)) exchanges.push(...await sendCheck(gateway.app.pg, one(send), sent))
      made += Math.max(requests.length, exchanges.length)
      // Checks the holds first: a hold and its capture may have run in one batch.
      exchanges.sort((a, b) => order(a) - order(b))
      for (const exchange of exchanges) {
        count(counts, exchange)
        explain(title, batch, exchange, () => checkExchange(gateway, shadow, holds, exchange))
      }
      await shadow.compare(gateway.app.pg)
    }
    t.comment(`${total} requests, ${shadow.accepted} accepted, ${shadow.refused} refused by a route; ` +
      `${await reconcile(gateway.app)} accounts; statuses of each route: ${inspect(counts, { breakLength: 120, compact: 1 })}`)
    t.ok(shadow.accepted > total / 20, 'many were accepted')
    t.ok(shadow.refused > total / 20, 'many were refused')
  })
}

async function sendAll (send: Send, requests: Sent[]): Promise<Exchange[]> {
  const exchanges: Exchange[] = []
  for (let first = 0; first < requests.length; first += TOGETHER) {
    const some = await Promise.all(requests.slice(first, first + TOGETHER).map(one(send)))
    exchanges.push(...some.filter(exchange => exchange !== undefined))
  }
  return exchanges
}

const one = (send: Send) => async (sent: Sent): Promise<Exchange | undefined> => {
  const reply = await send(sent)
  return reply && { sent, reply }
}

function overInject (app: FastifyInstance): Send {
  return async ({ method, url, headers, body }) => {
    let inject: Promise<LightMyRequestResponse>
    try {
      inject = app.inject({ method: method as 'GET', url, headers, ...body && { payload: body } })
    } catch {
      return undefined // the path is no URL
    }
    const reply = await inject
    return { status: reply.statusCode, headers: reply.headers, body: reply.body }
  }
}

function overHttp (app: FastifyInstance, agent: Agent): Send {
  const { port } = app.server.address() as AddressInfo
  return async ({ method, url, headers, body }) => await new Promise((resolve, reject) => {
    try {
      const length = body === undefined ? {} : { 'content-length': body.length }
      const { expect, ...rest } = headers // with `expect` the client would wait
      const request = httpRequest({ agent, port, method, path: url, headers: { ...rest, ...length } }, async response => {
        resolve({ status: response.statusCode!, headers: response.headers, body: await text(response) })
      })
      // If the headers are too large, Fastify sends a body even for HEAD, and the client reports an error.
      request.on('error', (error: NodeJS.ErrnoException) =>
        method === 'HEAD' && error.code === 'HPE_INVALID_CONSTANT' ? resolve(undefined) : reject(error))
      request.end(body)
    } catch {
      resolve(undefined) // Node.js refuses to send it: see sockets.test.ts
    }
  })
}

const isCharged = ({ url }: Sent) => url.startsWith('/work')

const isCheck = ({ url }: Sent) => url.includes('/check')

const order = ({ sent: { url } }: Exchange) => url.includes('/capture') ? 1 : 0

// Counts the statuses of each route.
function count (counts: Record<string, Record<string, number>>, { sent: { method }, reply: { status, headers } }: Exchange): void {
  const of = (counts[`${method} ${headers[ROUTE] as string | undefined ?? 'none'}`] ??= {})
  of[status] = (of[status] ?? 0) + 1
}

function explain (title: string, batch: number, { sent, reply }: Exchange, check: () => void): void {
  try {
    check()
  } catch (error) {
    const shown = { ...sent, body: sent.body?.toString().slice(0, 500) }
    assert.fail(`${(error as Error).message}\nFUZZ_SEED=${seed}, ${title}, batch ${batch}: ${JSON.stringify(shown)}\n` +
      `answered ${JSON.stringify(reply).slice(0, 800)}`)
  }
}
