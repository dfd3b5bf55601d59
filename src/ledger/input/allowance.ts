import { Type } from '@sinclair/typebox'
import { compile, CreditsOrNone, field, oneOf } from './fields.js'

/**
 * An allowance that renews: an account gets it at the beginning of each period. At the end of the period, unspent credits
 * expire or are carried over, as `rollover` says.
 */
export interface RecurringAllowance {
  /** Credits for each period: a whole number from 0 to 2^53 - 1. */
  credits: number
  /** The length of a period, in the ledger's time zone. A calendar week begins on Monday. */
  every: 'day' | 'week' | 'month'
  /** How many unspent credits are carried into the next period: none, all, or at most `max`. Default: `'none'`. */
  rollover?: 'none' | 'all' | { max: number }
  /**
   * When periods begin. `'calendar'`: with the calendar's days, weeks and months. `'account'`: counted from the account's
   * first day; in shorter months, the last day replaces a 29th, 30th or 31st. Default: `'calendar'`.
   */
  anchor?: 'calendar' | 'account'
}

const rolloverProblem = compile(Type.Object({ max: CreditsOrNone }, { additionalProperties: false }))

const Rollover = field<RecurringAllowance['rollover']>('rollover', {},
  value => value === 'none' || value === 'all' || rolloverProblem(value) === undefined,
  "must be 'none', 'all' or { max }")

/** Returns the first problem of an allowance that renews, or undefined. */
export const allowanceProblem = compile(Type.Object({
  credits: CreditsOrNone,
  every: oneOf('day', 'week', 'month'),
  rollover: Type.Optional(Rollover),
  anchor: Type.Optional(oneOf('calendar', 'account'))
}, { additionalProperties: false }))
