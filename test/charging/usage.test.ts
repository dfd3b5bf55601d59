import { Readable } from 'node:stream'
import { text } from 'node:stream/consumers'
import { setTimeout as sleep } from 'node:timers/promises'
import type { FastifyInstance, FastifyRequest } from 'fastify'
import t from 'tap'
import type { RouteCredits, Usage } from '../../src/index.js'
import { buildCharged, open, reconciles } from '../helper/charging.js'

const prices = {
  chat: { per: { input_tokens: { credits: 1, each: 10 }, output_tokens: { credits: 4, each: 10 } }, minimum: 1 },
  free: { per: { tokens: 0 } }
}

const tokens = new WeakMap<FastifyRequest, Usage>()
const usage = (request: FastifyRequest) => tokens.get(request)!
const chat = { operation: 'chat', hold: 500, usage }

// Streams one token at a time, and waits after the first one.
async function * talk (request: FastifyRequest, waits: boolean) {
  const counted = { input_tokens: 20, output_tokens: 0 }
  tokens.set(request, counted)
  for (let token = 0; token < 10; token++) {
    counted.output_tokens++
    yield 'x'
    if (waits && token === 0) await sleep(60_000, undefined, { ref: false })
  }
}

function declare (app: FastifyInstance) {
  const route = (path: string, credits: RouteCredits, used: unknown) => app.get(path, { config: { credits } }, async request => {
    tokens.set(request, used as Usage)
    return { said: 'x' }
  })
  route('/json', chat, { input_tokens: 20, output_tokens: 30 })
  route('/before', { ...chat, capture: 'before' }, { input_tokens: 20, output_tokens: 30 })
  route('/later', { ...chat, usage: async request => usage(request) }, { output_tokens: 25 })
  route('/none', { ...chat, operation: 'free' }, { tokens: 7 })
  route('/rubbish', chat, { input_tokens: 1.5 })
  route('/unknown', chat, { colours: 3 })
  route('/throwing', chat, { get input_tokens () { throw Object.assign(new Error('counted wrongly'), { code: 'COUNTER' }) } })
  app.get('/stream', { config: { credits: chat } }, async request => Readable.from(talk(request, false)))
  app.get('/endless', { config: { credits: chat } }, async request => Readable.from(talk(request, true)))
}

t.test('a route is charged for the quantities that usage returns, and the usage record has them', async t => {
  const gateway = await buildCharged(t, declare, { options: { prices, priceVersion: 'spring' } })
  const { app, ask, leave, settled, lines } = gateway
  for (const [path, used, quantities] of [
    ['/json', 14, { input_tokens: 20, output_tokens: 30 }],
    ['/before', 14, { input_tokens: 20, output_tokens: 30 }],
    ['/later', 10, { output_tokens: 25 }],
    ['/stream', 6, { input_tokens: 20, output_tokens: 10 }],
    ['/endless', 3, { input_tokens: 20, output_tokens: 1 }]
  ] as const) {
    if (path === '/endless') await leave(path, path, 1)
    else {
      const { status, headers } = await ask(path, path)
      t.equal(status, 200)
      t.equal(headers.get('credits-cost'), path === '/stream' ? null : String(used), path)
    }
    t.match(await settled(path), { used, available: 1000 - used }, path)
    const { entries } = await app.credits.statement(path)
    const capture = entries.find(({ kind }) => kind === 'capture')!
    t.match(capture, { usage: quantities, priceVersion: 'spring' }, path)
    t.equal(app.credits.quote('chat', capture.usage!).credits, used, 'the charge can be computed again')
  }

  t.equal((await ask('free', '/none')).headers.get('credits-cost'), '0')
  t.match(await settled('free'), { used: 0 })
  t.strictSame(lines, [])
  await reconciles(t, gateway)
})

t.test('a stream has its cost in a trailer', async t => {
  const gateway = await buildCharged(t, declare, { options: { prices } })
  const reply = await open(`${gateway.url}/stream`, 'ann', { te: 'trailers' })
  await text(reply)
  t.equal(reply.trailers['credits-cost'], '6')
  t.match(await gateway.settled('ann'), { used: 6 })
  await reconciles(t, gateway)
})

t.test('a usage that has no price is the host\'s bug, and costs nothing', async t => {
  const gateway = await buildCharged(t, declare, { options: { prices } })
  const { ask, settled } = gateway
  for (const [path, message] of [['/rubbish', 'usage.input_tokens of GET /rubbish'], ['/unknown', 'usage.colours of GET /unknown']] as const) {
    const { status, text: body } = await ask('ann', path)
    t.equal(status, 500)
    t.match(JSON.parse(body), { code: 'FST_CREDITS_INVALID_CHARGE', message })
  }
  t.match(JSON.parse((await ask('ann', '/throwing')).text), { statusCode: 500, code: 'COUNTER', message: 'counted wrongly' })
  t.match(await settled('ann'), { used: 0, held: 0 })
  await reconciles(t, gateway)
})

t.test('a config with usage is checked when the route is declared', async t => {
  for (const [credits, message] of [
    [{ ...chat, cost: 5 }, 'config.credits.usage of GET /x is charged by prices, and cannot go together with cost'],
    [{ operation: 'chat', usage }, 'config.credits.hold of GET /x is required if the cost depends on usage'],
    [{ ...chat, operation: 'video' }, 'config.credits.operation of GET /x has no price'],
    [{ ...chat, operation: 'constructor' }, 'config.credits.operation of GET /x has no price'],
    [{ ...chat, usage: { input_tokens: 1 } }, 'config.credits.usage of GET /x must be a function']
  ] as const) {
    await t.rejects(buildCharged(t, app => app.get('/x', { config: { credits: credits as RouteCredits } }, async () => 'x'), { options: { prices } }),
      { code: 'FST_CREDITS_INVALID_OPTION', message: `Option ${message}` }, message)
  }
})
