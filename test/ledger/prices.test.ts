// needs no database
import fc from 'fast-check'
import t, { type Test } from 'tap'
import { openPriceBook } from '../../src/ledger/prices/book.js'
import type { Price, Prices, Rate, Usage } from '../../src/index.js'

const MAX = Number.MAX_SAFE_INTEGER

const cost = (price: Price, usage: Usage) => openPriceBook({ chat: price }, 'one').quote('chat', usage).credits

/** Declares a test of what usages cost at one price. */
const costs = (name: string, price: Price, expected: Array<[usage: Usage, credits: number]>) => t.test(name, async t => {
  for (const [usage, credits] of expected) t.equal(cost(price, usage), credits, JSON.stringify(usage))
})

costs('credits per unit', { per: { seconds: 4, clips: 10 } }, [
  [{}, 0], [{ seconds: 3 }, 12], [{ seconds: 3, clips: 2 }, 32], [{ seconds: 0, clips: 1 }, 10]
])

costs('credits per so many units', { per: { tokens: { credits: 3, each: 1000 } } }, [
  [{ tokens: 0 }, 0], [{ tokens: 1 }, 1], [{ tokens: 333 }, 1], [{ tokens: 334 }, 2], [{ tokens: 1000 }, 3], [{ tokens: 1001 }, 4]
])

costs('it is rounded once, and not for each quantity', {
  per: { a: { credits: 1, each: 3 }, b: { credits: 1, each: 6 }, c: { credits: 1, each: 2 } }
}, [[{ a: 1, b: 1, c: 1 }, 1], [{ a: 1, b: 2, c: 1 }, 2], [{ a: 1 }, 1], [{ a: 1, c: 1 }, 1]])

costs('rounded down', { per: { tokens: { credits: 1, each: 10 } }, round: 'down' }, [
  [{ tokens: 9 }, 0], [{ tokens: 10 }, 1], [{ tokens: 19 }, 1]
])

costs('rounded to the nearest, a half up', { per: { tokens: { credits: 1, each: 10 }, odd: { credits: 1, each: 3 } }, round: 'nearest' }, [
  [{ tokens: 4 }, 0], [{ tokens: 5 }, 1], [{ tokens: 14 }, 1], [{ tokens: 15 }, 2], [{ odd: 1 }, 0], [{ odd: 2 }, 1]
])

costs('a base for each call', { base: 5, per: { words: { credits: 1, each: 10 } } }, [[{}, 5], [{ words: 1 }, 6]])

costs('nothing but a base', { base: 0 }, [[{}, 0]])

costs('minimum and maximum, in whole credits', { per: { words: { credits: 1, each: 10 } }, minimum: 2, maximum: 4 }, [
  [{}, 2], [{ words: 20 }, 2], [{ words: 21 }, 3], [{ words: 40 }, 4], [{ words: 41 }, 4], [{ words: MAX }, 4]
])

costs('tiers, each part of the quantity at its own rate', {
  per: { words: { tiers: [{ upTo: 10, credits: 3 }, { upTo: 20, credits: 1 }, { credits: 1, each: 5 }] } }
}, [
  [{ words: 0 }, 0], [{ words: 1 }, 3], [{ words: 10 }, 30], [{ words: 11 }, 31], [{ words: 20 }, 40], [{ words: 21 }, 41],
  [{ words: 25 }, 41], [{ words: 26 }, 42]
])

costs('a free tier, and a rate of one tier', {
  per: { words: { tiers: [{ upTo: 100, credits: 0 }, { credits: 1, each: 10 }] }, clips: { tiers: [{ credits: 2 }] } }
}, [[{ words: 100 }, 0], [{ words: 101 }, 1], [{ clips: 3 }, 6]])

costs('whole numbers beyond what floats hold', { per: { tokens: { credits: MAX, each: MAX }, words: { credits: 1, each: MAX - 1 } } }, [
  [{ tokens: MAX }, MAX], [{ tokens: MAX - 1, words: 1 }, MAX], [{ tokens: MAX - 1, words: MAX - 1 }, MAX]
])

t.test('what costs more than 2^53 - 1 is refused, unless the maximum is lower', async t => {
  const dear = { per: { tokens: 2 } }
  t.equal(cost(dear, { tokens: (MAX - 1) / 2 }), MAX - 1)
  t.throws(() => cost(dear, { tokens: MAX }), { code: 'FST_CREDITS_INVALID', field: 'usage' })
  t.equal(cost({ ...dear, maximum: 7 }, { tokens: MAX }), 7)
})

t.test('a quote tells what it was computed from, in a copy', async t => {
  const usage = { tokens: 5, words: undefined }
  const quote = openPriceBook({ chat: { per: { tokens: 2, words: 1 } } }, 'may').quote('chat', usage)
  usage.tokens = 6
  t.strictSame(quote, { credits: 10, operation: 'chat', version: 'may', usage: { tokens: 5 } })
})

