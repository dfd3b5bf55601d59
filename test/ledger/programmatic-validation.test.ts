// refused before the database is asked
import type { FastifyInstance } from 'fastify'
import t, { type Test } from 'tap'
import { buildGateway } from '../helper/app.js'
import type { Credits } from '../../src/index.js'

/** A refused call: its title, its arguments, and the field that the error names. */
type Row = [title: string, args: unknown[], field: string]

const charge = { credits: 1, operation: 'chat' }
const lone = '\ud800'

/** Nests a value in a loop, because recursion to these depths overflows the call stack. */
function nest (depth: number, wrap: (inner: unknown) => unknown, inner: unknown = {}): unknown {
  for (let level = 0; level < depth; level++) inner = wrap(inner)
  return inner
}

/** Asserts that nothing was charged, and that no account was created. Deletes what is there, for the next check. */
async function untouched (t: Test, app: FastifyInstance, title: string) {
  const { rows } = await app.pg.query(`with usage as (delete from ai_credit_usage returning user_id),
    daily as (delete from ai_credit_daily_usage returning user_id),
    account as (delete from ai_credits returning user_id)
    select user_id from usage union all select user_id from daily union all select user_id from account`)
  t.strictSame(rows, [], `${title}: nothing is charged or created`)
}

async function refused (t: Test, method: keyof Credits, rows: Row[]) {
  const app = await buildGateway(t)
  const call = app.credits[method] as (...args: unknown[]) => Promise<unknown>
  for (const [title, args, field] of rows) {
    const { code, statusCode, field: named, message } = await call(...args).then(() => ({}), error => error)
    t.match({ code, statusCode, field: named, message },
      { code: 'FST_CREDITS_INVALID', statusCode: 400, field, message: new RegExp(`^${field} (must|is) `) }, title)
    await untouched(t, app, title)
  }
}

const deductRows = (field: string, values: Array<[string, unknown]>): Row[] =>
  values.map(([title, value]) => [`${field}: ${title}`, [{ ...charge, [field]: value }], field])

class Charge {
  credits = 1
  operation = 'chat'
}

// Values that are no strings, for fields that must be.
const notStrings: Array<[string, unknown]> = [
  ['null', null], ['a number', 5], ['NaN', NaN], ['a boolean', true], ['a BigInt', 5n], ['a symbol', Symbol('ann')],
  ['a function', () => 'ann'],
  ['an array', ['ann']], ['an object', { toString: () => 'ann' }], ['a String object', Object('ann')],
  ['a Date', new Date()], ['a Buffer', Buffer.from('ann')]
]

const badTexts: Array<[string, unknown]> = [
  ...notStrings,
  ['empty', ''], ['256 characters', 'x'.repeat(256)], ['256 code points, all astral', '😀'.repeat(256)],
  ['a NUL', 'an\0n'], ['a lone high surrogate', lone],
  ['a lone low surrogate', 'ann\udfff'], ['a huge string', 'x'.repeat(10_000_000)]
]

t.test('deduct refuses what is no object with its fields', async t => {
  const values: Array<[string, unknown[], string]> = [
    ['no argument', [], 'input'], ['undefined', [undefined], 'input'], ['null', [null], 'input'],
    ['a string', ['ann'], 'input'], ['a number', [100], 'input'],
    ['a BigInt', [1n], 'input'], ['a symbol', [Symbol('x')], 'input'], ['a function', [() => charge], 'input'],
    ['an array', [[charge]], 'input'], ['a Map', [new Map(Object.entries(charge))], 'operation'],
    ['an empty object', [{}], 'operation'],
    ['a promise', [Promise.resolve(charge)], 'operation'], ['no credits', [{ operation: 'chat' }], 'credits'], ['no operation', [{ credits: 1 }], 'operation'],
    ['a user id first', ['ann', charge], 'input']
  ]
  await refused(t, 'deduct', values)
})

t.test('deduct refuses unknown fields: a misspelt userId never charges the default user', async t => {
  const names = [
    'user_id', 'userid', 'UserId', 'userId ', 'amount', 'idempotency_key', 'idempotencykey', 'held', 'toString',
    'constructor', '__proto__'
  ]
  await refused(t, 'deduct', [
    ...names.map((name): Row => [name, [Object.fromEntries([...Object.entries(charge), [name, 'ann']])], name]),
    ['one that is undefined', [{ ...charge, user_id: undefined }], 'user_id']
  ])
})

