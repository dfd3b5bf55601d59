import fc from 'fast-check'
import type { Credits, LedgerOptions, RecurringAllowance } from '../../src/index.js'

const SECOND = 1000
const HOUR = 3600 * SECOND
const DAY = 24 * HOUR

/** A method of the ledger and what it is given. */
export interface Call {
  method: keyof Credits
  args: any[]
}

/** What happens next, as fast-check makes it up and prints it. It names accounts, holds, grants and records by number. */
export type Command =
  | { do: 'balance' | 'deduct' | 'hold' | 'grant' | 'setAllowance' | 'setOverdraft', user: number, input: any }
  | { do: 'capture' | 'release' | 'extend' | 'revoke', user?: number, nth: number, input: any }
  | { do: 'refund', user?: number, nth: number, key?: string, input: any }
  | { do: 'again', nth: number }
  | { do: 'wait', ms: number }
  | { do: 'option', allowance: number | RecurringAllowance }

export type Option = NonNullable<LedgerOptions['allowance']>

/** The ids that a sequence has come by, oldest first. */
export interface Known {
  users: string[]
  calls: Call[]
  holds: string[]
  grants: string[]
  records: string[]
  now: number
}

// Durations that often end together, and with the calendar's periods.
const duration = fc.constantFrom(SECOND, HOUR, 6 * HOUR, DAY)
const waiting = fc.oneof(
  { weight: 6, arbitrary: fc.constantFrom(SECOND, HOUR, 6 * HOUR, DAY) },
  { weight: 1, arbitrary: fc.constantFrom(1, SECOND - 1, 3 * DAY, 7 * DAY, 31 * DAY, 100 * DAY) },
  { weight: 1, arbitrary: fc.integer({ min: 1, max: 3 * DAY }) })
/** By how much the clock moves while calls are under way. */
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
const NONE = 13 // not at an end of the range, as fast-check likes those
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

/** When a sequence begins: a full hour in four years, one of them a leap year. */
export const start: fc.Arbitrary<number> = fc.nat(4 * 365 * 24).map(hours => Date.UTC(2026, 0, 1) + hours * HOUR)

/** What a sequence begins with: nothing, or an account that may run into debt, which takes many calls to come about. */
export const prelude: fc.Arbitrary<Command[]> = fc.constantFrom(
  [], [{ do: 'setOverdraft', user: 0, input: 30 }, { do: 'deduct', user: 0, input: { credits: 30, operation: 'chat' } }])

const spending = { credits, operation, metadata: sometimes(metadata), idempotencyKey: seldom(key) }
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
  of(2, { do: fc.constant('again'), nth })
]

const extending = of(1, { do: fc.constant('extend'), ...target, input: record({ ttl: duration }) })

const terms: Array<fc.WeightedArbitrary<Command>> = [
  of(1, { do: fc.constant('setAllowance'), user, input: fc.option(plan) }),
  of(1, { do: fc.constant('setOverdraft'), user, input: overdraft }),
  of(0.25, { do: fc.constant('option'), allowance: option })
]

const waits = of(8, { do: fc.constant('wait'), ms: waiting })

/** Any command. */
export const command: fc.Arbitrary<Command> = fc.oneof(...scaled([...posting, extending, ...terms, waits]))

/** Commands whose place in the account's order its statement tells, or that change nothing. */
export const concurrentCommand: fc.Arbitrary<Command> = fc.oneof(...scaled(posting))

/** The others. */
export const quietCommand: fc.Arbitrary<Command> = fc.oneof(...scaled([extending, ...terms, waits]))

function sometimes<T> (arbitrary: fc.Arbitrary<T>): fc.Arbitrary<T | undefined> {
  return fc.option(arbitrary, { nil: undefined, freq: 2 })
}

function seldom<T> (arbitrary: fc.Arbitrary<T>): fc.Arbitrary<T | undefined> {
  return fc.oneof({ weight: 7, arbitrary: fc.constant(undefined) }, { weight: 1, arbitrary })
}

// An object of those fields that are not undefined.
function record (fields: Record<string, fc.Arbitrary<unknown>>): fc.Arbitrary<any> {
  return fc.record(fields, { noNullPrototype: true })
    .map(values => Object.fromEntries(Object.entries(values).filter(([, value]) => value !== undefined)))
}

function of (weight: number, fields: Record<string, fc.Arbitrary<unknown>>): fc.WeightedArbitrary<Command> {
  return { weight, arbitrary: record(fields) }
}

// fast-check takes whole weights only.
function scaled (choices: Array<fc.WeightedArbitrary<Command>>): Array<fc.WeightedArbitrary<Command>> {
  return choices.map(choice => ({ ...choice, weight: choice.weight * 4 }))
}

/** The call that a command stands for; undefined for one that calls nothing. */
export function callOf (command: Command, known: Known): Call | undefined {
  switch (command.do) {
    case 'wait': case 'option': return undefined
    case 'again': return pick(known.calls, command.nth)
    case 'balance': return { method: 'balance', args: [known.users[command.user]] }
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

/** An id that nothing has. */
export const UNKNOWN = '999999999999'

function on (method: Call['method'], input: object): Call {
  return { method, args: [input] }
}

// The latest come first, over and over; one number is none of them.
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
