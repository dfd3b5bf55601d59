// refused before the database is asked
import type { FastifyInstance } from 'fastify'
import t, { type Test } from 'tap'
import type { Credits } from '../../src/index.js'
import { buildGateway } from '../helper/app.js'

/** A refused call: its title, its arguments, and the field that the error names. */
type Row = [title: string, args: unknown[], field: string]
type Values = Array<[title: string, value: unknown]>

/** Returns a method's arguments for one input. */
type Arguments = (input: unknown) => unknown[]

const tables = [
  'ai_credits', 'ai_credit_usage', 'ai_credit_daily_usage', 'ai_credit_holds', 'ai_credit_grants', 'ai_credit_events'
]

async function refused (t: Test, method: keyof Credits, rows: Row[]) {
  const app = await buildGateway(t)
  const call = app.credits[method] as (...args: unknown[]) => Promise<unknown>
  for (const [title, args, field] of rows) {
    const { code, statusCode, field: named, message } = await call(...args).then(() => ({}), error => error)
    t.match({ code, statusCode, field: named, message },
      { code: 'FST_CREDITS_INVALID', statusCode: 400, field, message: new RegExp(`^${field} (must|is|or) `) }, title)
  }
  await untouched(t, app)
}

async function untouched (t: Test, app: FastifyInstance) {
  for (const table of tables) t.strictSame((await app.pg.query(`select from ${table}`)).rows, [], `nothing is in ${table}`)
}

const notStrings: Values = [
  ['null', null], ['a number', 5], ['NaN', NaN], ['true', true], ['a BigInt', 5n], ['a symbol', Symbol('x')], ['a function', () => 'x'],
  ['an array', ['x']], ['an object', { toString: () => 'x' }], ['a String object', Object('x')], ['a Date', new Date()]
]
const badTexts: Values = [
  ...notStrings, ['empty', ''], ['256 characters', 'x'.repeat(256)], ['a NUL', 'x\0'], ['a lone surrogate', '\ud800']
]
const badCredits: Values = [
  ['null', null], ['0', 0], ['-1', -1], ['1.5', 1.5], ['NaN', NaN], ['Infinity', Infinity], ['2^53', 2 ** 53], ['a BigInt', 1n],
  ['a string', '1'], ['true', true], ['an array', [1]], ['an object', { valueOf: () => 1 }]
]
const badCreditsOrNone = badCredits.filter(([, value]) => value !== 0)
const badTtls: Values = [...badCredits, ['999', 999], ['24 hours and a millisecond', 86_400_001], ['1000.5', 1000.5], ['a string', '1000']]
const badPriorities: Values = [...badCreditsOrNone, ['101', 101], ['0.5', 0.5], ['a string', '50']]
const badFlags: Values = [['null', null], ['0', 0], ['1', 1], ['a string', 'false'], ['a Boolean object', Object(false)]]
const badShortfalls: Values = [...notStrings, ['empty', ''], ['another word', 'all'], ['capitals', 'Partial'], ['a space', 'reject ']]
const badClients: Values = [['null', null], ['an object', {}], ['a string', 'client'], ['query that is no function', { query: 'select' }], ['true', true]]
const badMetadata: Values = [
  ['null', null], ['a string', 'x'], ['an array', []], ['a Map', new Map()], ['a Date', new Date()], ['NaN inside', { a: NaN }], ['a BigInt inside', { a: 1n }],
  ['a NUL inside', { a: 'x\0' }], ['a key __proto__', JSON.parse('{"__proto__":1}')], ['8193 bytes', { a: 'x'.repeat(8185) }]
]
const badTimes: Values = [
  ['null', null], ['a number', Date.now()], ['true', true], ['an object', { toISOString: () => '2030-01-01T00:00:00Z' }], ['an array', ['2030-01-01T00:00:00Z']],
  ['an invalid Date', new Date(NaN)], ['a Date before the year 1', new Date('0000-12-31T23:59:59.999Z')],
  ['a Date beyond the year 9999', new Date('+010000-01-01T00:00:00Z')], ['empty', ''], ['words', 'tomorrow'], ['infinity', 'infinity'],
  ['a day without time', '2030-01-01'], ['no zone', '2030-01-01T00:00:00'], ['a space for the T', '2030-01-01 00:00:00Z'], ['a zone by name', '2030-01-01T00:00:00 UTC'],
  ['month 13', '2030-13-01T00:00:00Z'], ['February 30', '2030-02-30T00:00:00Z'], ['February 29 of no leap year', '2030-02-29T00:00:00Z'],
  ['day 0', '2030-01-00T00:00:00Z'], ['hour 25', '2030-01-01T25:00:00Z'], ['second 60', '2030-01-01T00:00:60Z'],
  ['the year 0', '0000-01-01T00:00:00Z'], ['a year of five digits', '+12030-01-01T00:00:00Z'], ['a line break', '2030-01-01T00:00:00Z\n']
]
const badLimits: Values = [
  ['null', null], ['0', 0], ['-1', -1], ['1.5', 1.5], ['NaN', NaN], ['100001', 100_001], ['a string', '5'], ['true', true], ['a BigInt', 5n]
]
const badIds: Values = [...notStrings, ['undefined', undefined]]
const undefinedToo = (values: Values): Values => [...values, ['undefined', undefined]]

