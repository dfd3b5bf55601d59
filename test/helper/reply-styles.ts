import { connect } from 'node:net'
import { Readable } from 'node:stream'
import type { FastifyInstance, FastifyReply, FastifyRequest, RouteShorthandOptions } from 'fastify'
import type { Test } from 'tap'
import { until, type ChargedGateway } from './charging.js'

// Every style of handler, declared twice: charged and uncharged. Both must send equal replies, except for our headers.

type Handler = (request: FastifyRequest, reply: FastifyReply) => any

export interface Style {
  handler: Handler
  options?: RouteShorthandOptions
  /** The credits that a request pays, of a cost of 100. */
  pays: number
  method?: string
}

const later = (work: () => unknown) => { setImmediate(work) }
const words = () => Readable.from(['one ', 'two'])
const bytes = () => Readable.from([Buffer.from('one '), Buffer.from('two')])
const web = () => Readable.toWeb(bytes()) as ReadableStream
const failsAtOnce = () => new Readable({ read () { this.destroy(new Error('no source')) } })
const failsLater = () => Readable.from((async function * () {
  yield 'one '
  await new Promise(resolve => setTimeout(resolve, 20))
  throw new Error('no more')
})())
const failsLaterWeb = () => {
  let chunks = 0
  return new ReadableStream({
    async pull (controller) {
      if (chunks++ === 0) return controller.enqueue(Buffer.from('one '))
      await new Promise(resolve => setTimeout(resolve, 20))
      throw new Error('no more')
    }
  })
}

