import fc from 'fast-check'
import type { Credits, LedgerOptions, RecurringAllowance } from '../../src/index.js'

const SECOND = 1000
const HOUR = 3600 * SECOND
const DAY = 24 * HOUR

/** A call: a method of the ledger and its arguments. */
export interface Call {
  method: keyof Credits
  args: any[]
}

/** The next step of a sequence, as fast-check generates and prints it. It refers to accounts, holds and so on by number. */
export type Command =
  | { do: 'balance' | 'deduct' | 'hold' | 'grant' | 'setAllowance' | 'setOverdraft', user: number, input: any }
  | { do: 'capture' | 'release' | 'extend' | 'revoke', user?: number, nth: number, input: any }
  | { do: 'refund', user?: number, nth: number, key?: string, input: any }
  | { do: 'setBudget' | 'removeBudget', user: number, budget: string, input: any }
  | { do: 'budgets', user: number, input: any }
  | { do: 'again', nth: number }
  | { do: 'wait', ms: number }
  | { do: 'option', allowance: number | RecurringAllowance }

export type Option = NonNullable<LedgerOptions['allowance']>

/** The ids that a sequence has received, oldest first. */
export interface Known {
  users: string[]
  calls: Call[]
  holds: string[]
  grants: string[]
  records: string[]
  now: number
}

// Durations that often end at one instant, and together with the calendar's periods.
const duration = fc.constantFrom(SECOND, HOUR, 6 * HOUR, DAY)
const waiting = fc.oneof(
  { weight: 6, arbitrary: fc.constantFrom(SECOND, HOUR, 6 * HOUR, DAY) },
  { weight: 1, arbitrary: fc.constantFrom(1, SECOND - 1, 3 * DAY, 7 * DAY, 31 * DAY, 100 * DAY) },
  { weight: 1, arbitrary: fc.integer({ min: 1, max: 3 * DAY }) })
/** How far the clock moves while calls are under way. */
export const step: fc.Arbitrary<number> = fc.oneof(duration, fc.constant(1))
const expiry = fc.oneof(duration, fc.constantFrom(0, 1, 3 * DAY, 40 * DAY))

const credits = fc.oneof(fc.integer({ min: 1, max: 10 }), fc.integer({ min: 1, max: 40 }))
const grantCredits = fc.oneof(
  { weight: 40, arbitrary: credits },
  { weight: 1, arbitrary: fc.integer({ min: 0, max: 40 }).map(less => Number.MAX_SAFE_INTEGER - less) })
const overdraft = fc.constantFrom(0, 20, 60)
const operation = fc.constantFrom('chat', 'video')
const metadata = fc.constantFrom({}, { quality: 'hd' }, { seconds: 30 })
const key = fc.constantFrom('a', 'b')
const reason = fc.constantFrom('gift', 'purchase')
const user = fc.constantFrom(0, 0, 0, 0, 0, 0, 1, 1, 2)
const NONE = 13 // not at an end of the range, because fast-check prefers those
const nth = fc.nat(20)

/** An allowance that renews. */
export const plan: fc.Arbitrary<RecurringAllowance> = record({
  credits: fc.integer({ min: 0, max: 40 }),
  every: fc.constantFrom('day', 'week', 'month'),
  rollover: sometimes(fc.oneof(fc.constantFrom('none', 'all'), record({ max: fc.integer({ min: 0, max: 30 }) }))),
  anchor: sometimes(fc.constantFrom('calendar', 'account'))
})

/** The option `allowance`. */
export const option: fc.Arbitrary<Option> = fc.oneof(fc.integer({ min: 0, max: 60 }), plan)

/** The time at which a sequence begins: a full hour within four years, one of which is a leap year. */
export const start: fc.Arbitrary<number> = fc.nat(4 * 365 * 24).map(hours => Date.UTC(2026, 0, 1) + hours * HOUR)

/**
 * The names of budgets, few enough to be set, moved and removed again and again. For some of them, there is only a template at first.
 */
export const budgetNames = ['team', 'ann', 'ben', 'free', 'key:1', 'key:2', 'job:a:1', 'job:b', 'key:*', 'job:*']

const isTemplate = (name: string) => name.endsWith(':*')
const charged = fc.constantFrom(...budgetNames.filter(name => !isTemplate(name)))
const spent = fc.oneof(
  { weight: 4, arbitrary: fc.constant(undefined) },
  { weight: 7, arbitrary: fc.constantFrom('key:1', 'key:2') },
  { weight: 2, arbitrary: fc.constantFrom('team', 'ann', 'job:a:1') },
  { weight: 1, arbitrary: charged })