/** Returns one row for each value of each field, in an input that is valid otherwise. */
function fields (args: Arguments, base: object, values: Record<string, Values>): Row[] {
  return Object.entries(values).flatMap(([field, values]) =>
    values.map(([title, value]): Row => [`${field}: ${title}`, args({ ...base, [field]: value }), field]))
}

/** Inputs that are no objects, and unknown fields. */
function shapes (args: Arguments, base: object, { optional = false, unknown = [] as string[] } = {}): Row[] {
  const inputs: Values = [
    ['null', null], ['a string', 'x'], ['a number', 5], ['true', true], ['a BigInt', 1n], ['a symbol', Symbol('x')], ['an array', [base]],
    ['a function', () => base]
  ]
  if (!optional) inputs.push(['undefined', undefined])
  const names = ['user_id', 'idempotency_key', 'constructor', '__proto__', 'tttl', ...unknown]
  return [
    ...inputs.map(([title, input]): Row => [`input: ${title}`, args(input), 'input']),
    ...names.map((name): Row => [
      `unknown field ${name}`, args(Object.fromEntries([...Object.entries(base), [name, undefined]])), name
    ])
  ]
}

const alone: Arguments = input => [input]
const ofId: Arguments = input => ['1', input]
const ids = (more: unknown[] = []): Row[] => badIds.map(([title, id]) => [`id: ${title}`, [id, ...more], 'id'])

t.test('hold refuses malformed input', async t => {
  const base = { credits: 1, operation: 'chat' }
  await refused(t, 'hold', [
    ...shapes(alone, base, { unknown: ['expiresAt', 'final'] }),
    ...fields(alone, base, {
      userId: badTexts,
      credits: undefinedToo(badCredits),
      operation: undefinedToo(badTexts),
      metadata: badMetadata,
      ttl: badTtls,
      idempotencyKey: badTexts,
      client: badClients
    })
  ])
})

t.test('capture refuses malformed input', async t => {
  await refused(t, 'capture', [
    ...ids(),
    ...shapes(ofId, {}, { optional: true, unknown: ['ttl'] }),
    ...fields(ofId, {}, {
      userId: badTexts,
      credits: badCredits,
      metadata: badMetadata,
      final: badFlags,
      shortfall: badShortfalls,
      idempotencyKey: badTexts,
      client: badClients
    })
  ])
})

t.test('release refuses malformed input', async t => {
  await refused(t, 'release', [
    ...ids(), ...shapes(ofId, {}, { optional: true, unknown: ['idempotencyKey'] }),
    ...fields(ofId, {}, { userId: badTexts, client: badClients })
  ])
})

t.test('extend refuses malformed input', async t => {
  const base = { ttl: 1000 }
  await refused(t, 'extend', [
    ...ids([base]), ...shapes(ofId, base, { unknown: ['idempotencyKey', 'expiresAt'] }),
    ...fields(ofId, base, { userId: badTexts, ttl: undefinedToo(badTtls), client: badClients })
  ])
})

