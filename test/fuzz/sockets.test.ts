// needs a real server
import assert from 'node:assert'
import { connect, type AddressInfo } from 'node:net'
import type { FastifyInstance, FastifyRequest } from 'fastify'
import fc from 'fast-check'
import t from 'tap'
import { conversation, type Conversation } from './conversations.js'
import { buildFuzzed, ROUTE, type Gateway } from './gateway.js'
import { parseReplies } from './replies.js'
import { allowTime, seed, share } from './settings.js'
import { reconcile, Shadow } from './shadow.js'

const BATCH = 100
const TOGETHER = 25
const PAUSE = 3 // milliseconds between the parts of a slow conversation
const SILENCE = 50 // milliseconds without a reply, after which the client closes the connection

allowTime(t)

t.test(`conversations over raw sockets (FUZZ_SEED=${seed})`, async t => {
  const shadow = new Shadow()
  const underWay = new Set<FastifyRequest>()
  const gateway = await buildFuzzed(t, 'plain', app => watch(app, shadow, underWay))
  await gateway.app.listen({ port: 0, host: '127.0.0.1' })
  const total = share(0.04)
  const counts: Record<string, number> = {}
  let requests = 0
  for (let batch = 0; requests < total; batch++) {
    const conversations = fc.sample(conversation, { seed: seed + batch, numRuns: BATCH })
    for (let first = 0; first < BATCH; first += TOGETHER) {
      await Promise.all(conversations.slice(first, first + TOGETHER).map(async conversation => {
        try {
          for (const status of await talk(gateway, conversation)) counts[status] = (counts[status] ?? 0) + 1
        } catch (error) {
          assert.fail(`${(error as Error).message}\nFUZZ_SEED=${seed}, batch ${batch}, ${conversation.title}: ` +
            JSON.stringify(Buffer.concat(conversation.parts).toString('latin1').slice(0, 1500)))
        }
      }))
    }
    requests += conversations.reduce((sum, { requests }) => sum + requests, 0)
    while (underWay.size > 0) await pause(1)
    await shadow.compare(gateway.app.pg)
  }
  t.comment(`${requests} requests, ${shadow.accepted} deducts accepted, ${await reconcile(gateway.app)} accounts; ${JSON.stringify(counts)}`)
  t.ok(shadow.accepted > total / 20, 'many were accepted')
})

// The gateway itself records what it has charged, because a client that is cut off gets no reply. A request is under way
// from the arrival of its body until its reply.
function watch (app: FastifyInstance, shadow: Shadow, underWay: Set<FastifyRequest>): void {
  app.addHook('preHandler', async request => { underWay.add(request) })
  app.addHook('onSend', async (request, reply) => {
    underWay.delete(request)
    const { user_id: userId = 'default_user', credits, budget } = { ...request.query as object, ...request.body as object } as Record<string, any>
    if (reply.statusCode !== 200) return
    shadow.name(userId)
    if (request.method !== 'POST' || reply.getHeader('idempotency-replayed') !== undefined) return
    shadow.accepted++
    shadow.accept('deduct', userId, credits, budget)
  })
}

/** Sends a conversation, checks each reply against the document, and returns the statuses. */
async function talk (gateway: Gateway, { parts, slow, answers }: Conversation): Promise<number[]> {
  const socket = connect((gateway.app.server.address() as AddressInfo).port, '127.0.0.1')
  const received: Buffer[] = []
  const closed = new Promise<true>(resolve => socket.on('close', () => resolve(true)))
  socket.on('error', () => {}) // the gateway may close the connection early
  socket.on('data', data => received.push(data))
  for (const part of parts) {
    socket.write(part)
    if (slow) await pause(PAUSE)
  }
  const replies = () => parseReplies(Buffer.concat(received))
  while (!await Promise.race([closed, pause(SILENCE)])) {
    if (replies().length >= (answers ?? 0)) break
  }
  socket.destroy()
  for (const reply of replies()) {
    const route = reply.headers[ROUTE] as string | undefined
    gateway.check(route === '/api/credits' ? 'GET' : 'POST', route, reply)
  }
  if (answers) assert.strictEqual(replies().length, answers, 'every request is answered')
  else if (answers === 0) assert.deepStrictEqual(replies().filter(({ status }) => status < 400), [], 'one that is not whole is not accepted')
  return replies().map(({ status }) => status)
}

const pause = (ms: number) => new Promise<void>(resolve => setTimeout(resolve, ms))
