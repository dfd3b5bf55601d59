import fc from 'fast-check'
import type { Ledger } from '../../src/index.js'
import { budgetNames, hardNumber, hardString, users } from './values.js'

/** A call of a public method. */
export interface Call {
  method: keyof Ledger
  args: unknown[]
}

const keys = Array.from({ length: 40 }, (_, index) => `k${index}`)

const user = fc.constantFrom(...users)
const anything = fc.oneof(
  fc.anything({
    withBigInt: true, withDate: true, withMap: true, withNullPrototype: true, withObjectString: true, withSet: true, withSparseArray: true, withTypedArray: true
  }),
  hardString, hardNumber,
  fc.constantFrom<unknown>(Symbol('s'), () => {}, null, NaN, Infinity, -Infinity, new Date(NaN), new Date(8.64e15), new Proxy({}, {}), /x/, new Error('x'),
    Object.create(null), Object.create({ userId: 'ben' }), { toJSON: () => 'x' }, { toString: () => 'ann' }, Object('ann'), Object(5), [], ['ann'],
    Promise.resolve('ann'), { then: 1 }, circular())
)

function circular (): unknown {
  const self: Record<string, unknown> = {}
  self.self = self
  return self
}

const often = <T>(value: fc.Arbitrary<T>) => fc.oneof({ weight: 24, arbitrary: value as fc.Arbitrary<unknown> }, { weight: 1, arbitrary: anything })

const metadata = fc.oneof(
  fc.constantFrom<unknown>({}, { model: 'm' }, { at: new Date(0) }, { no: undefined }, { deep: { list: [1, null, 'x'] } }, { big: 'x'.repeat(9000) }),
  fc.dictionary(fc.string({ maxLength: 5 }), fc.jsonValue({ maxDepth: 2 }), { maxKeys: 3 }))

// So soon that a grant has expired before a later call uses it.
const soon = fc.integer({ min: 50, max: 500 }).map(milliseconds => new Date(Date.now() + milliseconds))

const budget = fc.oneof({ weight: 20, arbitrary: fc.constantFrom(...budgetNames) }, { weight: 1, arbitrary: hardString })
// Mostly those that there are, or that a template makes.
const charged = fc.oneof({ weight: 4, arbitrary: fc.constantFrom('team', 'key:1', 'key:2', 'ünï😀:a:b') }, { weight: 1, arbitrary: budget })
const amount = fc.oneof({ weight: 8, arbitrary: fc.integer({ min: 0, max: 3000 }) }, { weight: 1, arbitrary: hardNumber })

const fields: Record<string, fc.Arbitrary<unknown>> = {
  budget: charged,
  within: charged,
  day: amount,
  week: amount,
  month: amount,
  total: amount,
  userId: user,
  credits: fc.oneof(fc.integer({ min: 1, max: 2000 }), fc.integer({ min: 1, max: 10 }), fc.integer({ min: 1, max: 10 }), hardNumber),
  operation: fc.constantFrom('chat', 'video', 'ünï'),
  metadata,
  idempotencyKey: fc.constantFrom(...keys),
  deductKey: fc.constantFrom(...keys),
  ttl: fc.oneof(fc.integer({ min: 1000, max: 86_400_000 }), fc.integer({ min: 900, max: 1100 }), hardNumber),
  final: fc.boolean(),
  shortfall: fc.constantFrom('partial', 'reject', 'ask'),
  reason: fc.constantFrom('purchase', 'bonus'),
  priority: fc.oneof(fc.integer({ min: 0, max: 100 }), hardNumber),
  expiresAt: fc.oneof(soon,
    fc.constantFrom<unknown>('2099-01-01T00:00:00Z', new Date('2050-01-01'), new Date(0), 'tomorrow', '9999-12-31T23:59:59-14:00')),
  from: fc.constantFrom<unknown>('2001-01-01T00:00:00Z', new Date(0), '0001-01-01T00:00:00+14:00'),
  to: fc.constantFrom<unknown>('2099-01-01T00:00:00Z', new Date()),
  days: fc.integer({ min: 0, max: 40_000 }),
  limit: fc.integer({ min: 0, max: 100_001 }),
  cursor: fc.constantFrom('0', '5', 'x', '999999999999999999', Buffer.from(`["2026-01-01",1,"chat","${'0'.repeat(64)}"]`).toString('base64url')),
  batch: fc.integer({ min: 0, max: 50 }),
  client: fc.constantFrom<unknown>(null, {}, 'pg', { query: 'select' })
}

