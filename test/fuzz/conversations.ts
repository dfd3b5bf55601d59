import fc from 'fast-check'

/** The bytes that a client sends on one connection. */
export interface Conversation {
  title: string
  /** The parts that are written one by one; with pauses between them if `slow`. */
  parts: Buffer[]
  slow: boolean
  /** How many requests they are, complete or not. */
  requests: number
  /** How many replies there must be; undefined if that is not certain. */
  answers: number | undefined
}

interface Speech {
  title: string
  text: Buffer
  requests: number
  answers?: number
}

const users = ['ann', 'ben', 'cleo', 'ünï']

const END = '\r\n\r\n'
const PATH = '/api/credits/deduct'
const HEAD = `POST ${PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n`

const deduct = fc.record({ user_id: fc.constantFrom(...users), credits: fc.integer({ min: 1, max: 9 }), operation: fc.constantFrom('chat', 'ünï') })
  .map(body => JSON.stringify(body))

/** Returns a request with a body and this content-length. */
function post (body: string | Buffer, headers = '', length = `${Buffer.byteLength(body)}`): Buffer {
  return Buffer.concat([Buffer.from(`${HEAD}${headers}Content-Length: ${length}${END}`), Buffer.from(body)])
}

const CLOSE = 'Connection: close\r\n'
const READ = Buffer.from(`GET /api/credits?user_id=ann HTTP/1.1\r\nHost: x${END}`)
const LAST = Buffer.from(`GET /api/credits HTTP/1.1\r\nHost: x\r\n${CLOSE}\r\n`)

// Requests that leave the connection open, so each has a reply.
const whole = fc.oneof(
  { weight: 4, arbitrary: deduct.map(body => post(body)) },
  { weight: 2, arbitrary: fc.tuple(deduct, fc.integer({ min: 1, max: 20 })).map(([body, key]) => post(body, `Idempotency-Key: p${key}\r\n`)) },
  { weight: 1, arbitrary: fc.constantFrom('{"credits":0,"operation":"chat"}', '{"credits":1}', '[]', '1', 'null', '{"user_id":5}').map(body => post(body)) },
  { weight: 1, arbitrary: fc.constant(READ) })

// Requests whose refusal may close the connection.
const half = fc.oneof(
  fc.constantFrom('{', '{"credits":', '\0', '{"credits":1,"operation":"a"}}', '', '{"__proto__":{},"credits":1,"operation":"a"}').map(body => post(body)),
  deduct.map(body => post(body, 'Content-Type: text/plain\r\n')),
  fc.constantFrom(
    Buffer.from(`GET /nowhere HTTP/1.1\r\nHost: x${END}`), Buffer.from(`GET /api/credits/%FF HTTP/1.1\r\nHost: x${END}`), Buffer.from(`TRACE / HTTP/1.1\r\nHost: x${END}`)))

const pipelined = fc.array(whole, { minLength: 1, maxLength: 8 }).map(requests => ({
  title: 'pipelined', text: Buffer.concat([...requests, LAST]), requests: requests.length + 1, answers: requests.length + 1
}))

const mixed = fc.array(fc.oneof(whole, half), { minLength: 1, maxLength: 8 }).map(requests => ({
  title: 'pipelined with some that are malformed', text: Buffer.concat([...requests, LAST]), requests: requests.length + 1
}))

const single = (title: string, text: fc.Arbitrary<Buffer>, answers?: number): fc.Arbitrary<Speech> =>
  text.map(text => ({ title, text, requests: 1, ...answers !== undefined && { answers } }))

const truncated = single('truncated', fc.tuple(deduct, fc.double({ min: 0, max: 0.99, noNaN: true })).map(([body, part]) => {
  const text = post(body)
  return text.subarray(0, Math.floor(text.length * part))
}), 0)

function inChunks (body: Buffer, size: number): Buffer[] {
  const chunks: Buffer[] = []
  for (let at = 0; at < body.length; at += size) chunks.push(body.subarray(at, at + size))
  return chunks
}

const chunk = (part: Buffer, size = part.length.toString(16)) => Buffer.concat([Buffer.from(`${size}\r\n`), part, Buffer.from('\r\n')])

const chunkedHead = (headers = '') => Buffer.from(`${HEAD}${headers}Transfer-Encoding: chunked${END}`)

const chunked = single('chunked', fc.tuple(deduct, fc.integer({ min: 1, max: 20 }), fc.constantFrom('0\r\n\r\n', '0;ext=1\r\n\r\n', '0\r\nX-Trailer: 1\r\n\r\n'))
  .map(([body, size, end]) => Buffer.concat([chunkedHead(CLOSE), ...inChunks(Buffer.from(body), size).map(part => chunk(part)), Buffer.from(end)])), 1)

const badlyChunked = single('badly chunked', fc.tuple(deduct, fc.constantFrom(
  'zz', '-1', 'FFFFFFFFFFFFFFFFFF', '0x10', ' ', '', '1', '3;', '7fffffff', `5;${'x'.repeat(20_000)}`, '5\n', '10000000000000000'
), fc.constantFrom('0\r\n\r\n', '', '0\r\n', '\r\n')).map(([body, size, end]) =>
  Buffer.concat([chunkedHead(), chunk(Buffer.from(body), size), Buffer.from(end)])))

