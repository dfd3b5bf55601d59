// refused before the database is asked
import { request as httpRequest } from 'node:http'
import type { AddressInfo } from 'node:net'
import { text } from 'node:stream/consumers'
import { isDeepStrictEqual } from 'node:util'
import type { FastifyInstance } from 'fastify'
import t, { type Test } from 'tap'
import { buildGateway, getBalance, postDeduct } from '../helper/app.js'

type Body = string | Buffer
type Headers = Record<string, string>

/** A refused request: its title, its body or query, and the field that the message of the 400 names. */
type Row = [title: string, sent: string, named: RegExp]

const VALIDATION = 'FST_ERR_VALIDATION'
const INVALID_JSON = 'FST_ERR_CTP_INVALID_JSON_BODY'

const lone = '\\ud800' // a lone surrogate in JSON
const nested = (depth: number, open: string, close: string, inner = '') => open.repeat(depth) + inner + close.repeat(depth)

/** The raw JSON of a deduct. `parts` are raw JSON too, because JSON.stringify would mend most of what is tested here. */
function deductJson (parts: Record<string, string> = {}): string {
  const fields = { credits: '1', operation: '"chat"', ...parts }
  return `{${Object.entries(fields).map(([name, value]) => `"${name}":${value}`).join(',')}}`
}

/** Returns metadata of exactly so many bytes, filled with the character that `fill` is in raw JSON. */
function metadataOf (bytes: number, fill: string): string {
  const size = Buffer.byteLength(fill)
  const room = bytes - '{"a":""}'.length
  return `{"a":"${fill.repeat(Math.floor(room / size))}${'x'.repeat(room % size)}"}`
}

async function post (app: FastifyInstance, payload: Body, headers: Headers = {}) {
  return await app.inject({
    method: 'POST', url: '/api/credits/deduct', headers: { 'content-type': 'application/json', ...headers }, payload
  })
}

async function get (app: FastifyInstance, query: string) {
  return await app.inject(`/api/credits?${query}`)
}

/** Asserts that nothing was charged, and that no account was created. Deletes what is there, for the next check. */
async function untouched (t: Test, app: FastifyInstance, title: string) {
  const { rows } = await app.pg.query(`with usage as (delete from ai_credit_usage returning user_id),
    daily as (delete from ai_credit_daily_usage returning user_id),
    account as (delete from ai_credits returning user_id)
    select user_id from usage union all select user_id from daily union all select user_id from account`)
  t.strictSame(rows, [], `${title}: nothing is charged or created`)
}

type Reply = Awaited<ReturnType<typeof get>>

/** Asserts that the reply is an error in Fastify's shape and nothing else, and that the ledger is unchanged. */
async function refused (
  t: Test, app: FastifyInstance, title: string, reply: Reply, [status, code, named]: [number, string, RegExp]
) {
  const { message, error, ...rest } = reply.json()
  t.strictSame([reply.statusCode, rest], [status, { statusCode: status, code }], title)
  t.match(message, named, `${title}: the message names it`)
  t.type(error, 'string')
  await untouched(t, app, title)
}

async function refusedBodies (t: Test, rows: Row[], code = VALIDATION) {
  const app = await buildGateway(t)
  for (const [title, body, named] of rows) await refused(t, app, title, await post(app, body), [400, code, named])
}

async function refusedQueries (t: Test, rows: Row[]) {
  const app = await buildGateway(t)
  for (const [title, query, named] of rows) {
    await refused(t, app, title, await get(app, query), [400, VALIDATION, named])
  }
}

t.test('credits that are no whole number from 1 to 2^53 - 1 are refused', async t => {
  const values = [
    'true', 'false', 'null', '"100"', '"1e2"', '""', '[4]', '[]', '{}', '1.5', '0.1', '0', '-0', '-1', '-1.5',
    '1e400', '-1e400',
    '9007199254740992', '9007199254740993', '1e16', '1e308', '5e-324'
  ]
  await refusedBodies(t, [
    ...values.map((value): Row => [`credits ${value}`, deductJson({ credits: value }), /^body\/credits must be a whole number/]),
    ['no credits', '{"operation":"chat"}', /^body\/credits is required/]
  ])
})

