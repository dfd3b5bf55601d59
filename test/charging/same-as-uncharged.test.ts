// not on Citus: about HTTP
import { once } from 'node:events'
import { connect as connectHttp2 } from 'node:http2'
import { connect } from 'node:net'
import { text } from 'node:stream/consumers'
import t from 'tap'
import { buildCharged, reconciles } from '../helper/charging.js'
import { catchUncaught, declareStyles, forEachStyle, pathOf, replySame, settledAt, styles } from '../helper/reply-styles.js'

const server = { logger: false }
const pays = Object.fromEntries(Object.entries(styles).map(([name, style]) => [name, style.pays]))

t.test('a charged route replies as an uncharged one does', async t => {
  const uncaught = catchUncaught(t)
  const gateway = await buildCharged(t, app => declareStyles(app, {}), { server })
  t.strictSame(await replySame(t, gateway), pays)
  t.strictSame(uncaught, [])
  await reconciles(t, gateway)
})

t.test('a charged route replies as an uncharged one does over HTTP/2', async t => {
  const uncaught = catchUncaught(t)
  const gateway = await buildCharged(t, app => declareStyles(app, {}), {
    server: { ...server, http2: true, forceCloseConnections: false } as object
  })
  const client = connectHttp2(gateway.url)
  async function ask (path: string, user: string, method: string) {
    const stream = client.request({ ':path': path, ':method': method, 'x-user': user, te: 'trailers' })
    let headers = {}
    let trailers = {}
    stream.on('response', received => { headers = received })
    stream.on('trailers', received => { trailers = received })
    const body = await text(stream).catch(({ code }) => code)
    const { date: _date, 'credits-cost': _cost, 'credits-remaining': _remaining, ...others } = headers as Record<string, string>
    return { ...others, trailers: { ...trailers }, body: body.replaceAll('/price', '/plain') }
  }
  await forEachStyle(async (name, { method = 'GET' }) => {
    t.strictSame(await ask(`/price${pathOf(name)}`, name, method), await ask(`/plain${pathOf(name)}`, name, method), name)
    // Over HTTP/2 Node.js drops a header that cannot be sent.
    const expected = name === 'has a header that cannot be sent' ? 100 : pays[name]
    t.equal((await settledAt(gateway, name)).used, expected, `${name}: what it pays`)
  })
  client.close()
  t.strictSame(uncaught, [])
  await reconciles(t, gateway)
})

t.test('each pipelined request gets its own reply', async t => {
  const gateway = await buildCharged(t, app => declareStyles(app, {}), { server })
  const { hostname, port } = new URL(gateway.url)
  const socket = connect(Number(port), hostname).setEncoding('latin1')
  for (const name of ['sends and returns', 'returns a stream', 'throws', 'returns nothing']) {
    socket.write(`GET /price${pathOf(name)} HTTP/1.1\r\nHost: x\r\nX-User: ann\r\n\r\n`)
  }
  let reply = ''
  socket.on('data', chunk => { reply += chunk })
  while (reply.split('HTTP/1.1').length < 5) await once(socket, 'data')
  t.match(reply.split('HTTP/1.1 ').map(part => part.slice(0, 3)), ['', '200', '200', '500', '200'])
  socket.destroy()
  t.match(await gateway.settled('ann'), { used: 300 })
  await reconciles(t, gateway)
})
