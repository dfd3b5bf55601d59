// needs a real server
import { Readable } from 'node:stream'
import type { FastifyInstance } from 'fastify'
import t from 'tap'
import { buildCharged, reconciles } from '../helper/charging.js'

const before = { operation: 'video', capture: 'before' } as const
const outcome: { source?: Readable } = {}

function declare (app: FastifyInstance) {
  app.get('/fixed', { config: { credits: { ...before, cost: 100 } } }, async () => 'ok')
  app.get('/used', { config: { credits: { ...before, hold: 50 } } }, async ({ credits, query }) => {
    credits!.use(Number((query as { n: string }).n))
    credits!.metadata({ tokens: 1 })
    return 'the result'
  })
  app.get('/fixed-stream', { config: { credits: { ...before, hold: 50, cost: 100 } } }, async () => Readable.from(['ok']))
  app.get('/stream', { config: { credits: { ...before, hold: 50 } } }, async ({ credits }) => {
    credits!.use(5)
    return Readable.from(['ok'])
  })
  app.get('/stream-of-more', { config: { credits: { ...before, hold: 50, cost: 5000 } } }, async () => {
    outcome.source = Readable.from(['the result'])
    return outcome.source
  })
  app.get('/web-of-more', { config: { credits: { ...before, hold: 50, cost: 5000 } } }, async () =>
    new Response(new ReadableStream({ cancel: async () => { throw new Error('no') } })))
  app.get('/bare-web-of-more', { config: { credits: { ...before, hold: 50, cost: 5000 } } }, async () => new ReadableStream())
  app.get('/cancelled', { config: { credits: { ...before, cost: 100 } } }, async ({ credits }) => credits!.cancel())
  app.get('/throws', { config: { credits: { ...before, cost: 100 } } }, async () => { throw new Error('no') })
  app.get('/events', { config: { credits: { ...before, cost: 100 } } }, async (_request, reply) => {
    reply.hijack()
    reply.raw.end('ok')
  })
}

t.test('with capture: before, a request pays before its reply begins', async t => {
  const gateway = await buildCharged(t, declare)
  const { ask, app, settled } = gateway
  for (const [path, used, status] of [
    ['/fixed', 100, 200],
    ['/used?n=20', 20, 200],
    ['/used?n=900', 900, 200],
    ['/used?n=0', 0, 200],
    ['/used?n=2000', 0, 402],
    ['/fixed-stream', 100, 200],
    ['/stream', 50, 200],
    ['/stream-of-more', 0, 402],
    ['/web-of-more', 0, 402],
    ['/bare-web-of-more', 0, 402],
    ['/cancelled', 0, 200],
    ['/throws', 0, 500]
  ] as const) {
    const answer = await ask(path, path)
    t.equal(answer.status, status, path)
    t.notMatch(answer.text, status === 402 ? /result/ : /nothing/, 'an unpaid result is not sent')
    t.equal(answer.headers.get('credits-cost'), status === 200 ? String(used) : null, path)
    if (status === 200) t.equal((await app.credits.balance(path)).used, used, `${path}: when the client has it, it is paid`)
    t.equal((await settled(path)).used, used, path)
  }
  t.ok(outcome.source!.destroyed, 'nor is it produced')
  t.equal((await ask('hijacked', '/events')).text, 'ok')
  t.equal((await settled('hijacked')).used, 100)
  t.match(await app.credits.history('/used?n=20'), { entries: [{ used: 20, metadata: { tokens: 1 } }] })
  await reconciles(t, gateway)
})

t.test('a capture whose answer was lost is given back, because the reply became an error', async t => {
  const gateway = await buildCharged(t, declare, { options: { timeout: 1000 } })
  const { app, ask } = gateway
  // The next statement that captures never gets its answer.
  let lose = true
  app.pg.pool.on('acquire', client => {
    const query = client.query
    client.query = ((config: { text?: string }, ...rest: unknown[]) => {
      const answer = Reflect.apply(query, client, [config, ...rest])
      if (!lose || !/capture/.test(JSON.stringify(config))) return answer
      return answer.then(() => new Promise(() => {}))
    }) as typeof query
  })
  const answering = ask('ann', '/fixed')
  const answer = await answering
  t.equal(answer.status, 503)
  t.notMatch(answer.text, /ok/)
  lose = false
  t.match(await gateway.settled('ann'), { held: 0 })
  while ((await app.credits.balance('ann')).used !== 0) await new Promise(resolve => setTimeout(resolve, 5))
  t.match(await app.credits.statement('ann'), { entries: [{}, {}, { kind: 'capture' }, { kind: 'refund', reason: 'not delivered' }] })
  await reconciles(t, gateway)
})