t.test('credits that JSON reads as whole numbers are accepted, however they are written', async t => {
  const app = await buildGateway(t, { allowance: Number.MAX_SAFE_INTEGER })
  for (const [value, used] of [['1e2', 100], ['100.0', 100], ['1.5e1', 15], ['10E+1', 100], ['1', 1]] as const) {
    const reply = await post(app, deductJson({ user_id: JSON.stringify(value), credits: value }))
    t.equal(reply.json().credits.used, used, value)
  }
  const largest = await post(app, deductJson({ credits: '9007199254740991' }))
  t.strictSame(largest.json().credits, { available: 0, total: 9007199254740991, used: 9007199254740991 })
})

// For both user_id and operation.
const badTexts: Array<[title: string, json: string]> = [
  ['empty', '""'],
  ['null', 'null'],
  ['a number', '5'],
  ['a boolean', 'true'],
  ['an array', '["ann"]'],
  ['an object', '{"toString":"ann"}'],
  ['256 characters', `"${'x'.repeat(256)}"`],
  ['256 code points, all astral', `"${'😀'.repeat(256)}"`],
  ['256 code points, one astral', `"${'x'.repeat(255)}😀"`],
  ['a NUL', '"\\u0000"'],
  ['a NUL inside', '"an\\u0000n"'],
  ['a lone high surrogate', `"${lone}"`],
  ['a lone low surrogate', '"ann\\udfff"'],
  ['surrogates in the wrong order', '"\\ude00\\ud83d"']
]

for (const name of ['user_id', 'operation']) {
  const named = new RegExp(`^body/${name} must be a string of 1 to 255 characters`)

  t.test(`a malformed ${name} is refused`, async t => {
    await refusedBodies(t, badTexts.map(([title, json]): Row => [title, deductJson({ [name]: json }), named]))
  })
}

t.test('no operation is refused', async t => {
  await refusedBodies(t, [['none', '{"credits":1}', /^body\/operation is required/]])
})

t.test('user_id and operation may be any text of 255 code points', async t => {
  const app = await buildGateway(t)
  const texts = ['x'.repeat(255), '😀'.repeat(255), `${'x'.repeat(254)}😀`, ' ', '\u0001', '\u2028', '\ufffd', '\uffff',
    '0', 'null',
    '__proto__', 'constructor', 'prototype', 'toString', 'hasOwnProperty', '%', '%00', "'; drop table ai_credits; --",
    'é', 'e\u0301']
  for (const [index, word] of texts.entries()) {
    const reply = await postDeduct(app, { user_id: word, credits: 3, operation: word })
    t.equal(reply.statusCode, 200, `text ${index} is accepted`)
    t.strictSame(await getBalance(app, word), { available: 9997, total: 10000, used: 3 }, 'it is its own account')
    t.strictSame((await app.credits.history(word)).entries.map(entry => entry.operation), [word])
  }
  t.equal((await app.pg.query('select user_id from ai_credits')).rows.length, texts.length)
})

t.test('a malformed user_id in the query is refused', async t => {
  const named = /^querystring\/user_id must be a string of 1 to 255 characters/
  await refusedQueries(t, [
    ['empty', 'user_id=', named],
    ['without =', 'user_id', named],
    ['256 characters', `user_id=${'x'.repeat(256)}`, named],
    ['256 emojis', `user_id=${encodeURIComponent('😀'.repeat(256))}`, named],
    ['a NUL', 'user_id=%00', named],
    ['twice', 'user_id=a&user_id=b', named],
    ['twice the same', 'user_id=a&user_id=a', named],
    ['twice, once empty', 'user_id=a&user_id=', named],
    ['twice, once in other writing', 'user_id=a&user%5Fid=b', named]
  ])
})