t.test('deduct refuses credits that are no whole number from 1 to 2^53 - 1', async t => {
  await refused(t, 'deduct', deductRows('credits', [
    ['undefined', undefined], ['null', null], ['NaN', NaN], ['Infinity', Infinity], ['-Infinity', -Infinity],
    ['0', 0], ['-0', -0], ['-1', -1], ['1.5', 1.5],
    ['2^53', 2 ** 53], ['2^63', 2 ** 63], ['MIN_VALUE', Number.MIN_VALUE], ['MAX_VALUE', Number.MAX_VALUE],
    ['a BigInt', 1n], ['a string', '1'], ['true', true],
    ['an array', [4]], ['an object', { valueOf: () => 4 }], ['a Number object', Object(4)], ['a Date', new Date()],
    ['a symbol', Symbol('x')], ['a function', () => 1]
  ]))
})

t.test('deduct refuses a malformed userId, operation and idempotencyKey', async t => {
  await refused(t, 'deduct', [
    ...deductRows('userId', badTexts), ...deductRows('operation', [...badTexts, ['undefined', undefined]]),
    ...deductRows('idempotencyKey', badTexts)
  ])
})

t.test('deduct refuses a client without query', async t => {
  await refused(t, 'deduct', deductRows('client', [
    ['null', null], ['an object', {}], ['a string', 'client'], ['query that is no function', { query: 'select' }],
    ['true', true], ['0', 0]
  ]))
})

const circular: Record<string, unknown> = {}
circular.self = circular
const circularList: unknown[] = []
for (let index = 0; index < 5000; index++) circularList.push(circularList)
// eslint-disable-next-line no-sparse-arrays
const sparse = [1, , 3]

t.test('deduct refuses metadata that JSON would drop, change or not hold', async t => {
  const roots: Array<[string, unknown]> = [
    ['null', null], ['a string', 'text'], ['a number', 5], ['true', true], ['an array', []],
    ['a Map', new Map([['a', 1]])], ['a Set', new Set([1])],
    ['a Date', new Date()], ['a RegExp', /x/], ['an Error', new Error('x')], ['a Buffer', Buffer.from('x')],
    ['a URL', new URL('https://example.com')],
    ['a class instance', new Charge()], ['an object that inherits', Object.create({ a: 1 })],
    ['a function', () => ({})], ['a symbol', Symbol('x')], ['a BigInt', 1n],
    ['a Promise', Promise.resolve({})], ['toJSON', { toJSON: () => ({}) }]
  ]
  const values: Array<[string, unknown]> = [
    ['NaN', NaN], ['Infinity', Infinity], ['a BigInt', 1n], ['a symbol', Symbol('x')], ['a function', () => 1],
    ['a Map', new Map()], ['a Set', new Set()],
    ['a class instance', new Charge()], ['a String object', Object('x')], ['a RegExp', /x/],
    ['an Error', new Error('x')], ['a typed array', new Uint8Array(2)],
    ['a NUL', 'a\0'], ['a lone surrogate', lone], ['undefined in an array', [undefined]], ['a sparse array', sparse],
    ['a huge sparse array', new Array(2 ** 32 - 1)],
    ['a circular object', circular], ['a circular array', circularList], ['a long array', new Array(500_000).fill(1)],
    ['an object of many keys', Object.fromEntries(Array.from({ length: 200_000 }, (_, index) => [index, 1]))],
    ['a toJSON that answers NaN', { toJSON: () => NaN }],
    ['a toJSON that answers what has another', { toJSON: () => new Date() }],
    ['a key with NUL', { 'a\0': 1 }], ['a key with a lone surrogate', { [lone]: 1 }],
    ['a key __proto__', { ['__proto__']: 1 }],
    ['constructor that holds prototype', { constructor: { prototype: 1 } }],
    ['deep arrays', nest(100_000, inner => [inner])],
    ['deep objects', nest(100_000, inner => ({ a: inner }))]
  ]
  const nestings: Array<[string, (value: unknown) => unknown]> = [
    ['as a value', value => ({ a: value })],
    ['in an array', value => ({ a: [value] })],
    ['deeper', value => ({ a: [{ b: [[value]] }] })]
  ]
  await refused(t, 'deduct', deductRows('metadata', [
    ...roots,
    ...nestings.flatMap(([where, wrap]) =>
      values.map(([title, value]): [string, unknown] => [`${title}, ${where}`, wrap(value)])),
    ['a key __proto__ of its own', JSON.parse('{"__proto__":{"a":1}}')],
    ['8193 bytes', { a: 'x'.repeat(8185) }], ['8193 bytes in UTF-8', { a: `${'é'.repeat(4092)}x` }]
  ]))
})