t.test('malformed usage is refused by its name', async t => {
  const book = openPriceBook({ chat: { per: { tokens: 1 } } })
  for (const value of [null, '5', true, 1.5, NaN, Infinity, 5n, [5], {}, -1, 2 ** 53]) {
    t.throws(() => book.quote('chat', { tokens: value }), { code: 'FST_CREDITS_INVALID', field: 'usage.tokens' }, String(value))
  }
  for (const name of ['token', 'constructor', 'toString', '']) {
    t.throws(() => book.quote('chat', { [name]: 0 }), { code: 'FST_CREDITS_INVALID', field: `usage.${name}` })
  }
  t.throws(() => book.quote('chat', JSON.parse('{ "__proto__": 1 }')), { code: 'FST_CREDITS_INVALID', field: 'usage.__proto__' })
  for (const usage of [null, undefined, 5, 'tokens', [], new Map([['tokens', 5]]), new Date(), () => {}]) {
    t.throws(() => book.quote('chat', usage), { code: 'FST_CREDITS_INVALID', field: 'usage' }, String(usage))
  }
})

t.test('an operation without a price is refused', async t => {
  for (const book of [openPriceBook({}), openPriceBook({ chat: { base: 1 } })]) {
    for (const operation of ['image', 'constructor', '__proto__', 'toString', '']) {
      t.throws(() => book.quote(operation, {}), { code: 'FST_CREDITS_NO_PRICE', statusCode: 400, operation })
    }
  }
})

t.test('operations and quantities may have any name', async t => {
  const book = openPriceBook(JSON.parse('{ "__proto__": { "per": { "constructor": 2, "a.b": 3 } }, "constructor": { "base": 1 } }'))
  t.equal(book.quote('__proto__', { constructor: 2, 'a.b': 1 }).credits, 7)
  t.equal(book.quote('constructor', {}).credits, 1)
})

t.test('a book without a version has one of its content', async t => {
  const version = (prices: Prices) => openPriceBook(prices).quote('chat', {}).version
  const chat: Price = { per: { a: { credits: 1, each: 2 }, b: 3 } }
  const first = version({ chat, image: { base: 1 }, audio: { base: 2 } })
  t.match(first, /^[0-9a-f]{16}$/)
  t.equal(version({
    image: { base: 1 },
    audio: { base: 2, maximum: undefined },
    chat: { round: 'up', per: { b: { tiers: [{ credits: 3 }] }, a: { credits: 1, each: 2 } }, minimum: 0 }
  }), first, 'the same, said otherwise')
  const changes: Price[] = [
    { ...chat, base: 1 }, { ...chat, minimum: 1 }, { ...chat, maximum: 1 }, { ...chat, round: 'down' },
    { per: { a: { credits: 1, each: 3 }, b: 3 } }, { per: { a: { credits: 2, each: 2 }, b: 3 } }, { per: { a: { credits: 1, each: 2 } } },
    { per: { ...chat.per, b: { tiers: [{ upTo: 1, credits: 3 }, { credits: 3 }] } } }
  ]
  const versions = [{ chat }, ...changes.map(chat => ({ chat }))].map(prices => version({ ...prices, image: { base: 1 }, audio: { base: 2 } }))
  t.equal(new Set(versions).size, versions.length, 'what differs in anything has another')
})

const notObjects = [null, 5, 'x', true, [], new Map(), () => {}]
const notWhole = [null, '5', true, 1.5, NaN, -1, 2 ** 53, 5n, {}]

const tiers = (...tiers: unknown[]) => ({ per: { a: { tiers } } })