t.test('an unknown query parameter is refused', async t => {
  const names = [
    'userid', 'User_id', 'USER_ID', 'user_id[]', 'user_id[0]', 'user-id', 'user_id ', '__proto__', 'constructor',
    'toString', 'limit', 'days'
  ]
  await refusedQueries(t, [
    ...names.map((name): Row => [name, `${encodeURIComponent(name)}=ann`, /^querystring\/\S.* is not a known field/]),
    ['besides a known one', 'user_id=ann&days=3', /^querystring\/days is not a known field/],
    ['nameless', '=ann', /^querystring is not a known field/]
  ])
})

t.test('a query that is no percent-encoded UTF-8 is refused', async t => {
  const queries = [
    'user_id=%', 'user_id=%4', 'user_id=%zz', 'user_id=%FF', 'user_id=%C3', 'user_id=%C0%80', 'user_id=%ED%A0%80',
    'user_id=a%E0%A4%A',
    '%FF=ann', 'user_id=ann&%', 'user_id=ann?%FF'
  ]
  await refusedQueries(t, queries.map((query): Row => [query, query, /^querystring must be percent-encoded UTF-8/]))
})

t.test('raw bytes in a query are not taken for Latin-1', async t => {
  const app = await buildGateway(t)
  const path = Buffer.from('/api/credits?user_id=josé').toString('latin1')
  t.equal((await overNetwork(app, { path })).statusCode, 400)
  await untouched(t, app, 'raw bytes')
})

t.test('a query means what it says, character for character', async t => {
  const app = await buildGateway(t)
  const rows = [
    ['user_id=a?b', 'a?b'], ['user_id=a=b', 'a=b'], ['user_id=a+b', 'a b'], ['user_id=a%2Bb', 'a+b'],
    ['user_id=a%26b', 'a&b'], ['user_id=5', '5'],
    ['user_id=true', 'true'], ['user%5Fid=ann', 'ann'], ['&user_id=bob&', 'bob'], ['', 'default_user'],
    ['user_id=%F0%9F%98%80', '😀']
  ] as const
  for (const [query, userId] of rows) {
    t.equal((await get(app, query)).statusCode, 200, query)
    const { rows } = await app.pg.query('delete from ai_credits returning user_id')
    t.strictSame(rows, [{ user_id: userId }], `${query} is ${userId}`)
  }
})

t.test('the next page is the same account\'s, whatever its name', async t => {
  const app = await buildGateway(t, { historyLimit: 1 })
  for (const userId of ['a?b', 'a&b', 'a+b', 'a#b', 'a b', '😀']) {
    for (const operation of ['chat', 'image']) await app.credits.deduct({ userId, credits: 1, operation })
    const first = await app.inject({ url: '/api/credits', query: { user_id: userId } })
    const [, link] = /^<(.*)>; rel="next"$/.exec(String(first.headers.link))!
    const second = (await app.inject(link!)).json().credits
    t.match(second, { used: 2, usage_history: [{ operation: 'image' }] }, userId)
    // Encodes fewer characters than `inject` does: the link must be equal.
    const raw = await app.inject(`/api/credits?user_id=${userId.replace(/[&+#]/g, encodeURIComponent)}`)
    t.equal(raw.headers.link, first.headers.link, `${userId}, written otherwise`)
  }
})

t.test('a forged cursor is refused', async t => {
  const forged = [
    '', 'x', '!!!', 'null', Buffer.from('[]').toString('base64url'), Buffer.from('null').toString('base64url')
  ]
  await refusedQueries(t, [
    ...forged.map((cursor): Row =>
      [`cursor '${cursor}'`, `cursor=${cursor}`, /^querystring\/cursor must be the cursor of an earlier page/]),
    ['twice', 'cursor=a&cursor=b', /^querystring\/cursor/]
  ])
})

