// needs a real server
import assert from 'node:assert'
import { Agent, request as httpRequest } from 'node:http'
import type { AddressInfo } from 'node:net'
import { text } from 'node:stream/consumers'
import type { FastifyInstance, LightMyRequestResponse } from 'fastify'
import fc from 'fast-check'
import t from 'tap'
import type { Reply } from './conformance.js'
import { buildFuzzed, settings } from './gateway.js'
import { judge, type Exchange } from './outcome.js'
import { requestsOf, type Sent } from './requests.js'
import { allowTime, seed, share } from './settings.js'
import { reconcile, Shadow } from './shadow.js'

const BATCH = 400
const TOGETHER = 40

/** Sends a request; undefined where the client itself refuses to. */
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
    const holds = new Map<string, string>()
    const counts: Record<string, number> = {}
    for (let made = 0, batch = 0; made < total; batch++) {
      // Every sixth batch over a socket.
      const send = batch % 6 === 5 ? overHttp(gateway.app, agent) : overInject(gateway.app)
      const requests = fc.sample(requestsOf(gateway.document, 10 + batch * 5), { seed: seed + batch, numRuns: Math.min(BATCH, total - made) })
      // The charged route by itself: a request to capture or release its hold may guess the number, and come in between.
      const exchanges = [
        ...await sendAll(send, requests.filter(isCharged)),
        ...await sendAll(send, requests.filter(sent => !isCharged(sent)))
      ]
      made += requests.length
      // Holds first, as a capture of one may have been answered before.
      exchanges.sort((a, b) => order(a) - order(b))
      for (const exchange of exchanges) {
        count(counts, exchange)
        explain(title, batch, exchange, () => judge(gateway, shadow, holds, exchange))
      }
      await shadow.compare(gateway.app.pg)
    }
    t.comment(`${total} requests, ${shadow.accepted} accepted, ${shadow.refused} refused by a route; ` +
      `${await reconcile(gateway.app)} accounts; ${JSON.stringify(counts)}`)
    t.ok(shadow.accepted > total / 20, 'many were accepted')
    t.ok(shadow.refused > total / 20, 'many were refused')
  })
}

async function sendAll (send: Send, requests: Sent[]): Promise<Exchange[]> {
  const exchanges: Exchange[] = []
  for (let first = 0; first < requests.length; first += TOGETHER) {
    await Promise.all(requests.slice(first, first + TOGETHER).map(async sent => {
      const reply = await send(sent)
      if (reply !== undefined) exchanges.push({ sent, reply })
    }))
  }
  return exchanges
}

function overInject (app: FastifyInstance): Send {
  return async ({ method, url, headers, body }) => {
    let inject: Promise<LightMyRequestResponse>
    try {
      inject = app.inject({ method: method as 'GET', url, headers, ...body && { payload: body } })
    } catch {
      return undefined // no URL at all
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
      const { expect, ...rest } = headers // the client would wait
      const request = httpRequest({ agent, port, method, path: url, headers: { ...rest, ...length } }, async response => {
        resolve({ status: response.statusCode!, headers: response.headers, body: await text(response) })
      })
      // To headers that are too large Fastify answers with a body, also a HEAD, and the client finds no reply in that.
      request.on('error', (error: NodeJS.ErrnoException) =>
        method === 'HEAD' && error.code === 'HPE_INVALID_CONSTANT' ? resolve(undefined) : reject(error))
      request.end(body)
    } catch {
      resolve(undefined) // what no client of Node.js sends: see sockets.test.ts
    }
  })
}

const isCharged = ({ url }: Sent) => url.startsWith('/work')

const order = ({ sent: { url } }: Exchange) => url.includes('/capture') ? 1 : 0

function count (counts: Record<string, number>, { reply: { status } }: Exchange): void {
  counts[status] = (counts[status] ?? 0) + 1
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