const amount = fc.oneof(fc.integer({ min: 5, max: 30 }), fc.integer({ min: 0, max: 60 }))
const definition = record({
  within: sometimes(charged), day: sometimes(amount), week: seldom(amount), month: seldom(amount), total: seldom(amount)
})

/**
 * The first commands of a sequence: budgets of three levels, as those of most gateways; or what is rare otherwise: an account in
 * debt, budgets of as many levels as there can be, or a budget that was made again while a hold from before is open.
 */
export const prelude: fc.Arbitrary<Command[]> = fc.oneof(
  { weight: 1, arbitrary: fc.constant<Command[]>([]) },
  {
    weight: 1,
    arbitrary: fc.constant<Command[]>([
      { do: 'setOverdraft', user: 0, input: 30 }, { do: 'deduct', user: 0, input: { credits: 30, operation: 'chat' } }
    ])
  },
  {
    weight: 8,
    arbitrary: fc.tuple(fc.constantFrom('month', 'total'), fc.constantFrom('day', 'week'), fc.constantFrom('day', 'week', 'month', 'total'), amount, amount, amount)
      .map(([ofTeam, ofAnn, ofKey, ...amounts]) => [0, 1, 2].flatMap(user => [
        ...chain(user, [['team', { [ofTeam]: amounts[0] }], ['ann', { [ofAnn]: amounts[1] }], ['key:*', { [ofKey]: amounts[2] }]]),
        ...chain(user, [['job:*', { within: 'team' }]])
      ]))
  },
  {
    weight: 1,
    arbitrary: fc.constantFrom(7, 8, 8)
      .map(levels => chain(0, [...budgetNames.slice(0, levels), 'job:*'].map(name => [name, { total: 40 }])))
  },
  {
    weight: 2,
    arbitrary: fc.tuple(credits, duration).map(([credits, ttl]): Command[] => {
      const hold = { do: 'hold' as const, user: 0, input: { credits, operation: 'chat', ttl, budget: 'key:1' } }
      return [
        { do: 'grant', user: 0, input: { credits: 60 } },
        ...chain(0, [['team', {}], ['key:*', { day: 30 }]]),
        hold, { do: 'removeBudget', user: 0, budget: 'key:1', input: {} }, hold
      ]
    })
  })

// Makes budgets, each within the one before.
function chain (user: number, budgets: Array<[name: string, limits: object]>): Command[] {
  return budgets.map(([budget, limits], index) =>
    ({ do: 'setBudget', user, budget, input: { ...limits, ...index > 0 && { within: budgets[index - 1]![0] } } }))
}

const spending = { credits, operation, metadata: sometimes(metadata), budget: spent, idempotencyKey: seldom(key, 4) }
const target = { user: seldom(user), nth }

const posting: Array<fc.WeightedArbitrary<Command>> = [
  of(4, { do: fc.constant('deduct'), user, input: record(spending) }),
  of(4, { do: fc.constant('hold'), user, input: record({ ...spending, ttl: sometimes(duration) }) }),
  of(5, {
    do: fc.constant('capture'),
    ...target,
    input: record({
      credits: sometimes(credits),
      metadata: seldom(metadata),
      final: sometimes(fc.boolean()),
      shortfall: sometimes(fc.constantFrom('partial', 'reject')),
      idempotencyKey: seldom(key)
    })
  }),
  of(1, { do: fc.constant('release'), ...target, input: fc.constant({}) }),
  of(4, {
    do: fc.constant('grant'),
    user,
    input: record({
      credits: grantCredits,
      reason: seldom(reason),
      expiresAt: sometimes(expiry),
      priority: sometimes(fc.constantFrom(0, 49, 50, 51, 100)),
      idempotencyKey: seldom(key)
    })
  }),
  of(1, { do: fc.constant('revoke'), ...target, input: fc.constant({}) }),
  of(4, {
    do: fc.constant('refund'),
    ...target,
    key: seldom(key),
    input: record({
      credits: sometimes(fc.integer({ min: 1, max: 12 })), reason: seldom(reason), idempotencyKey: seldom(key)
    })
  }),
  of(1, { do: fc.constant('balance'), user, input: fc.constant(undefined) }),
  of(1, {
    do: fc.constant('budgets'), user, input: record({ limit: sometimes(fc.integer({ min: 1, max: 4 })), cursor: sometimes(charged) })
  }),
  of(2, { do: fc.constant('again'), nth })
]

const extending = of(1, { do: fc.constant('extend'), ...target, input: record({ ttl: duration }) })