/** Returns the stored form of accepted metadata. */
async function stored (app: FastifyInstance, metadata: Record<string, unknown>) {
  await app.credits.deduct({ ...charge, metadata })
  const { rows } = await app.pg.query(
    'with gone as (delete from ai_credit_daily_usage) delete from ai_credit_usage returning metadata')
  return rows[0].metadata
}

t.test('metadata is stored as JSON.stringify would write it', async t => {
  const app = await buildGateway(t)
  const date = new Date(0)
  const iso = '1970-01-01T00:00:00.000Z'
  const rows: Array<[string, Record<string, unknown>, object]> = [
    ['a Date is its ISO string', { at: date }, { at: iso }],
    ['also in an array', { at: [date, { then: date }] }, { at: [iso, { then: iso }] }],
    ['an invalid Date is null', { at: new Date(NaN) }, { at: null }],
    ['a Buffer is what its toJSON says', { data: Buffer.from('a') }, { data: { type: 'Buffer', data: [97] } }],
    ['undefined is absent', { a: undefined, b: { c: undefined, d: 1 } }, { b: { d: 1 } }],
    ['a getter is read', { get a () { return 5 } }, { a: 5 }],
    ['an object without prototype is one', Object.assign(Object.create(null), { a: 1 }), { a: 1 }],
    ['-0 is 0', { a: -0 }, { a: 0 }],
    ['the same object twice is there twice', { a: sparse.slice(0, 1), b: sparse.slice(0, 1) }, { a: [1], b: [1] }],
    ['symbol keys are no JSON', { [Symbol('a')]: 1, b: 2 }, { b: 2 }],
    ['a frozen object is fine', Object.freeze({ a: Object.freeze([1]) }), { a: [1] }],
    ['8 KiB are fine', { a: 'x'.repeat(8184) }, { a: 'x'.repeat(8184) }],
    ['8 KiB in UTF-8 are fine', { a: 'é'.repeat(4092) }, { a: 'é'.repeat(4092) }]
  ]
  for (const [title, metadata, expected] of rows) t.strictSame(await stored(app, metadata), expected, title)
})

t.test('metadata may nest 2048 levels deep, also far down a call stack, and no deeper', async t => {
  const app = await buildGateway(t)
  const deep = { a: nest(2046, inner => [inner], []) }
  t.equal(JSON.stringify(await stored(app, deep)), JSON.stringify(deep))
  t.equal((await farDown(2000, () => app.credits.deduct({ ...charge, metadata: deep }))).credits, 1)
  await t.rejects(app.credits.deduct({ ...charge, metadata: { a: [deep] } }), { code: 'FST_CREDITS_INVALID', field: 'metadata' })

  function farDown<T> (frames: number, call: () => T): T {
    return frames === 0 ? call() : farDown(frames - 1, call)
  }
})

t.test('a key that merely looks dangerous is data', async t => {
  const app = await buildGateway(t)
  const metadata = {
    constructor: 'x', toString: 'y', prototype: {}, hasOwnProperty: 1, then: true, nested: { constructor: { name: 'z' } }
  }
  t.equal(JSON.stringify(Object.entries(await stored(app, metadata)).sort()), JSON.stringify(Object.entries(metadata).sort()))
})

t.test('what throws while it is read is the caller\'s own error, and nothing is charged', async t => {
  const app = await buildGateway(t)
  const boom = new Error('boom')
  const throwing = { enumerable: true, get () { throw boom } }
  const rows: Array<[string, any]> = [
    ['a field', Object.defineProperty({ ...charge }, 'userId', throwing)],
    ['metadata', { ...charge, metadata: Object.defineProperty({}, 'a', throwing) }],
    ['toJSON', { ...charge, metadata: { a: { toJSON: throwing.get } } }]
  ]
  for (const [title, input] of rows) {
    await t.rejects(app.credits.deduct(input), boom, title)
    await untouched(t, app, title)
  }
})

