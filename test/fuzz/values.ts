import fc from 'fast-check'

/** Accounts that are used again and again. Some of them are hard to encode. */
export const users = ['ann', 'ben', 'cleo', "o'hara", 'ünï😀', 'a b+c%d&e=f', '__proto__', 'x'.repeat(255)]

/** Budgets that are used again and again; each `key:…` can be made by a template. */
export const budgets = ['team', 'member', 'key:k1', 'key:k2', 'key:ünï😀', 'key:a/b%2Fc?d#e', `key:${'x'.repeat(251)}`]

/** The same, and names that are a template, or harder. */
export const budgetNames = [...budgets, 'ann', 'key:*', ':*', "o'hara:1", 'ünï😀:a:b', '__proto__', 'x'.repeat(255)]

const SQL = [
  "'; drop table ai_credits; --", "' or 1=1 --", '$1', '\\', "\\'; select pg_sleep(10); --", '${process.exit()}', // eslint-disable-line no-template-curly-in-string
  '"; delete from ai_credit_usage; --', '$$; update ai_credits set total_credits = 0; $$', '{}', '{"$ne":null}'
]

const HARD = [
  '', ' ', '\0', 'a\0b', '\ud800', 'x\udfff', '\u{1f600}', '\ufeff', '\u202e', '\r\n', '%00', '%', '%ff', '../..', '__proto__',
  'constructor', 'prototype', 'toString', 'null', 'undefined', 'true', '0', '-1', '1e2', 'NaN',
  'x'.repeat(255), 'x'.repeat(256), '😀'.repeat(255), '😀'.repeat(256), 'x'.repeat(70_000)
]

/** Generates strings that break careless code. */
export const hardString: fc.Arbitrary<string> = fc.oneof(
  fc.constantFrom(...HARD), fc.constantFrom(...SQL), fc.string({ unit: 'binary', maxLength: 12 }), fc.string({ unit: 'grapheme', maxLength: 12 })
)

/** Generates numbers at every edge. */
export const hardNumber: fc.Arbitrary<number> = fc.oneof(
  fc.constantFrom(0, -0, -1, 1, 1.5, 2 ** 31, 2 ** 53 - 1, 2 ** 53, -(2 ** 53), 1e16, 1e308, Number.MIN_VALUE, 1e21),
  fc.double({ noNaN: true, noDefaultInfinity: true }), fc.integer()
)

/** Generates objects that break a careless merge or a recursion. */
const hardObject: fc.Arbitrary<unknown> = fc.oneof(
  fc.constantFrom<unknown>(
    JSON.parse('{"__proto__":{"credits":1}}'), JSON.parse('{"constructor":{"prototype":{"x":1}}}'), { constructor: 'x' },
    { toJSON: 'x' }, { toString: 1 }, { length: 5 }, { date: 1, used: 2, operation: 3 }, { key: '\0' }, { '\0': 1 }, { '\ud800': 1 },
    { big: 'x'.repeat(8180) }, { big: 'x'.repeat(8192) }
  ),
  fc.integer({ min: 1, max: 3000 }).map(nest),
  fc.dictionary(hardString, fc.jsonValue({ maxDepth: 2 }), { maxKeys: 4, noNullPrototype: true })
)

function nest (depth: number): unknown {
  let value: unknown = {}
  for (let level = 1; level < depth; level++) value = level % 2 === 0 ? [value] : { a: value }
  return value
}

/** Generates any JSON values, mostly unwelcome ones. */
export const hardJson: fc.Arbitrary<unknown> = fc.oneof(
  hardString, hardNumber, hardObject, fc.constantFrom(null, true, false, [], {}, [[]], ['ann']), fc.jsonValue({ maxDepth: 3 })
)