/** The styles; their names say what they do. */
export const styles: Record<string, Style> = {
  // Values
  'returns a value': { pays: 100, handler: () => ({ done: true }) },
  'returns a string': { pays: 100, handler: async () => 'done' },
  'returns a buffer': { pays: 100, handler: async () => Buffer.from('done') },
  'returns an array buffer view': { pays: 100, handler: async () => new Uint16Array([1, 2]) },
  'returns null': { pays: 100, handler: async () => null },
  'returns nothing': { pays: 100, handler: async () => {} },
  'returns a thenable': { pays: 100, handler: () => ({ then: (resolve: (value: string) => void) => resolve('done') }) },
  'returns nothing, with 204': { pays: 100, handler: async (_request, reply) => { reply.code(204) } },
  'sends without return': { pays: 100, handler: async (_request, reply) => { reply.send({ done: true }) } },
  'sends a string without return': { pays: 100, handler: async (_request, reply) => { reply.send('done') } },
  'sends after a while without return': {
    pays: 100,
    handler: async (_request, reply) => {
      await new Promise(resolve => later(() => resolve(undefined)))
      reply.send('done')
    }
  },
  'returns send': { pays: 100, handler: async (_request, reply) => reply.send('done') },
  'awaits send': {
    pays: 100,
    handler: async (_request, reply) => {
      await reply.send('done')
      return 'again'
    }
  },
  'sends and returns': {
    pays: 100,
    handler: async (_request, reply) => {
      reply.send('first')
      return 'second'
    }
  },
  'sends and returns a large value': {
    pays: 100,
    handler: async (_request, reply) => {
      reply.send('x'.repeat(500_000))
      return 'second'
    }
  },
  'sends twice': {
    pays: 100,
    handler: async (_request, reply) => {
      reply.send('first')
      reply.code(500).send('second')
    }
  },
  'sends 201': { pays: 100, handler: async (_request, reply) => { reply.code(201).send({ id: 1 }) } },
  'sends 201 and returns reply': {
    pays: 100,
    handler: async (_request, reply) => {
      reply.code(201).send({ id: 1 })
      return reply
    }
  },
  'sends and throws': {
    pays: 100,
    handler: async (_request, reply) => {
      reply.send('done')
      throw new Error('too late')
    }
  },
  'sends and changes headers': {
    pays: 100,
    handler: (_request, reply) => {
      reply.header('x-kept', 'first').header('set-cookie', ['a=1', 'b=2']).send('done')
      reply.header('x-kept', 'second').header('x-added', 'second').header('set-cookie', 'c=3')
    }
  },
  'sends 201 and changes the status': {
    pays: 100,
    handler: (_request, reply) => {
      reply.code(201).send('done')
      reply.code(500)
    }
  },

  // Callbacks
  'calls back': { pays: 100, handler: (_request, reply) => later(() => reply.send('done')) },
  'calls back at once': { pays: 100, handler: (_request, reply) => { reply.send('done') } },
  'calls back twice': {
    pays: 100,
    handler: (_request, reply) => {
      reply.send('first')
      reply.send('second')
    }
  },
  'calls back twice, later': {
    pays: 100,
    handler: (_request, reply) => later(() => {
      reply.send('first')
      reply.code(400).send('second')
    })
  },
  'calls back and throws': {
    pays: 100,
    handler: (_request, reply) => {
      reply.send('done')
      throw new Error('too late')
    }
  },
  'calls back an error': { pays: 0, handler: (_request, reply) => later(() => reply.send(new Error('no'))) },
  'returns reply and sends later': {
    pays: 100,
    handler: async (_request, reply) => {
      later(() => reply.send({ done: true }))
      return reply
    }
  },
  'returns reply, is no promise, and sends later': {
    pays: 100,
    handler: (_request, reply) => {
      later(() => reply.send({ done: true }))
      return reply
    }
  },
  'returns reply and sends an error later': {
    pays: 0,
    handler: async (_request, reply) => {
      later(() => reply.code(502).send({ no: true }))
      return reply
    }
  },
  'awaits reply': {
    pays: 100,
    handler: async (_request, reply) => {
      later(() => reply.send('done'))
      await reply
    }
  },

  // Errors
  throws: { pays: 0, handler: async () => { throw new Error('no') } },
  'throws at once': { pays: 0, handler: () => { throw new Error('no') } },
  // eslint-disable-next-line no-throw-literal
  'throws a string': { pays: 0, handler: async () => { throw 'no' } },
  'throws with a status': { pays: 0, handler: async () => { throw Object.assign(new Error('no'), { statusCode: 418 }) } },
  'returns an error': { pays: 0, handler: async () => new Error('no') },
  'replies 404': { pays: 0, handler: async (_request, reply) => reply.code(404).send({ no: true }) },
  'calls not found': { pays: 0, handler: (_request, reply) => reply.callNotFound() },
  'has an error handler': {
    pays: 0,
    options: { errorHandler: (error, _request, reply) => { reply.code(200).send({ mine: (error as Error).message }) } },
    handler: async () => { throw new Error('no') }
  },
  'has an error handler that throws': {
    pays: 0,
    options: { errorHandler: () => { throw new Error('nor this') } },
    handler: async () => { throw new Error('no') }
  },
  'has an async error handler': {
    pays: 0,
    options: { errorHandler: async error => ({ mine: (error as Error).message }) },
    handler: async () => { throw new Error('no') }
  },
  'cannot be serialized': { pays: 0, handler: async () => ({ n: 1n }) },
  'has a serializer that throws': {
    pays: 0,
    handler: async (_request, reply) => {
      reply.serializer(() => { throw new Error('no') })
      return { done: true }
    }
  },
  'has a serializer': {
    pays: 100,
    handler: async (_request, reply) => {
      reply.type('application/x-mine').serializer((payload: unknown) => `mine: ${JSON.stringify(payload)}`)
      return { done: true }
    }
  },
  'breaks its schema': {
    pays: 0,
    options: { schema: { response: { 200: { type: 'object', required: ['n'], properties: { n: { type: 'integer' } } } } } },
    handler: async () => ({})
  },
  'is of no type that can be sent': { pays: 0, handler: async (_request, reply) => reply.type('text/plain').send({ no: true }) },
  'has a header that cannot be sent': { pays: 0, handler: async (_request, reply) => reply.header('x-bad', 'a\nb').send('done') },

  // Streams
  'returns a stream': { pays: 100, handler: async () => words() },
  'sends a stream': { pays: 100, handler: (_request, reply) => reply.send(words()) },
  'sends a stream without return': { pays: 100, handler: async (_request, reply) => { reply.send(words()) } },
  'sends a stream and returns': {
    pays: 100,
    handler: async (_request, reply) => {
      reply.send(words())
      return 'second'
    }
  },
  'sends a stream and throws': {
    pays: 100,
    handler: async (_request, reply) => {
      reply.send(words())
      throw new Error('too late')
    }
  },
  'returns an empty stream': { pays: 100, handler: async () => Readable.from([]) },
  'returns a stream of the web': { pays: 100, handler: async () => web() },
  'returns a locked stream': {
    pays: 0,
    handler: async () => {
      const stream = web()
      stream.getReader()
      return stream
    }
  },
  'returns a Response': { pays: 100, handler: async () => new Response(web(), { status: 202, headers: { 'x-from': 'upstream' } }) },
  'returns a Response of text': { pays: 100, handler: async () => new Response('done') },
  'returns an empty Response': { pays: 100, handler: async () => new Response(null, { status: 204 }) },
  'returns a Response that was read': {
    pays: 0,
    handler: async () => {
      const response = new Response('done')
      await response.text()
      return response
    }
  },
  'returns a Response with an error': { pays: 0, handler: async () => new Response('no', { status: 503 }) },
  'fails before the first byte': { pays: 0, handler: async () => failsAtOnce() },
  'fails in mid-stream': { pays: 0, handler: async () => failsLater() },
  'fails in mid-stream of the web': { pays: 0, handler: async () => failsLaterWeb() },
  'fails in mid-stream of a Response': { pays: 0, handler: async () => new Response(failsLaterWeb()) },
  'a stream of known length': { pays: 100, handler: async (_request, reply) => reply.header('content-length', 7).send(words()) },
  'a stream with 204': { pays: 100, handler: async (_request, reply) => reply.code(204).send(words()) },
  'a stream with 304': { pays: 0, handler: async (_request, reply) => reply.code(304).send(words()) },
  304: { pays: 0, handler: async (_request, reply) => reply.code(304).header('etag', '"x"').send() },
  redirects: { pays: 100, handler: (_request, reply) => reply.redirect('/elsewhere', 303) },
  'has a trailer of its own': {
    pays: 100,
    handler: async (_request, reply) => {
      reply.trailer('x-digest', async () => 'abc')
      return words()
    }
  },

  // The raw response
  hijacks: {
    pays: 100,
    handler: (_request, reply) => {
      reply.hijack()
      later(() => reply.raw.writeHead(202, { 'x-raw': '1' }).end('raw'))
    }
  },
  'hijacks and fails': {
    pays: 0,
    handler: (_request, reply) => {
      reply.hijack()
      reply.raw.writeHead(502).end('raw')
    }
  },
  'hijacks, replies and throws': {
    pays: 100,
    handler: async (_request, reply) => {
      reply.hijack()
      reply.raw.end('raw')
      throw new Error('too late')
    }
  },
  'hijacks and breaks off': {
    pays: 0,
    handler: async (_request, reply) => {
      reply.hijack()
      reply.raw.write('raw')
      later(() => reply.raw.destroy())
    }
  },
  'writes without hijack': {
    pays: 100,
    handler: (_request, reply) => {
      reply.raw.writeHead(202, { 'x-raw': '1' })
      reply.raw.write('raw')
      later(() => reply.raw.end('.'))
    }
  },
  'writes without hijack, and sends': {
    pays: 0,
    handler: (_request, reply) => {
      reply.raw.write('raw')
      reply.send('more')
    }
  },

  // Hooks of the host
  'has a hook that replaces the payload': {
    pays: 100,
    options: { onSend: async () => 'replaced' },
    handler: async () => words()
  },
  'has a hook that changes the status': {
    pays: 0,
    options: { onSend: (_request, reply, _payload, done) => { reply.code(304); done(null, '') } },
    handler: async () => 'done'
  },
  'has a hook that throws': {
    pays: 0,
    options: { onSend: async () => { throw new Error('no') } },
    handler: async () => 'done'
  },
  'has a hook that throws of a stream': {
    pays: 0,
    options: { onSend: (_request, _reply, _payload, done) => { done(new Error('no')) } },
    handler: async () => words()
  },
  'has a serialization hook that throws': {
    pays: 0,
    options: { preSerialization: async () => { throw new Error('no') } },
    handler: async () => ({ done: true })
  },
  'has a serialization hook that replaces the payload': {
    pays: 100,
    options: { preSerialization: async (_request, _reply, payload) => ({ payload }) },
    handler: async () => ({ done: true })
  },
  'has a hook that waits': {
    pays: 100,
    options: { onSend: async (_request, _reply, payload) => { await new Promise(resolve => setTimeout(resolve, 5)); return payload } },
    handler: async (_request, reply) => { reply.send('done') }
  },
  'has an error hook': {
    pays: 0,
    options: { onError: async (_request, reply) => { reply.header('x-error', '1') } },
    handler: async () => { throw new Error('no') }
  },
  'is replied by an earlier hook': {
    pays: 0,
    options: { preHandler: (_request, reply) => { reply.send('cached') } },
    handler: async () => 'done'
  },

  // Methods
  'HEAD of a value': { pays: 100, method: 'HEAD', handler: async () => ({ done: true }) },
  'HEAD of a stream': { pays: 100, method: 'HEAD', handler: async () => words() },
  'HEAD of a stream of the web': { pays: 100, method: 'HEAD', handler: async () => web() },
  'HEAD of an error': { pays: 0, method: 'HEAD', handler: async () => { throw new Error('no') } },
  'HEAD with a length': { pays: 100, method: 'HEAD', handler: async (_request, reply) => reply.header('content-length', 7).send(words()) }
}