t.test('an object of a class is read like any other: what it inherits counts', async t => {
  const app = await buildGateway(t)
  class Inherited {
    get userId () { return 'ann' }
    get credits () { return 2 }
    operation = 'chat'
  }
  t.match(await app.credits.deduct(new Inherited()), { userId: 'ann', credits: 2, balance: { used: 2 } })
  t.equal((await app.credits.deduct(Object.create(charge))).credits, 1)
  t.equal((await app.credits.deduct(Object.assign(Object.create(null), charge))).credits, 1)
})

t.test('what was checked is what is charged, though the caller\'s object changes', async t => {
  const app = await buildGateway(t)
  let reads = 0
  await app.credits.deduct({ get credits () { return reads++ === 0 ? 1 : 5000 }, operation: 'chat', userId: 'getter' })
  t.match((await app.credits.balance('getter')).used, 1)

  const input = { ...charge, userId: 'ann', metadata: { words: 1, list: [1] } as Record<string, unknown> }
  const deduction = app.credits.deduct(input)
  Object.assign(input.metadata, { words: 2, text: 'x'.repeat(100_000), list: lone })
  Object.assign(input, { userId: 'bob', credits: 5000 })
  t.match(await deduction, { userId: 'ann', credits: 1 })
  t.strictSame((await app.credits.history('ann')).entries[0]?.metadata, { words: 1, list: [1] })
})

t.test('fields that are undefined are left out', async t => {
  const app = await buildGateway(t)
  const deduction = await app.credits.deduct({
    ...charge, userId: undefined, metadata: undefined, idempotencyKey: undefined, client: undefined
  } as any)
  t.equal(deduction.userId, 'default_user')
  const page = await app.credits.history(undefined, { days: undefined, limit: undefined, cursor: undefined } as any)
  t.equal(page.entries.length, 1)
})

t.test('userId and operation may be any text of 255 code points', async t => {
  const app = await buildGateway(t)
  const texts = [
    'x'.repeat(255), '😀'.repeat(255), '\u0001', '__proto__', 'constructor', 'toString', 'hasOwnProperty'
  ]
  for (const [index, text] of texts.entries()) {
    const input = { userId: text, credits: 1, operation: text, idempotencyKey: text }
    const { userId, operation, balance } = await app.credits.deduct(input)
    t.strictSame([userId, operation, balance.used], [text, text, 1], `text ${index}`)
    t.equal((await app.credits.balance(text)).used, 1)
  }
})

t.test('balance refuses a malformed userId', async t => {
  await refused(t, 'balance', badTexts.map(([title, value]) => [title, [value], 'userId']))
})

t.test('history refuses a malformed userId', async t => {
  await refused(t, 'history', badTexts.map(([title, value]) => [title, [value], 'userId']))
})

t.test('without a default user every method needs a userId', async t => {
  const app = await buildGateway(t, { defaultUser: null })
  const { deduct, balance, history } = app.credits
  const refusal = { code: 'FST_CREDITS_INVALID', statusCode: 400, field: 'userId', message: 'userId is required' }
  await t.rejects(deduct(charge), refusal)
  await t.rejects(balance(), refusal)
  await t.rejects(history(), refusal)
  await t.rejects(history(undefined, { days: 1 }), refusal)
  await untouched(t, app, 'no userId')
})

const encode = (content: unknown) => Buffer.from(JSON.stringify(content)).toString('base64url')
const hash = 'a'.repeat(64)
const position = ['2024-12-03', 5, 'chat', hash]
const positionWith = (index: number, value: unknown) => encode(position.with(index, value as string))