t.test('grant refuses malformed input', async t => {
  const base = { credits: 1 }
  await refused(t, 'grant', [
    ...shapes(alone, base, { unknown: ['operation', 'metadata', 'expires_at'] }),
    ...fields(alone, base, {
      userId: badTexts,
      credits: undefinedToo(badCredits),
      reason: badTexts,
      expiresAt: badTimes,
      priority: badPriorities,
      idempotencyKey: badTexts,
      client: badClients
    })
  ])
})

t.test('revoke refuses malformed input', async t => {
  await refused(t, 'revoke', [
    ...ids(), ...shapes(ofId, {}, { optional: true, unknown: ['credits', 'idempotencyKey'] }),
    ...fields(ofId, {}, { userId: badTexts, client: badClients })
  ])
})

t.test('refund refuses malformed input', async t => {
  const base = { usageId: '1' }
  await refused(t, 'refund', [
    ...shapes(alone, base, { unknown: ['id', 'operation', 'metadata'] }),
    ...fields(alone, base, {
      userId: badTexts,
      usageId: notStrings,
      credits: badCredits,
      reason: badTexts,
      idempotencyKey: badTexts,
      client: badClients
    }),
    ...fields(alone, {}, { deductKey: badTexts }),
    ['neither usageId nor deductKey', [{}], 'usageId'],
    ['both usageId and deductKey', [{ ...base, deductKey: 'k' }], 'usageId']
  ])
})

t.test('setOverdraft refuses malformed input', async t => {
  await refused(t, 'setOverdraft', [
    ...badTexts.map(([title, userId]): Row => [`userId: ${title}`, [userId, 1], 'userId']),
    ...undefinedToo(badCreditsOrNone).map(([title, credits]): Row => [`credits: ${title}`, ['ann', credits], 'credits']),
    ...shapes(input => ['ann', 1, input], {}, { optional: true, unknown: ['userId', 'credits'] }),
    ...fields(input => ['ann', 1, input], {}, { client: badClients })
  ])
})

t.test('setAllowance refuses malformed input', async t => {
  const base = { credits: 1, every: 'day' }
  const args: Arguments = allowance => ['ann', allowance]
  const badEvery: Values = undefinedToo([...notStrings, ['empty', ''], ['another word', 'year'], ['capitals', 'Day']])
  const badRollovers: Values = [
    ['null', null], ['true', true], ['a number', 5], ['another word', 'some'], ['an empty object', {}], ['max null', { max: null }],
    ['max negative', { max: -1 }], ['max a fraction', { max: 1.5 }], ['max a string', { max: '5' }], ['more than max', { max: 5, min: 1 }]
  ]
  const plans = fields(args, base, {
    credits: undefinedToo(badCreditsOrNone),
    every: badEvery,
    rollover: badRollovers,
    anchor: [...notStrings, ['another word', 'user']]
  })
  await refused(t, 'setAllowance', [
    ...badTexts.map(([title, userId]): Row => [`userId: ${title}`, [userId, base], 'userId']),
    ...plans.map(([title, args, field]): Row => [title, args, `allowance/${field}`]),
    ['an unknown field', args({ ...base, max: 5 }), 'allowance/max'],
    ...[undefined, 100, 'day', [], true].map((allowance): Row => [`allowance: ${allowance}`, args(allowance), 'allowance']),
    ...shapes(input => ['ann', base, input], {}, { optional: true, unknown: ['userId'] }),
    ...fields(input => ['ann', base, input], {}, { client: badClients })
  ])
})

t.test('statement refuses malformed input', async t => {
  const args: Arguments = input => ['ann', input]
  const badCursors: Values = [...notStrings, ['empty', ''], ['a word', 'x'], ['negative', '-1'], ['a fraction', '1.5'], ['too long', '9'.repeat(19)]]
  await refused(t, 'statement', [
    ...badTexts.map(([title, userId]): Row => [`userId: ${title}`, [userId], 'userId']),
    ...shapes(args, {}, { optional: true, unknown: ['userId', 'days'] }),
    ...fields(args, {}, { from: badTimes, to: badTimes, limit: badLimits, cursor: badCursors, client: badClients })
  ])
})