/** Returns a style's path: it follows `/price` if the route is charged, and `/plain` if not. */
export const pathOf = (name: string) => `/${name.replace(/\W+/g, '-')}`

/** Declares a charged and an uncharged route of every style. */
export function declareStyles (app: FastifyInstance, credits: object, some = styles): void {
  for (const [name, { handler, options }] of Object.entries(some)) {
    app.get(`/price${pathOf(name)}`, { ...options, config: { credits: { operation: 'video', cost: 100, ...credits } } }, handler)
    app.get(`/plain${pathOf(name)}`, options ?? {}, handler)
  }
}

/** Sends a request and returns the bytes of its reply, without our headers and those that differ each time. */
export async function bytesOf ({ url }: ChargedGateway, path: string, user: string, method: string, headers: string) {
  const { hostname, port } = new URL(url)
  const socket = connect(Number(port), hostname)
  socket.on('error', () => {})
  socket.write(`${method} ${path} HTTP/1.1\r\nHost: x\r\nX-User: ${user}\r\n${headers}Connection: close\r\n\r\n`)
  let reply = ''
  for await (const chunk of socket.setEncoding('latin1')) reply += chunk
  return reply
    .replaceAll('/price', '/plain')
    .replace(/^date: .*\r\n/im, '')
    .replace(/^credits-(cost|remaining): \d+\r\n/gim, '')
}