const forgedCursors: Array<[string, unknown]> = [
  ...notStrings,
  ['empty', ''], ['no base64', '!!!'], ['no JSON', Buffer.from('{').toString('base64url')], ['null', encode(null)],
  ['an object', encode({ day: '2024-12-03' })],
  ['an empty list', encode([])], ['a string', encode('text')], ['too short', encode(position.slice(0, 3))],
  ['too long', encode([...position, 1])],
  ['plain base64', Buffer.from(JSON.stringify([...position.slice(0, 2), '>>>???', hash])).toString('base64')],
  ['padding', `${encode(position)}=`],
  ['whitespace', ` ${encode(position)}`],
  ['whitespace inside', Buffer.from(JSON.stringify(position, null, 1)).toString('base64url')],
  ['not UTF-8', Buffer.from(JSON.stringify(position).replace('chat', '\xff'), 'latin1').toString('base64url')],
  ['an impossible day', positionWith(0, '2024-02-30')], ['month 13', positionWith(0, '2024-13-01')],
  ['the year 0', positionWith(0, '0000-01-01')],
  ['a year of five digits', positionWith(0, '+12024-01-01')],
  ['a year before Christ', positionWith(0, '-000001-01-01')], ['a time', positionWith(0, '2024-12-03T00:00:00Z')],
  ['infinity', positionWith(0, 'infinity')], ['today', positionWith(0, 'today')],
  ['a day as number', positionWith(0, 20241203)], ['no day', positionWith(0, null)],
  ['a fraction', positionWith(1, 1.5)], ['2^53', positionWith(1, 2 ** 53)], ['1e308', positionWith(1, 1e308)],
  ['used as string', positionWith(1, '5')],
  ['used null', positionWith(1, null)],
  ['1e400', Buffer.from(`["2024-12-03",1e400,"chat","${hash}"]`).toString('base64url')],
  ['operation as number', positionWith(2, 5)], ['operation with NUL', positionWith(2, 'a\0')],
  ['operation with a lone surrogate', positionWith(2, lone)],
  ['a short hash', positionWith(3, 'ab')], ['a hash in capitals', positionWith(3, 'A'.repeat(64))],
  ['a hash of other letters', positionWith(3, 'z'.repeat(64))],
  ['a hash with a line break', positionWith(3, `${hash}\n`)], ['a hash as list', positionWith(3, [hash])],
  ['deep JSON', Buffer.from('['.repeat(5000) + ']'.repeat(5000)).toString('base64url')]
]

t.test('history refuses malformed days, limit and cursor', async t => {
  const numbers: Array<[string, unknown]> = [
    ['null', null], ['0', 0], ['-1', -1], ['1.5', 1.5], ['NaN', NaN], ['Infinity', Infinity], ['a string', '5'],
    ['true', true], ['a BigInt', 5n], ['an array', [5]],
    ['2^31', 2 ** 31], ['2^53', 2 ** 53], ['a Date', new Date()], ['a symbol', Symbol('x')]
  ]
  const field = (name: string, values: Array<[string, unknown]>): Row[] =>
    values.map(([title, value]) => [`${name}: ${title}`, ['ann', { [name]: value }], name])
  const inputs: Array<[string, unknown]> = [
    ['null', null], ['a number', 5], ['a string', 'x'], ['an array', [5]], ['a function', () => ({})]
  ]
  await refused(t, 'history', [
    ...field('days', [...numbers, ['36501', 36_501]]), ...field('limit', [...numbers, ['100001', 100_001]]),
    ...field('cursor', forgedCursors),
    ...inputs.map(([title, input]): Row => [title, ['ann', input], 'input']),
    ['an unknown field', ['ann', { userId: 'bob' }], 'userId'],
    ['the input in the place of the user', [{ days: 5 }], 'userId']
  ])
})

t.test('history takes the extremes of days and limit, and any well-formed cursor', async t => {
  const app = await buildGateway(t)
  await app.credits.deduct(charge)
  for (const input of [
    { days: 1 }, { days: 36_500 }, { limit: 1 }, { limit: 100_000 }, { cursor: positionWith(0, '9999-12-31') }
  ]) {
    t.equal((await app.credits.history(undefined, input)).entries.length, 1, JSON.stringify(input))
  }
  const extremes = [
    positionWith(0, '0001-01-01'), positionWith(1, -1), positionWith(1, Number.MAX_SAFE_INTEGER),
    positionWith(2, 'x'.repeat(5000)), positionWith(2, '')
  ]
  for (const [index, cursor] of extremes.entries()) {
    t.strictSame((await app.credits.history(undefined, { cursor })).entries, [], `cursor ${index}`)
  }
})