/** The path of the malformed field, and malformed prices of `chat`. */
const malformed: Record<string, unknown[]> = {
  'prices.chat': [...notObjects, {}, { minimum: 1 }],
  'prices.chat.pre': [{ base: 1, pre: {} }],
  'prices.chat.base': notWhole.map(base => ({ base })),
  'prices.chat.minimum': notWhole.map(minimum => ({ base: 1, minimum })),
  'prices.chat.maximum': [...notWhole.map(maximum => ({ base: 1, maximum })), { base: 1, minimum: 2, maximum: 1 }],
  'prices.chat.round': [null, 'Up', 'half', 1].map(round => ({ base: 1, round })),
  'prices.chat.per': [...notObjects, {}].map(per => ({ per })),
  'prices.chat.per.': [{ per: { '': 1 } }],
  'prices.chat.per.__proto__': [{ per: JSON.parse('{ "__proto__": 1 }') }],
  'prices.chat.per.a': [null, 'x', true, [], 1.5, -1, 2 ** 53, NaN].map(a => ({ per: { a } })),
  'prices.chat.per.a.price': [{ per: { a: { credits: 1, price: 2 } } }],
  'prices.chat.per.a.upTo': [{ per: { a: { credits: 1, upTo: 2 } } }],
  'prices.chat.per.a.each': [0, ...notWhole].map(each => ({ per: { a: { credits: 1, each } } })),
  'prices.chat.per.a.credits': [{ per: { a: {} } }, ...notWhole.map(credits => ({ per: { a: { credits } } }))],
  'prices.chat.per.a.tiers': [{}, [], undefined, 1].map(tiers => ({ per: { a: { tiers } } })),
  'prices.chat.per.a.round': [{ per: { a: { tiers: [{ credits: 1 }], round: 'up' } } }],
  'prices.chat.per.a.tiers.0': [tiers(null), tiers(5), { per: { a: { tiers: new Array(1) } } }],
  'prices.chat.per.a.tiers.0.upTo': [
    tiers({ credits: 1, upTo: 5 }), tiers({ credits: 1 }, { credits: 2 }), tiers({ credits: 1, upTo: 0 }, { credits: 1 })
  ],
  'prices.chat.per.a.tiers.1.upTo': [
    tiers({ credits: 1, upTo: 5 }, { credits: 1, upTo: 5 }, { credits: 1 }),
    tiers({ credits: 1, upTo: 5 }, { credits: 1, upTo: 4 }, { credits: 1 }),
    tiers({ credits: 1, upTo: 5 }, { credits: 1, upTo: 6 })
  ],
  'prices.chat.per.a.tiers.1.each': [tiers({ credits: 1, upTo: 5 }, { credits: 1, each: 0 })],
  'prices.chat.per.a.tiers.1.price': [tiers({ credits: 1, upTo: 5 }, { credits: 1, price: 1 })]
}

const refused = (t: Test, prices: unknown, option: string) =>
  t.throws(() => openPriceBook(prices), { code: 'FST_CREDITS_INVALID_OPTION', option }, option)

for (const [path, prices] of Object.entries(malformed)) {
  t.test(`${path}, malformed, is refused by its path`, async t => {
    for (const chat of prices) refused(t, { image: { base: 1 }, chat }, path)
  })
}

t.test('what is no book is refused, and names that no operation has', async t => {
  for (const prices of notObjects) refused(t, prices, 'prices')
  refused(t, { '': { base: 1 } }, 'prices.')
  refused(t, { 'a\0': { base: 1 } }, 'prices.a\0')
  refused(t, { ['x'.repeat(256)]: { base: 1 } }, `prices.${'x'.repeat(256)}`)
})

// Adds up fractions unit by unit. This shares no code or method with the price book.
function naively ({ per = {}, base = 0, minimum = 0, maximum = Infinity, round = 'up' }: Price, usage: Usage): number {
  let sum = { over: BigInt(base), under: 1n }
  for (const [name, quantity] of Object.entries(usage)) {
    for (let unit = 1; unit <= quantity; unit++) {
      const { credits, each = 1 } = rateAt(per[name]!, unit)
      sum = { over: sum.over * BigInt(each) + BigInt(credits) * sum.under, under: sum.under * BigInt(each) }
    }
  }
  const whole = Number(sum.over / sum.under)
  const rest = sum.over % sum.under
  const more = { up: rest > 0n, down: false, nearest: rest * 2n >= sum.under }[round]
  return Math.min(maximum, Math.max(minimum, whole + Number(more)))
}

function rateAt (rate: Rate, unit: number) {
  if (typeof rate === 'number') return { credits: rate }
  return 'tiers' in rate ? rate.tiers.find(({ upTo = Infinity }) => unit <= upTo)! : rate
}

const unitRate = fc.record({ credits: fc.nat(20), each: fc.integer({ min: 1, max: 12 }) }, { requiredKeys: ['credits'] })
const tiered = fc.tuple(fc.uniqueArray(fc.integer({ min: 1, max: 40 }), { maxLength: 3 }), fc.array(unitRate, { minLength: 4, maxLength: 4 }))
  .map(([ends, rates]) => ({
    tiers: [...ends.sort((a, b) => a - b).map((upTo, index) => ({ upTo, ...rates[index]! })), rates.at(-1)!]
  }))
const anyRate: fc.Arbitrary<Rate> = fc.oneof(fc.nat(9), unitRate, tiered)
const anyPrice: fc.Arbitrary<Price> = fc.record({
  per: fc.record({ a: anyRate, b: anyRate, c: anyRate }),
  base: fc.nat(5),
  minimum: fc.nat(20),
  maximum: fc.integer({ min: 20, max: 300 }),
  round: fc.constantFrom('up', 'down', 'nearest')
}, { requiredKeys: ['per'] })
const anyUsage = fc.record({ a: fc.nat(50), b: fc.nat(50), c: fc.nat(50) }, { requiredKeys: [] })

t.test('any price costs what it does when each unit is added by itself', async t => {
  fc.assert(fc.property(anyPrice, anyUsage, (price, usage) => cost(price, usage) === naively(price, usage)), { numRuns: 1000 })
  t.pass()
})