t.test('an unknown field of the body is refused: a misspelt user_id never charges the default user', async t => {
  const names = [
    'userid', 'userId', 'user-id', 'User_id', 'user_id ', 'user', '', 'amount', 'idempotency_key', 'client',
    'toString', 'constructor', 'hasOwnProperty',
    'us\\u0435r_id', '\\u0000', lone, 'a/b~c'
  ]
  await refusedBodies(t, names.map((name): Row =>
    [`field '${name}'`, deductJson({ [name]: '"ann"' }), /^body.* is not a known field/s]))
})

t.test('a deduct takes no query: an account named there is not the one charged', async t => {
  const app = await buildGateway(t)
  for (const query of ['user_id=ann', 'userId=ann', 'cursor=x', 'x']) {
    const reply = await app.inject({
      method: 'POST', url: `/api/credits/deduct?${query}`, body: { credits: 1, operation: 'chat' }
    })
    await refused(t, app, query, reply, [400, VALIDATION, /^querystring\/\w+ is not a known field/])
  }
})

t.test('without a default user a request must name its account', async t => {
  const app = await buildGateway(t, { defaultUser: null })
  await refused(t, app, 'deduct', await post(app, deductJson()), [400, VALIDATION, /^body\/user_id is required/])
  await refused(t, app, 'read', await get(app, ''), [400, VALIDATION, /^querystring\/user_id is required/])
})

t.test('metadata that is no object is refused', async t => {
  const values = ['null', 'true', '5', '"text"', '[]', '[{"a":1}]']
  await refusedBodies(t, values.map((value): Row =>
    [value, deductJson({ metadata: value }), /^body\/metadata must be an object/]))
})

t.test('metadata that PostgreSQL or JSON cannot hold is refused, at any depth', async t => {
  const values = [
    '{"a":"\\u0000"}', '{"\\u0000":1}', `{"a":"${lone}"}`, `{"${lone}":1}`, '{"a":{"b":["x","\\udfff"]}}',
    '{"a":[{"b\\u0000":1}]}',
    `{"a":[[[{"b":{"${lone}":1}}]]]}`, '{"a":1e400}', '{"a":-1e400}', '{"a":[[1e309]]}', '{"a":{"b":1e999}}'
  ]
  await refusedBodies(t, values.map((value): Row =>
    [value, deductJson({ metadata: value }), /^body\/metadata must be an object/]))
})

t.test('metadata over 8 KiB of UTF-8 is refused, and of 8 KiB is not', async t => {
  const app = await buildGateway(t)
  for (const fill of ['x', 'é', '€', '😀']) {
    const over = await post(app, deductJson({ metadata: metadataOf(8193, fill) }))
    const named = /^body\/metadata must be an object of at most 8192 bytes/
    await refused(t, app, `8193 bytes of ${fill}`, over, [400, VALIDATION, named])
    const metadata = metadataOf(8192, fill)
    t.equal(Buffer.byteLength(metadata), 8192)
    const user = JSON.stringify(fill)
    t.equal((await post(app, deductJson({ user_id: user, metadata }))).statusCode, 200, `8192 bytes of ${fill}`)
    t.strictSame((await app.credits.history(fill)).entries[0]?.metadata, JSON.parse(metadata), 'and it comes back whole')
    await app.pg.query('truncate ai_credits, ai_credit_usage, ai_credit_daily_usage')
  }
  // The content counts, not the whitespace or the escapes of the request.
  const spaced = deductJson({ metadata: `{ "a" :${' '.repeat(9000)}"${'\\u0061'.repeat(8184)}" }` })
  t.equal((await post(app, spaced)).statusCode, 200)
})

