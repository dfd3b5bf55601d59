// not on Citus: about HTTP
import { connect as connectHttp2 } from 'node:http2'
import { request as httpRequest, type IncomingMessage } from 'node:http'
import { once } from 'node:events'
import { text } from 'node:stream/consumers'
import type { FastifyRequest } from 'fastify'
import compress from '@fastify/compress'
import t from 'tap'
import { buildCharged, reconciles } from '../helper/charging.js'
import { catchUncaught, declareStyles, forEachStyle, pathOf, replySame, settledAt, styles } from '../helper/reply-styles.js'

const server = { logger: false }
const pays = Object.fromEntries(Object.entries(styles).map(([name, style]) => [name, style.pays]))

t.test('to a client that takes trailers a charged route replies as an uncharged one does', async t => {
  const uncaught = catchUncaught(t)
  const metered = { hold: 500, cost: (request: FastifyRequest) => request.credits!.used + 100 }
  // A stream with a trailer ends a moment later, so Fastify's reaction to a second reply cuts it off.
  const { 'sends a stream and returns': _returns, 'sends a stream and throws': _throws, ...others } = styles
  const gateway = await buildCharged(t, app => declareStyles(app, metered, others), { server })

  // A reply with trailers is sent in chunks, so this does not compare bytes.
  async function ask (path: string, user: string, method: string) {
    const sent = httpRequest(gateway.url + path, { method, agent: false, headers: { te: 'trailers', 'x-user': user } }).end()
    try {
      const [reply]: [IncomingMessage] = await once(sent, 'response') as any
      const body = await text(reply).catch(({ code }) => code)
      const { 'credits-cost': cost, ...trailers } = reply.trailers
      const { date: _date, 'credits-cost': _cost, 'credits-remaining': _remaining, trailer, ...headers } = reply.headers
      for (const framing of ['content-length', 'transfer-encoding', 'connection']) delete headers[framing]
      if (cost !== undefined) t.equal(cost, '100', `${user}: the trailer`)
      return { status: reply.statusCode, headers, trailers, body: body.replaceAll('/price', '/plain') }
    } catch (error) {
      return (error as { code: string }).code
    }
  }

  await forEachStyle(async (name, { method = 'GET' }) => {
    t.strictSame(await ask(`/price${pathOf(name)}`, name, method), await ask(`/plain${pathOf(name)}`, name, method), name)
    t.equal((await settledAt(gateway, name)).used, pays[name], `${name}: what it pays`)
  }, others)
  t.strictSame(uncaught, [])
  await reconciles(t, gateway)
})

t.test('over HTTP/2 there is no trailer', async t => {
  const uncaught = catchUncaught(t)
  const metered = { hold: 500 }
  const gateway = await buildCharged(t, app => declareStyles(app, metered), {
    server: { ...server, http2: true, forceCloseConnections: false } as object
  })
  const client = connectHttp2(gateway.url)
  const stream = client.request({ ':path': `/price${pathOf('returns a stream')}`, 'x-user': 'ann', te: 'trailers' })
  stream.on('trailers', () => t.fail('a trailer'))
  const [headers] = await once(stream, 'response')
  t.equal(headers.trailer, undefined)
  t.equal(await text(stream), 'one two')
  client.close()
  t.strictSame(uncaught, [])
})

for (const first of [true, false]) {
  t.test(`with @fastify/compress, registered ${first ? 'before' : 'after'} the plugin, the reply stays the same`, async t => {
    const uncaught = catchUncaught(t)
    const { 'calls not found': _path, ...others } = styles // its body contains the path
    const gateway = await buildCharged(t, async app => {
      if (!first) await app.register(compress, { threshold: 0 })
      declareStyles(app, {}, others)
    }, { server, ...first && { before: app => app.register(compress, { threshold: 0 }) } })
    const paid = await replySame(t, gateway, 'Accept-Encoding: gzip\r\n', others)
    for (const [name, credits] of Object.entries(paid)) {
      // A compressed stream begins later, after the error.
      t.equal(credits, name === 'sends a stream and throws' ? 0 : pays[name], `${name}: what it pays`)
    }
    t.strictSame(uncaught, [])
    await reconciles(t, gateway)
  })
}