/** Generates objects of these fields, some of which are malformed. */
function input (names: string[], requiredKeys: string[] = [], ids = 0): fc.Arbitrary<unknown> {
  const usageId = fc.integer({ min: 1, max: ids + 1 }).map(String)
  const right = fc.record(Object.fromEntries(names.map(name => [name, often(name === 'usageId' ? usageId : fields[name]!)])), { requiredKeys })
  const more = fc.tuple(right, fc.oneof(hardString, fc.constantFrom('user_id', 'userid', 'client')), anything)
    .map(([fields, name, value]) => Object.fromEntries([...Object.entries(fields), [name, name === 'client' ? null : value]]))
  return fc.oneof({ weight: 12, arbitrary: right as fc.Arbitrary<unknown> }, { weight: 1, arbitrary: more }, { weight: 1, arbitrary: anything })
}

const allowance = fc.oneof(
  fc.record({
    credits: fields.credits!,
    every: fc.constantFrom('day', 'week', 'month', 'year'),
    rollover: fc.oneof(fc.constantFrom('none', 'all', 'some'), fc.record({ max: hardNumber })),
    anchor: fc.constantFrom('calendar', 'account', 'x')
  }, { requiredKeys: ['credits', 'every'] }),
  fc.constant(null), anything)

/** Generates calls of every method, valid, nearly valid and malformed. Ids up to `ids` probably exist. */
export function callsOf (ids: number): fc.Arbitrary<Call> {
  const id = often(fc.integer({ min: 1, max: ids }).map(String))
  const named = fc.oneof({ weight: 12, arbitrary: often(user) }, { weight: 1, arbitrary: fc.constant(undefined) })
  const call = (method: keyof Ledger, ...args: fc.Arbitrary<unknown>[]): fc.Arbitrary<Call> =>
    fc.tuple(...args).map(args => ({ method, args }))
  const optional = (...names: string[]) => fc.oneof(fc.constant(undefined), input(names))
  const spend = ['userId', 'credits', 'operation', 'metadata', 'idempotencyKey', 'budget']
  const page = fc.oneof(fc.constant(undefined), input(['limit']), fc.record({ limit: fc.integer({ min: 1, max: 5 }), cursor: budget }))
  return fc.oneof(
    call('deduct', input(spend, ['credits', 'operation'])),
    call('hold', input([...spend, 'ttl'], ['credits', 'operation'])),
    call('capture', id, optional('userId', 'credits', 'metadata', 'final', 'shortfall', 'idempotencyKey')),
    call('release', id, optional('userId')),
    call('extend', id, input(['userId', 'ttl'], ['ttl'])),
    call('grant', input(['userId', 'credits', 'reason', 'expiresAt', 'priority', 'idempotencyKey'], ['credits'])),
    call('revoke', id, optional('userId')),
    call('refund', input(['userId', 'usageId', 'credits', 'reason', 'idempotencyKey'], ['usageId'], ids)),
    call('refund', input(['userId', 'deductKey', 'credits', 'reason', 'idempotencyKey'], ['deductKey'])),
    call('balance', named),
    call('history', named, optional('days', 'limit', 'cursor', 'budget')),
    call('statement', named, optional('from', 'to', 'limit', 'cursor', 'client')),
    call('setAllowance', named, allowance, optional('client')),
    call('setOverdraft', named, often(fields.credits!), optional('client')),
    call('setBudget', named, often(budget), input(['within', 'day', 'week', 'month', 'total']), optional('client')),
    call('removeBudget', named, often(budget), optional('client')),
    call('budgets', named, page),
    call('reconcile', named, optional('batch')))
}

const option = fc.record({
  defaultUser: fc.oneof(fc.constantFrom(null, 'ann'), anything),
  allowance,
  historyDays: fields.days!,
  historyLimit: fields.limit!,
  timeZone: fc.oneof(fc.constantFrom('UTC', 'Europe/Berlin', '+02:00'), anything),
  timeout: hardNumber,
  maxQueue: hardNumber,
  prepare: fc.oneof(fc.boolean(), anything)
}, { requiredKeys: [] })

/** Generates options of a ledger, valid, nearly valid and malformed. */
export const options: fc.Arbitrary<unknown> = fc.oneof(
  option, anything,
  fc.tuple(option, hardString, anything).map(([option, name, value]) => Object.fromEntries([...Object.entries(option), [name, value]])))