t.test('keys that reach a prototype are refused, at any depth', async t => {
  const rows = [
    '{"__proto__":1}', '{"__proto__":null}', '{"__proto__":{"user_id":"ann"}}', '{"a":[{"b":{"__proto__":{}}}]}',
    '{"\\u005f_proto__":1}',
    '{"\\u005F\\u005Fproto\\u005f\\u005f" :1}', '{"constructor":{"prototype":{}}}',
    '{"a":[{"constructor":{"prototype":null}}]}',
    '{"c\\u006fnstructor":{"prototype":1}}', `{"a":${nested(1000, '[', ']', '{"__proto__":1}')}}`
  ]
  const named = /Body is not valid JSON|forbidden prototype property/
  await refusedBodies(t, [
    ...rows.map((metadata): Row => [metadata.slice(0, 50), deductJson({ metadata }), named]),
    ['in the body itself', deductJson({ ['__proto__']: '{"user_id":"ann"}' }), named],
    ['instead of the body', '{"__proto__":{"credits":1,"operation":"chat"}}', named],
    ['constructor in the body', deductJson({ constructor: '{"prototype":{}}' }), named]
  ], INVALID_JSON)
})

t.test('metadata keys that merely look dangerous are data', async t => {
  const app = await buildGateway(t)
  const metadata = {
    constructor: 'x',
    prototype: { a: 1 },
    toString: 'y',
    hasOwnProperty: null,
    valueOf: [],
    toJSON: {},
    then: true,
    length: -1,
    '': 0,
    ' ': {},
    '\ufffd': [],
    __proto: '',
    nested: { constructor: { name: 1 }, toString: 2 },
    list: [{ constructor: null }, { constructor: [] }],
    text: '"__proto__":1'
  }
  t.equal((await postDeduct(app, { credits: 1, operation: 'chat', metadata })).statusCode, 200)
  const [entry] = (await get(app, '')).json().credits.usage_history
  const { date, used, operation, ...shown } = entry
  // tap's own comparison looks at `constructor`.
  t.ok(isDeepStrictEqual(shown, metadata), JSON.stringify(shown))
  t.ok(isDeepStrictEqual((await app.credits.history()).entries[0]?.metadata, metadata))
})

t.test('metadata never overwrites date, used and operation of an entry', async t => {
  const app = await buildGateway(t)
  await postDeduct(app, { credits: 7, operation: 'chat', metadata: { date: 'x', used: 'y', operation: 'z', quality: 'hd' } })
  const [entry] = (await get(app, '')).json().credits.usage_history
  t.match(entry, { date: /^\d{4}-\d{2}-\d{2}$/, used: 7, operation: 'chat', quality: 'hd' })
})

t.test('numbers in metadata come back as they came', async t => {
  const app = await buildGateway(t)
  const metadata = { a: 1e308, b: 5e-324, c: 0.1, d: 2 ** 53, e: -1.7976931348623157e308, f: 1e21 }
  await postDeduct(app, { credits: 1, operation: 'chat', metadata })
  const [entry] = (await get(app, '')).json().credits.usage_history
  t.match(entry, metadata)
})

t.test('metadata nested 2048 levels deep, or as deep as 8 KiB of objects allow, is stored and shown', async t => {
  const app = await buildGateway(t)
  const rows = [
    ['arrays', `{"a":${nested(2047, '[', ']')}}`],
    ['objects', nested(1638, '{"":', '}', '1')],
    ['objects and arrays', `{"a":${nested(1022, '[{"a":', '}]', '1')}}`]
  ] as const
  for (const [title, metadata] of rows) {
    t.ok(Buffer.byteLength(metadata) <= 8192)
    t.equal((await post(app, deductJson({ user_id: `"${title}"`, metadata }))).statusCode, 200, `deduct with ${title}`)
    const reply = await get(app, `user_id=${encodeURIComponent(title)}`)
    t.equal(reply.statusCode, 200, `read of ${title}`)
    t.ok(reply.body.includes(metadata.slice(1, -1)), 'it is all there')
  }
})