t.test('reconcile refuses malformed input', async t => {
  const args: Arguments = input => [undefined, input]
  const badCallables: Values = [['null', null], ['an object', {}], ['a string', 'x'], ['true', true]]
  await refused(t, 'reconcile', [
    ...badTexts.map(([title, userId]): Row => [`userId: ${title}`, [userId], 'userId']),
    ...shapes(args, {}, { optional: true, unknown: ['userId', 'limit'] }),
    ...fields(args, {}, { batch: badLimits, onProgress: badCallables })
  ])
})

t.test('prune refuses malformed input', async t => {
  const required = { before: '2024-01-01T00:00:00Z' }
  const args: Arguments = input => [input]
  const badCallables: Values = [['null', null], ['an object', {}], ['a string', 'x'], ['true', true]]
  await refused(t, 'prune', [
    ...shapes(args, required, { unknown: ['userId', 'after', 'limit'] }),
    ...fields(args, required, { before: [...badTimes, ['absent', undefined]], batch: badLimits, onProgress: badCallables })
  ])
})

t.test('without a default user, what has no id needs a userId', async t => {
  const app = await buildGateway(t, { defaultUser: null })
  const { hold, grant, refund, statement, setOverdraft, setAllowance } = app.credits
  const refusal = { code: 'FST_CREDITS_INVALID', statusCode: 400, field: 'userId', message: 'userId is required' }
  await t.rejects(hold({ credits: 1, operation: 'chat' }), refusal)
  await t.rejects(grant({ credits: 1 }), refusal)
  await t.rejects(refund({ deductKey: 'k' }), refusal)
  await t.rejects(statement(), refusal)
  await t.rejects(setOverdraft(undefined, 1), refusal)
  await t.rejects(setAllowance(undefined, null), refusal)
  await untouched(t, app)
})

t.test('without a default user, an id needs none', async t => {
  const { credits } = await buildGateway(t, { defaultUser: null })
  const request = { userId: 'ann', credits: 1, operation: 'chat' }
  const [captured, released] = [await credits.hold(request), await credits.hold(request)]
  await credits.extend(captured.id, { ttl: 1000 })
  const { id: usageId } = await credits.capture(captured.id)
  await credits.release(released.id)
  await credits.refund({ usageId })
  await credits.revoke((await credits.grant({ userId: 'ann', credits: 1 })).id)
  t.match(await credits.reconcile(), { ok: true, accounts: 1 })
})

t.test('the extremes are taken', async t => {
  const { credits } = await buildGateway(t, { allowance: 0 })
  const text = '😀'.repeat(255)
  const metadata = { a: 'x'.repeat(8184) }
  for (const priority of [0, 100]) await credits.grant({ userId: text, credits: 5, priority, reason: text, idempotencyKey: `${priority}` })
  await credits.grant({ credits: 1, idempotencyKey: text, expiresAt: '9999-12-31T23:59:59.999999999Z' })
  await credits.grant({ userId: 'max', credits: Number.MAX_SAFE_INTEGER })
  const { id } = await credits.hold({ userId: text, credits: 10, operation: text, metadata, idempotencyKey: text })
  await credits.capture(id, { credits: Number.MAX_SAFE_INTEGER, metadata: { b: 'x'.repeat(8184) }, idempotencyKey: text, userId: text })
  const { id: max } = await credits.hold({ userId: 'max', credits: Number.MAX_SAFE_INTEGER, operation: 'chat' })
  t.match(await credits.capture(max), { credits: Number.MAX_SAFE_INTEGER, uncollected: 0 })
  t.match(await credits.reconcile(), { ok: true, accounts: 3 })
})

t.test('fields that are undefined are left out', async t => {
  const { credits } = await buildGateway(t)
  const none = { userId: undefined, metadata: undefined, idempotencyKey: undefined, client: undefined }
  const { id, userId, expiresAt } = await credits.hold({ ...none, credits: 1, operation: 'chat', ttl: undefined } as any)
  t.equal(userId, 'default_user')
  t.ok(expiresAt.getTime() > Date.now() + 60_000)
  const { id: usageId } = await credits.capture(id, { ...none, credits: undefined, final: undefined, shortfall: undefined } as any)
  await credits.refund({ usageId, deductKey: undefined, credits: undefined, reason: undefined } as any)
  t.match(await credits.grant({ credits: 1, expiresAt: undefined, reason: undefined, priority: undefined } as any), { priority: 50, expiresAt: null })
})
