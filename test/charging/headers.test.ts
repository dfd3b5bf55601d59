// not on Citus: about HTTP
import { Readable } from 'node:stream'
import type { FastifyInstance } from 'fastify'
import t from 'tap'
import { buildCharged, open, reconciles } from '../helper/charging.js'

const fixed = { operation: 'video', cost: 100 }
const metered = { operation: 'chat', hold: 500 }

function declare (app: FastifyInstance) {
  app.get('/fixed', { config: { credits: fixed } }, async () => 'ok')
  app.get('/used', { config: { credits: metered } }, async ({ credits }) => credits!.use(42))
  app.get('/used-later', { config: { credits: metered } }, async ({ credits }, reply) => {
    credits!.use(42)
    await reply.send('ok')
    credits!.use(100)
  })
  app.get('/nothing', { config: { credits: fixed } }, async (_request, reply) => { reply.code(204) })
  app.get('/cancelled', { config: { credits: fixed } }, async ({ credits }) => credits!.cancel())
  app.get('/free', { config: { credits: { operation: 'free', cost: 0 } } }, async () => 'ok')
  app.get('/fails', { config: { credits: fixed } }, async () => { throw new Error('no') })
  app.get('/fixed-stream', { config: { credits: fixed } }, async () => Readable.from(['ok']))
  const stream = (use: (credits: number) => void) => Readable.from((async function * () {
    use(30)
    yield 'o'
    use(12)
    yield 'k'
  })())
  app.get('/stream', { config: { credits: metered } }, async ({ credits }) => stream(n => credits!.use(n)))
  app.get('/cancelled-stream', { config: { credits: metered } }, async ({ credits }) => stream(n => {
    credits!.use(n)
    credits!.cancel()
  }))
  app.get('/response', { config: { credits: metered } }, async ({ credits }) =>
    new Response(Readable.toWeb(stream(n => credits!.use(n))) as ReadableStream))
  app.get('/response-of-length', { config: { credits: metered } }, async ({ credits }) =>
    new Response(Readable.toWeb(stream(n => credits!.use(n))) as ReadableStream, { headers: { 'content-length': '2' } }))
  app.get('/stream-of-length', { config: { credits: metered } }, async ({ credits }, reply) => {
    reply.header('content-length', 2)
    return stream(n => credits!.use(n))
  })
  app.get('/events', { config: { credits: metered } }, async ({ credits }, reply) => {
    reply.hijack()
    credits!.use(42)
    reply.raw.end('ok')
  })
  app.get('/uncharged', async () => 'ok')
}

t.test('headers and trailers say what a request costs and what is left', async t => {
  const gateway = await buildCharged(t, declare)
  for (const [path, cost, remaining, trailer, used = Number(cost)] of [
    ['/fixed', '100', '900', undefined],
    ['/used', '42', '500', undefined],
    ['/used-later', '42', '500', undefined],
    ['/nothing', '100', '900', undefined],
    ['/cancelled', '0', '900', undefined],
    ['/free', '0', undefined, undefined],
    ['/fails', undefined, undefined, undefined, 0],
    ['/fixed-stream', '100', '900', undefined],
    ['/stream', undefined, '500', '42', 42],
    ['/cancelled-stream', undefined, '500', '0', 0],
    ['/response', undefined, '500', '42', 42],
    ['/response-of-length', undefined, '500', undefined, 42],
    ['/stream-of-length', undefined, '500', undefined, 42],
    ['/events', undefined, undefined, undefined, 42],
    ['/uncharged', undefined, undefined, undefined, 0]
  ] as const) {
    for (const te of ['trailers', 'gzip, Trailers;q=0.5', '', 'trailers-not']) {
      const user = `${path} ${te || 'none'}`
      const reply = await open(gateway.url + path, user, { te })
      await reply.toArray()
      t.equal(reply.headers['credits-cost'], cost, `${user}: Credits-Cost`)
      t.equal(reply.headers['credits-remaining'], remaining, `${user}: Credits-Remaining`)
      t.equal(reply.trailers['credits-cost'], /trailers(;|$)/i.test(te) ? trailer : undefined, `${user}: the trailer`)
      t.equal((await gateway.settled(user)).used, used, `${user}: what was charged`)
    }
  }
  const head = await gateway.ask('head', '/stream', { method: 'HEAD', headers: { te: 'trailers' } })
  t.equal(head.headers.get('trailer'), null)
  t.equal((await gateway.settled('head')).used, 42)
  await reconciles(t, gateway)
})