/** Calls `visit` for every style, several at a time. */
export async function forEachStyle (visit: (name: string, style: Style) => Promise<unknown>, some = styles): Promise<void> {
  const entries = Object.entries(some)
  while (entries.length > 0) await Promise.all(entries.splice(0, 8).map(([name, style]) => visit(name, style)))
}

/** Asserts that the charged and uncharged routes of each style reply equally over HTTP/1.1. Returns what each has paid. */
export async function replySame (t: Test, gateway: ChargedGateway, headers = '', some = styles): Promise<Record<string, number>> {
  const paid: Record<string, number> = {}
  await forEachStyle(async (name, { method = 'GET' }) => {
    const plain = await bytesOf(gateway, `/plain${pathOf(name)}`, name, method, headers)
    t.equal(await bytesOf(gateway, `/price${pathOf(name)}`, name, method, headers), plain, name)
  }, some)
  for (const name of Object.keys(some)) paid[name] = (await settledAt(gateway, name)).used
  return paid
}

/** Returns the balance once all charges are settled: a charge that was captured before may still be refunded. */
export async function settledAt ({ app, inFlight }: ChargedGateway, user: string) {
  await until(inFlight, count => count === 0)
  return await app.credits.balance(user)
}

/** Returns a list that collects errors thrown outside of a request. In a gateway they would end the process. */
export function catchUncaught (t: Test) {
  const uncaught: unknown[] = []
  const listener = (error: unknown) => { uncaught.push(error) }
  process.prependListener('uncaughtException', listener)
  t.teardown(() => process.removeListener('uncaughtException', listener))
  return uncaught
}