// At greater depths the result of JSON.stringify depends on how full the call stack is.
t.test('metadata that nests deeper or lists more is refused, up to the largest body', async t => {
  const named = /^body\/metadata must be an object of at most 8192 bytes of JSON and 2048 levels/
  const rows = [
    `{"a":${nested(2048, '[', ']')}}`, `{"a":${nested(4093, '[', ']')}}`, `{"a":${nested(32_000, '[', ']')}}`,
    nested(10_000, '{"a":', '}', '1'),
    `{"a":[${'1,'.repeat(32_000)}1]}`, `{${'"a":1,'.repeat(5000)}"b":[${'[],'.repeat(9000)}1]}`
  ]
  await refusedBodies(t, rows.map((metadata, index): Row => [`metadata ${index}`, deductJson({ metadata }), named]))
})

t.test('a malformed Idempotency-Key is refused', async t => {
  const app = await buildGateway(t)
  for (const [title, key] of [['empty', ''], ['256 characters', 'k'.repeat(256)]] as const) {
    const reply = await post(app, deductJson(), { 'idempotency-key': key })
    await refused(t, app, title, reply, [400, VALIDATION, /^headers\/idempotency-key must be a string of 1 to 255 characters/])
  }
  const key = 'k'.repeat(255)
  t.equal((await post(app, deductJson(), { 'idempotency-key': key })).statusCode, 200)
  t.equal((await post(app, deductJson(), { 'IDEMPOTENCY-KEY': key })).headers['idempotency-replayed'], 'true')
  t.equal((await getBalance(app)).used, 1)
})

t.test('a key that was used for other content is a conflict, and charges nothing', async t => {
  const app = await buildGateway(t)
  const headers = { 'idempotency-key': 'k' }
  await post(app, deductJson(), headers)
  const others: Array<Record<string, string>> = [{ credits: '2' }, { operation: '"image"' }, { metadata: '{"a":1}' }]
  for (const other of others) {
    const reply = await post(app, deductJson(other), headers)
    t.equal(reply.statusCode, 409)
    const { message, ...rest } = reply.json()
    t.strictSame(rest, { statusCode: 409, code: 'FST_CREDITS_IDEMPOTENCY_CONFLICT', error: 'Conflict' })
  }
  t.equal((await getBalance(app)).used, 1)
})

t.test('a body that is no JSON object is refused', async t => {
  const named = /^body must be an object|^body\/credits is required/
  await refusedBodies(t, ['null', 'true', '5', '""', '"text"', '[]', '[{"credits":1,"operation":"chat"}]', '{}']
    .map((body): Row => [body, body, named]))
})

t.test('a body that is no JSON is refused', async t => {
  const bodies = [
    '{', deductJson().slice(0, -1), `${deductJson()}x`, '{credits:1}', "{'credits':1}", '{"credits":NaN}',
    '{"credits":0x10,"operation":"chat"}',
    '{"credits":+1}', '{"credits":01}', '{"credits":1,}', 'undefined', 'credits=1&operation=chat', ' ', '\ufeff',
    `\ufeff\ufeff${deductJson()}`,
    `${deductJson()}\u0000`, deductJson({ operation: '"a\u0000b"' }), deductJson({ operation: '"a\nb"' }),
    deductJson({ operation: '"\\x41"' })
  ]
  await refusedBodies(t, bodies.map((body): Row => [JSON.stringify(body), body, /JSON/]), INVALID_JSON)
})