const wrongLength = single('of another length', fc.tuple(deduct, fc.constantFrom(
  '0', '1', '20', '-1', '+5', 'abc', '0x20', '1e2', '99999999999999999999', '5, 5', '', ' ', '65537', '1000000000'
)).map(([body, length]) => post(body, '', length)))

const smuggled = single('of two lengths', fc.tuple(deduct, deduct, fc.constantFrom(
  'Transfer-Encoding: chunked\r\n', 'Transfer-Encoding: chunked, identity\r\n', 'Transfer-Encoding:\x0bchunked\r\n', 'Transfer-Encoding: xchunked\r\n',
  'Content-Length: 5\r\n', 'Content-Length: 0\r\n', 'Transfer-Encoding : chunked\r\n', 'Transfer-Encoding: identity\r\n'
)).map(([body, inner, header]) => post(`0\r\n\r\n${post(inner).toString()}${body}`, header)))

const badUtf8 = single('of bad UTF-8', fc.tuple(deduct, fc.uint8Array({ minLength: 1, maxLength: 3, min: 0x80, max: 0xff }), fc.constantFrom('chat', 'ann', '"'))
  .map(([body, bytes, place]) => {
    const [before = '', ...after] = body.split(place)
    return post(Buffer.concat([Buffer.from(before), Buffer.from(place), Buffer.from(bytes), Buffer.from(after.join(place))]), CLOSE)
  }))

const oddHeaders = single('with odd headers', fc.tuple(deduct, fc.constantFrom(
  'X\r\n', ': x\r\n', 'X : y\r\n', 'X: a\0b\r\n', 'X: y\r\n z\r\n', 'Host: y\r\n', `X: ${'y'.repeat(20_000)}\r\n`, 'X: y\r\n'.repeat(2500), 'X: y\n',
  'Idempotency-Key: a\r\nIdempotency-Key: b\r\n', 'Idempotency-Key: \r\n', 'Idempotency-Key: \xff\xfe\r\n', `Idempotency-Key: ${'k'.repeat(256)}\r\n`,
  '__proto__: x\r\n', 'Expect: 100-continue\r\n', 'Expect: the worst\r\n', 'Upgrade: h2c\r\nConnection: Upgrade\r\n', 'Content-Encoding: gzip\r\n',
  'Content-Type: text/plain\r\n', 'X-User: ben\r\n'
)).map(([body, header]) => post(body, Buffer.from(header).toString())))

const noHttp = single('that is no HTTP', fc.oneof(
  fc.uint8Array({ minLength: 1, maxLength: 60 }).map(bytes => Buffer.from(bytes)),
  fc.constantFrom(
    '\r\n\r\n\r\n', 'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n', `GET /api/credits HTTP/9.9\r\nHost: x${END}`, `GET /api/credits HTTP/1.1${END}`, `get /api/credits HTTP/1.1\r\nHost: x${END}`,
    `GET  /api/credits HTTP/1.1\r\nHost: x${END}`, `GET /api/cr\xffedits HTTP/1.1\r\nHost: x${END}`, `GET http://y/api/credits HTTP/1.1\r\nHost: x${END}`,
    `CONNECT x:1 HTTP/1.1\r\nHost: x${END}`, `GET /${'x'.repeat(20_000)} HTTP/1.1\r\nHost: x${END}`, '\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03', `GET /api/credits\r\n${END}`,
    `GET /api/credits HTTP/1.0${END}`, `GET /api/credits HTTP/1.1\r\nHost: x\r\nContent-Length: 2${END}{}`
  ).map(text => Buffer.from(text, 'latin1'))))

const large = single('that is too large', fc.oneof(
  deduct.map(body => post(body.padEnd(65_537), CLOSE)), deduct.map(body => post(body, '', '1000000')),
  deduct.map(body => Buffer.concat([chunkedHead(), chunk(Buffer.from(body.padEnd(70_000))), Buffer.from('0\r\n\r\n')]))))

const atLimit = single('that is as large as may be', deduct.map(body => post(Buffer.concat([Buffer.from(body), Buffer.alloc(65_536 - Buffer.byteLength(body), ' ')]), CLOSE)), 1)

const speech: fc.Arbitrary<Speech> = fc.oneof(
  { weight: 6, arbitrary: pipelined }, { weight: 3, arbitrary: mixed }, { weight: 2, arbitrary: truncated }, { weight: 2, arbitrary: chunked },
  badlyChunked, wrongLength, smuggled, badUtf8, oddHeaders, noHttp, large, atLimit)

/** Generates conversations with the gateway, complete and broken ones. A third of them are slow. */
export const conversation: fc.Arbitrary<Conversation> = fc.tuple(
  speech, fc.boolean(), fc.array(fc.double({ min: 0, max: 1, noNaN: true }), { minLength: 1, maxLength: 6 })
).map(([{ title, text, requests, answers }, slow, places]) => {
  const cuts = [0, ...slow ? places.map(place => Math.floor(text.length * place)).sort((a, b) => a - b) : [], text.length]
  const parts = cuts.slice(1).map((end, index) => text.subarray(cuts[index], end)).filter(({ length }) => length > 0)
  return { title, parts, slow, requests, answers }
})