const terms: Array<fc.WeightedArbitrary<Command>> = [
  of(1, { do: fc.constant('setAllowance'), user, input: fc.option(plan) }),
  of(1, { do: fc.constant('setOverdraft'), user, input: overdraft }),
  of(0.25, { do: fc.constant('option'), allowance: option }),
  of(2.5, { do: fc.constant('setBudget'), user, budget: fc.constantFrom('key:1', 'key:2', ...budgetNames), input: definition }),
  of(2, {
    do: fc.constant('removeBudget'),
    user,
    budget: fc.constantFrom('key:1', 'key:1', 'key:2', 'key:2', 'job:a:1', ...budgetNames),
    input: fc.constant({})
  })
]

const waits = of(8, { do: fc.constant('wait'), ms: waiting })

/** Any command. */
export const command: fc.Arbitrary<Command> = fc.oneof(...scaled([...posting, extending, ...terms, waits]))

/** Commands that have a place in the account's statement, or that change nothing. */
export const concurrentCommand: fc.Arbitrary<Command> = fc.oneof(...scaled(posting))

/** All other commands. */
export const quietCommand: fc.Arbitrary<Command> = fc.oneof(...scaled([extending, ...terms, waits]))

function sometimes<T> (arbitrary: fc.Arbitrary<T>): fc.Arbitrary<T | undefined> {
  return fc.option(arbitrary, { nil: undefined, freq: 2 })
}

function seldom<T> (arbitrary: fc.Arbitrary<T>, others = 7): fc.Arbitrary<T | undefined> {
  return fc.oneof({ weight: others, arbitrary: fc.constant(undefined) }, { weight: 1, arbitrary })
}

// Generates objects without the fields that are undefined.
function record (fields: Record<string, fc.Arbitrary<unknown>>): fc.Arbitrary<any> {
  return fc.record(fields, { noNullPrototype: true })
    .map(values => Object.fromEntries(Object.entries(values).filter(([, value]) => value !== undefined)))
}

function of (weight: number, fields: Record<string, fc.Arbitrary<unknown>>): fc.WeightedArbitrary<Command> {
  return { weight, arbitrary: record(fields) }
}

// fast-check accepts only whole weights.
function scaled (choices: Array<fc.WeightedArbitrary<Command>>): Array<fc.WeightedArbitrary<Command>> {
  return choices.map(choice => ({ ...choice, weight: choice.weight * 4 }))
}

/** Returns the call of a command; undefined if the command makes none. */
export function callOf (command: Command, known: Known): Call | undefined {
  switch (command.do) {
    case 'wait': case 'option': return undefined
    case 'again': return pick(known.calls, command.nth)
    case 'balance': return { method: 'balance', args: [known.users[command.user]] }
    case 'budgets': return { method: 'budgets', args: [known.users[command.user], command.input] }
    case 'setBudget': case 'removeBudget':
      return { method: command.do, args: [known.users[command.user], command.budget, command.input] }
    case 'deduct': case 'hold': return on(command.do, { userId: known.users[command.user], ...command.input })
    case 'grant': return on('grant', { userId: known.users[command.user], ...command.input, ...until(command.input, known) })
    case 'setAllowance': case 'setOverdraft':
      return { method: command.do, args: [known.users[command.user], command.input] }
    case 'capture': case 'release': case 'extend':
      return { method: command.do, args: [pick(known.holds, command.nth) ?? UNKNOWN, named(command, known)] }
    case 'revoke': return { method: 'revoke', args: [pick(known.grants, command.nth) ?? UNKNOWN, named(command, known)] }
    case 'refund': return on('refund', { ...named(command, known), ...spentBy(command, known) })
  }
}

/** An id that does not exist. */
export const UNKNOWN = '999999999999'

function on (method: Call['method'], input: object): Call {
  return { method, args: [input] }
}

// Counts from the latest entry, and starts again after the oldest. NONE stands for no entry.
function pick<T> (list: T[], nth: number): T | undefined {
  return nth === NONE ? undefined : list[list.length - 1 - nth % list.length]
}

function until ({ expiresAt }: { expiresAt?: number }, { now }: Known) {
  return expiresAt === undefined ? {} : { expiresAt: new Date(now + expiresAt) }
}

function named ({ user, input }: { user?: number, input: object }, { users }: Known) {
  return user === undefined ? input : { userId: users[user], ...input }
}

function spentBy ({ key, nth, user }: { key?: string, nth: number, user?: number }, { records, users }: Known) {
  if (key !== undefined) return { deductKey: key, userId: users[user ?? 0] }
  return { usageId: pick(records, nth) ?? UNKNOWN }
}