t.test('a body that is not UTF-8 is refused: no two users become one', async t => {
  const app = await buildGateway(t)
  const json = deductJson({ user_id: '"§"' })
  const rows: Array<[string, Buffer]> = [
    ['a stray byte', Buffer.from(json, 'latin1')],
    ['a surrogate in UTF-8', bytesFor('§', [0xed, 0xa0, 0x80])],
    ['an overlong NUL', bytesFor('§', [0xc0, 0x80])],
    ['a character cut short', bytesFor('§', [0xf0, 0x9f, 0x98])],
    ['UTF-16', Buffer.from(`\ufeff${json}`, 'utf16le')]
  ]
  for (const [title, body] of rows) await refused(t, app, title, await post(app, body), [400, INVALID_JSON, /JSON/])

  function bytesFor (character: string, bytes: number[]) {
    return Buffer.from(json.replace(character, Buffer.from(bytes).toString('latin1')), 'latin1')
  }
})

t.test('a byte order mark before a body is skipped', async t => {
  const app = await buildGateway(t)
  t.equal((await post(app, `\ufeff${deductJson()}`)).statusCode, 200)
  t.equal((await getBalance(app)).used, 1)
})

t.test('no body is refused', async t => {
  const app = await buildGateway(t)
  const empty = await post(app, '')
  await refused(t, app, 'empty JSON', empty, [400, 'FST_ERR_CTP_EMPTY_JSON_BODY', /Body cannot be empty/])
  const none = await app.inject({ method: 'POST', url: '/api/credits/deduct' })
  await refused(t, app, 'none', none, [400, VALIDATION, /^body must be an object/])
  const chunked = await overNetwork(app, {
    method: 'POST',
    path: '/api/credits/deduct',
    headers: { 'content-type': 'application/json', 'transfer-encoding': 'chunked' }
  })
  t.match([chunked.statusCode, JSON.parse(chunked.body).code], [400, 'FST_ERR_CTP_EMPTY_JSON_BODY'])
  await untouched(t, app, 'no body')
})

t.test('a body of another type than JSON is refused', async t => {
  const app = await buildGateway(t)
  const types = [
    'text/plain', 'application/x-www-form-urlencoded', 'multipart/form-data; boundary=x', 'application/xml',
    'application/jsonx', 'application/json5',
    'application/vnd.api+json', 'text/json', 'nonsense', '*/*', 'application/*', ',application/json', ''
  ]
  for (const type of types) {
    const reply = await post(app, deductJson(), { 'content-type': type })
    await refused(t, app, `type '${type}'`, reply, [415, 'FST_ERR_CTP_INVALID_MEDIA_TYPE', /Unsupported Media Type/])
  }
  const { statusCode, body } = await overNetwork(app, { method: 'POST', path: '/api/credits/deduct' }, deductJson())
  t.match([statusCode, JSON.parse(body).code], [415, 'FST_ERR_CTP_INVALID_MEDIA_TYPE'], 'no type at all')
  await untouched(t, app, 'no type')
})

t.test('JSON is JSON in any case and with any parameter, and always UTF-8', async t => {
  const app = await buildGateway(t)
  const types = [
    'APPLICATION/JSON', 'application/json;charset=utf-8', 'application/json; charset="UTF-8"',
    'application/json; charset=latin1', 'application/json; a=b'
  ]
  for (const type of types) {
    const reply = await post(app, deductJson({ user_id: '"josé"' }), { 'content-type': type })
    t.equal(reply.statusCode, 200, type)
  }
  t.equal((await getBalance(app, 'josé')).used, types.length)
})

t.test('a body over 64 KiB is refused, and of 64 KiB is not', async t => {
  const app = await buildGateway(t)
  const padded = (bytes: number) => deductJson().padEnd(bytes)
  const over = await post(app, padded(65_537))
  await refused(t, app, '64 KiB and a byte', over, [413, 'FST_ERR_CTP_BODY_TOO_LARGE', /too large/])
  const chunked = await overNetwork(app, {
    method: 'POST',
    path: '/api/credits/deduct',
    headers: { 'content-type': 'application/json', 'transfer-encoding': 'chunked' }
  }, padded(65_537))
  t.match([chunked.statusCode, JSON.parse(chunked.body).code], [413, 'FST_ERR_CTP_BODY_TOO_LARGE'], 'of unknown length')
  await untouched(t, app, 'of unknown length')
  t.equal((await post(app, padded(65_536))).statusCode, 200)
})

