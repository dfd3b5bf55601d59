import { Type, type TProperties } from '@sinclair/typebox'
import { InvalidOptionError } from '../errors.js'
import type { LowThreshold } from './events/types.js'
import { allowanceProblem, type RecurringAllowance } from './input/allowance.js'
import {
  compile, CreditsOrNone, Days, field, Flag, Limit, Milliseconds, PriceVersion, QueueLength, UserId, type Problem
} from './input/fields.js'
import { openPriceBook, type PriceBook } from './prices/book.js'
import type { Prices } from './prices/types.js'

/** The options of a ledger. The plugin takes them too. */
export interface LedgerOptions {
  /** The account of calls that name none. `null`: such calls are refused. Default: `'default_user'`. */
  defaultUser?: string | null
  /**
   * The credits of a new account, from 0 to 2^53 - 1, or an allowance that renews. An account is created on first access.
   * Default: 10000.
   */
  allowance?: number | RecurringAllowance
  /**
   * The prices of operations. Charges by usage need them: `quote`, and `deduct` and `capture` with `usage`. If an operation
   * has no price, these throw NoPriceError. Default: no prices.
   */
  prices?: Prices
  /**
   * The name of these prices in usage records: 1 to 255 characters. Change it whenever the prices change. Default: a hash
   * of the prices.
   */
  priceVersion?: string
  /** Days of usage history, including today. Default: 30. */
  historyDays?: number
  /** Entries on one page of history or of a statement. Default: 1000. */
  historyLimit?: number
  /**
   * The IANA name of the time zone of days. All processes on a database share its daily usage, so the first one sets the
   * time zone, and a process with another time zone does not start (TimeZoneMismatchError). Another name of the same zone
   * is accepted. Default: `'UTC'`.
   */
  timeZone?: string
  /** Milliseconds that a call may take. After that, it throws UnavailableError. Default: 5000. */
  timeout?: number
  /**
   * How many calls may wait for their turn. While so many wait, further calls throw UnavailableError at once.
   * Default: 10000.
   */
  maxQueue?: number
  /**
   * The thresholds of the event `low`. Each is a whole number of credits, from 0 to 2^53 - 1, or a whole percentage of the
   * account's total, from '1%' to '99%'. Default: `[]`, none.
   */
  low?: LowThreshold[]
  /**
   * The thresholds of the event `budget_low`. Each is a whole number of credits, from 0 to 2^53 - 1, or a whole percentage of
   * a budget's limit, from '1%' to '99%'. Default: `[]`, none.
   */
  budgetLow?: LowThreshold[]
  /**
   * The schema of the ledger's tables and functions: 1 to 63 bytes, without quotes and backslashes, not beginning with
   * `pg_`. Default: the schema in which PostgreSQL finds `ai_credits` or `ai_credit_usage`, otherwise the first one in the
   * search_path. The ledger looks it up once, at start, and then qualifies every name with it.
   */
  schema?: string
  /**
   * Whether to use named prepared statements. Set `false` behind PgBouncer before 1.21, and with PGlite's socket.
   * Default: true.
   */
  prepare?: boolean
}

const TimeZone = field<string>('time_zone', {}, isTimeZone, 'must be the IANA name of a time zone')

// An offset ('+02:00') is refused, because PostgreSQL reads it with the opposite sign.
function isTimeZone (value: unknown) {
  if (typeof value !== 'string' || !/^[A-Za-z]/.test(value)) return false
  try {
    return new Intl.DateTimeFormat('en', { timeZone: value }) !== undefined
  } catch {
    return false
  }
}

const Schema = field<string>('schema', {},
  value => typeof value === 'string' && /^[^'"\\\0]+$/.test(value) && Buffer.byteLength(value) < 64 && !value.startsWith('pg_'),
  'must be the name of a schema, without quotes, that does not begin with pg_')

const invalidUserId = compile(UserId)

const DefaultUser = field<string | null>('default_user', {},
  value => value === null || invalidUserId(value) === undefined,
  'must be null or a string of 1 to 255 characters')

const oneOffProblem = compile(CreditsOrNone)

const Allowance = field<number | RecurringAllowance>('allowance', {},
  value => oneOffProblem(value) === undefined || allowanceProblem(value) === undefined,
  `must be a whole number from 0 to ${Number.MAX_SAFE_INTEGER} or { credits, every, rollover, anchor }`)

const Low = field<LowThreshold[]>('low', {},
  value => Array.isArray(value) && value.every(isThreshold),
  "must be a list of whole numbers of credits and of percents from '1%' to '99%'")

function isThreshold (value: unknown) {
  return typeof value === 'string' ? /^[1-9]\d?%$/.test(value) : oneOffProblem(value) === undefined
}

/** The schema of each option of a ledger. */
export const ledgerSchema = {
  defaultUser: DefaultUser,
  allowance: Allowance,
  prices: Type.Any(), // openPriceBook checks it, and names the part that is wrong
  priceVersion: PriceVersion,
  historyDays: Days,
  historyLimit: Limit,
  timeZone: TimeZone,
  timeout: Milliseconds,
  maxQueue: QueueLength,
  low: Low,
  budgetLow: Low,
  schema: Schema,
  prepare: Flag
}

/** Makes a schema of options. Each option may be omitted; unknown options are refused. */
export const strict = (properties: TProperties) =>
  Type.Object(Object.fromEntries(Object.entries(properties).map(([key, type]) => [key, Type.Optional(type)])),
    { additionalProperties: false })

const checkLedgerOptions = compile(strict(ledgerSchema))

/** The defaults of a ledger's options. */
export const ledgerDefaults = {
  defaultUser: 'default_user' as string | null,
  allowance: 10_000 as number | RecurringAllowance,
  historyDays: 30,
  historyLimit: 1000,
  timeZone: 'UTC',
  timeout: 5000,
  maxQueue: 10_000,
  low: [] as LowThreshold[],
  budgetLow: [] as LowThreshold[],
  prepare: true
}

/** A ledger's options after the check, with their defaults. */
export type ParsedLedgerOptions = typeof ledgerDefaults & { prices: PriceBook, schema?: string }

/** Checks a ledger's options and returns them with the defaults. Throws InvalidOptionError, which names the option. */
export function parseLedgerOptions (options: LedgerOptions): ParsedLedgerOptions {
  refuse(checkLedgerOptions(options))
  return { ...withDefaults<typeof ledgerDefaults>(ledgerDefaults, options), prices: parsePrices(options) }
}

/** Returns the price book of the options `prices` and `priceVersion`. Throws InvalidOptionError. */
export function parsePrices ({ prices, priceVersion }: LedgerOptions): PriceBook {
  if (priceVersion !== undefined && prices === undefined) throw new InvalidOptionError('priceVersion', 'needs the option prices')
  return openPriceBook(prices === undefined ? {} : prices, priceVersion)
}

/** Throws InvalidOptionError if there is a problem. */
export function refuse (problem: Problem | undefined) {
  if (problem !== undefined) throw new InvalidOptionError(problem.field, problem.problem)
}

/** Returns the options with the defaults. An undefined option counts as omitted. */
export function withDefaults<T extends object> (defaults: object, options: object): T {
  const given = Object.entries(options).filter(([, value]) => value !== undefined)
  return { ...defaults, ...Object.fromEntries(given) } as T
}