t.test('more than the balance is refused with 402, and leaves no record', async t => {
  const app = await buildGateway(t, { allowance: 5 })
  const reply = await post(app, deductJson({ credits: '9007199254740991' }))
  const { message, ...rest } = reply.json()
  t.strictSame(rest, {
    statusCode: 402,
    code: 'FST_CREDITS_INSUFFICIENT',
    error: 'Payment Required',
    credits: { available: 5, total: 5, used: 0 },
    required: 9007199254740991
  })
  t.equal((await app.pg.query('select from ai_credit_usage')).rows.length, 0)
})

t.test('other methods and paths charge nothing', async t => {
  const app = await buildGateway(t)
  const payload = deductJson()
  const headers = { 'content-type': 'application/json', 'content-length': String(payload.length) }
  const rows = [
    ['PUT', '/api/credits/deduct'], ['PATCH', '/api/credits/deduct'], ['DELETE', '/api/credits/deduct'],
    ['GET', '/api/credits/deduct'], ['GET', '/api/credits/check'], ['PUT', '/api/credits/check'],
    ['HEAD', '/api/credits/deduct'], ['OPTIONS', '/api/credits/deduct'], ['POST', '/api/credits'],
    ['POST', '/api/credits/deduct/'],
    ['POST', '//api/credits/deduct'], ['POST', '/api//credits/deduct'], ['POST', '/API/credits/deduct'],
    ['POST', '/api/credits%2Fdeduct'],
    ['POST', '/credits/deduct'], ['GET', '/api/credits/'], ['GET', '//api/credits'], ['GET', '/api/credits/ann'],
    ['GET', '/api/credits&user_id=ann'],
    ['GET', '/api/credits%3Fuser_id=ann'], ['GET', '/api/credits;user_id=ann']
  ] as const
  for (const [method, path] of rows) {
    const { statusCode } = await overNetwork(app, { method, path, headers }, payload)
    t.equal(statusCode, 404, `${method} ${path}`)
    await untouched(t, app, `${method} ${path}`)
  }
  const { statusCode } = await overNetwork(app, { path: '/api/credits%' })
  t.equal(statusCode, 400, 'a malformed path')
})

t.test('HEAD answers what GET would, without the body', async t => {
  const app = await buildGateway(t)
  const head = await app.inject({ method: 'HEAD', url: '/api/credits?user_id=ann' })
  const got = await get(app, 'user_id=ann')
  t.equal(head.statusCode, 200)
  t.equal(head.body, '')
  t.equal(head.headers['content-length'], got.headers['content-length'])
  t.equal((await app.inject({ method: 'HEAD', url: '/api/credits?userid=ann' })).statusCode, 400)
})

t.test('a query after a fragment sign is read like any other', async t => {
  const app = await buildGateway(t)
  t.equal((await overNetwork(app, { path: '/api/credits#user_id=%FF' })).statusCode, 400)
  t.equal((await overNetwork(app, { path: '/api/credits#userid=ann' })).statusCode, 400)
  await untouched(t, app, 'fragment')
})

interface NetworkRequest { method?: string, path: string, headers?: Headers }

/** Sends requests that `inject` would correct: unusual paths, missing headers, chunks. */
async function overNetwork (app: FastifyInstance, options: NetworkRequest, payload = '') {
  if (!app.server.listening) await app.listen({ port: 0, host: '127.0.0.1' })
  const { port } = app.server.address() as AddressInfo
  return await new Promise<{ statusCode: number | undefined, body: string }>((resolve, reject) => {
    const request = httpRequest({ host: '127.0.0.1', port, agent: false, ...options }, response => {
      text(response).then(body => resolve({ statusCode: response.statusCode, body }), reject)
    })
    request.on('error', reject)
    request.end(payload)
  })
}
