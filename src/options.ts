import { Type, type TProperties } from '@sinclair/typebox'
import type { FastifyInstance, FastifyReply, FastifyRequest, HookHandlerDoneFunction, RouteShorthandOptions } from 'fastify'
import { InvalidOptionError } from './errors.js'
import type { LowThreshold } from './ledger/credits-events.js'
import {
  Callable, compile, CreditsOrNone, Days, field, Flag, Limit, Milliseconds, oneOf, PriceVersion, QueueLength, UserId
} from './ledger/fields.js'
import { openPriceBook, type PriceBook } from './ledger/prices/book.js'
import type { Prices } from './ledger/prices/types.js'

/** An allowance that each period begins with. What is unspent of it at the end is gone, or carried as `rollover` says. */
export interface RecurringAllowance {
  /** Credits of each period: a whole number from 0 to 2^53 - 1. */
  credits: number
  /** The period, in the ledger's time zone. A week begins on Monday. */
  every: 'day' | 'week' | 'month'
  /** What is carried into the next period: nothing, all that is unspent, or up to `max` credits. Default: `'none'`. */
  rollover?: 'none' | 'all' | { max: number }
  /**
   * Where periods begin: with the calendar's, or counted from the account's first day, where a 31st is the last day of
   * a shorter month. Default: `'calendar'`.
   */
  anchor?: 'calendar' | 'account'
}

/** The options of a ledger; the plugin takes them too. */
export interface LedgerOptions {
  /** The account of a call that names none; `null`: such a call is refused. Default: `'default_user'`. */
  defaultUser?: string | null
  /**
   * What an account starts with that is created on first access, in credits from 0 to 2^53 - 1; or an allowance that
   * renews. Default: 10000.
   */
  allowance?: number | RecurringAllowance
  /**
   * What operations cost, for charges by usage: `quote`, and `deduct` and `capture` with `usage`. An operation without a
   * price is refused then (NoPriceError). Default: none has one.
   */
  prices?: Prices
  /**
   * Names these prices in each usage record, 1 to 255 characters: give changed prices another name. Default: a hash of
   * what they say.
   */
  priceVersion?: string
  /** Days of usage history, today included. Default: 30. */
  historyDays?: number
  /** Entries of one page of history. Default: 1000. */
  historyLimit?: number
  /**
   * IANA name of the time zone in which a day begins. All processes on a database share its daily usage, so the first
   * one decides, and one that says otherwise is refused at start; another name of the same zone will do. Default: `'UTC'`.
   */
  timeZone?: string
  /** Milliseconds in which every call is answered, if only by an UnavailableError. Default: 5000. */
  timeout?: number
  /**
   * Calls that may wait for their turn: one that comes when so many do is refused at once, with an UnavailableError.
   * Default: 10000.
   */
  maxQueue?: number
  /**
   * Thresholds of the event `low`, each a whole number of credits, from 0 to 2^53 - 1, or whole percents of the account's
   * total, from '1%' to '99%'. Default: `[]`, none.
   */
  low?: LowThreshold[]
  /**
   * The schema of the ledger's tables and functions, 1 to 63 bytes without quotes. Default: the one in which PostgreSQL
   * finds `ai_credits`, otherwise the first of the search_path; that is looked up once, at start, and all is named by it.
   */
  schema?: string
  /** Use named prepared statements; `false` behind PgBouncer before 1.21 and with PGlite's socket. Default: true. */
  prepare?: boolean
}

/**
 * Who asks: a user id; `{ any: true }` for a trusted service, which names the account itself; or `undefined`, `null`
 * or `''` for nobody (401).
 */
export type Identity = string | { any: true } | null | undefined

/**
 * A hook that says whether a request may pass, in each of Fastify's styles: it returns a promise, or takes `done` as its
 * third parameter and calls it. Or it returns true or false.
 *
 * Yes is: `true`, a promise that resolves to nothing or to something truthy, and `done()`. All else is no: an error that
 * is thrown, rejected with or given to `done`; a reply that the hook sends; `false`, `null`, `0` or `''`, also as what a
 * promise resolves to or as the second argument of `done`; and nothing at all, returned without a promise or `done`.
 */
export type Authorize = (
  this: FastifyInstance, request: FastifyRequest, reply: FastifyReply, done: HookHandlerDoneFunction
) => unknown

/** The host's own options of one of the plugin's routes. */
export type CreditsRouteOptions =
  Pick<RouteShorthandOptions, 'onRequest' | 'preValidation' | 'preHandler' | 'config' | 'constraints'>

/** The options of the plugin. */
export interface FastifyAiCreditsOptions extends LedgerOptions {
  /**
   * Where the routes go, after the prefix of the context that registers the plugin: `GET {prefix}/credits` and
   * `POST {prefix}/credits/deduct`. `''` and `'/'` stand for no prefix. Default: `'/api'`.
   */
  prefix?: string
  /**
   * Which routes there are: `false` for none, or for each route `false` or the host's own route options, so that it
   * can guard one alone. Default: true, both.
   */
  routes?: boolean | { read?: boolean | CreditsRouteOptions, deduct?: boolean | CreditsRouteOptions }
  /**
   * Binds requests to the host's authentication: returns who asks, once for each request, after validation and all
   * of the host's hooks. An account that the client names must then be its own (403). Without it the routes believe
   * the `user_id` they are sent. Default: none.
   */
  identify?: (request: FastifyRequest) => Identity | Promise<Identity>
  /**
   * Registers routes for services in other languages: grants, holds, refunds and the statement. `authorize` is called
   * for each request, after validation and all of the host's hooks, and must say yes; of a list, each must. Default:
   * there are no such routes.
   */
  management?: { authorize: Authorize | Authorize[] }
  /** Name of the `@fastify/postgres` instance to use. Default: the unnamed one. */
  pg?: string
  /** Opens a pool of the plugin's own, for a host without `@fastify/postgres`. Not together with `pg`. */
  connectionString?: string
  /** Create and upgrade the tables at start. Default: true. */
  migrate?: boolean
  /** On first start, give the default user the sample data. Default: false. */
  sampleData?: boolean
}

const TimeZone = field<string>('time_zone', {}, isTimeZone, 'must be the IANA name of a time zone')

// An offset ('+02:00') is refused, as PostgreSQL reads it with the opposite sign.
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

const Prefix = field<string>('prefix', {},
  value => typeof value === 'string' && (value === '' || value.startsWith('/')) && !value.includes('*'),
  "must start with '/' and have no '*'")

const Name = field<string>('name', {}, value => typeof value === 'string' && value !== '', 'must be a string, not empty')

const invalidUserId = compile(UserId)

const DefaultUser = field<string | null>('default_user', {},
  value => value === null || invalidUserId(value) === undefined,
  'must be null or a string of 1 to 255 characters')

const strict = (properties: TProperties) =>
  Type.Object(Object.fromEntries(Object.entries(properties).map(([key, type]) => [key, Type.Optional(type)])),
    { additionalProperties: false })

const isRouteOptions = isValid(strict({
  onRequest: Type.Any(), preValidation: Type.Any(), preHandler: Type.Any(), config: Type.Any(), constraints: Type.Any()
}))

const Route = field<boolean | CreditsRouteOptions>('route', {},
  value => typeof value === 'boolean' || isRouteOptions(value),
  'must be true, false, or { onRequest, preValidation, preHandler, config, constraints }')

const isRoutes = isValid(strict({ read: Route, deduct: Route }))

const Routes = field<FastifyAiCreditsOptions['routes']>('routes', {},
  value => typeof value === 'boolean' || isRoutes(value),
  'must be true, false, or { read, deduct }, each true, false or route options')

function isValid (schema: ReturnType<typeof strict>) {
  const problemOf = compile(schema)
  return (value: unknown) => problemOf(value) === undefined
}

const Authorization = field<Authorize | Authorize[]>('authorize', {},
  value => Array.isArray(value) ? value.length > 0 && value.every(isHook) : isHook(value), '')

// Fastify refuses an async hook that takes `done`, too: it would have two ways to say what it says.
function isHook (value: unknown) {
  return typeof value === 'function' && !(value.constructor.name === 'AsyncFunction' && value.length === 3)
}

const managementProblem = compile(Type.Object({ authorize: Authorization }, { additionalProperties: false }))

const Management = field<FastifyAiCreditsOptions['management']>('management', {},
  value => managementProblem(value) === undefined,
  'must be { authorize }: a hook that lets requests through or a list of them, an async one without done')

const rolloverProblem = compile(Type.Object({ max: CreditsOrNone }, { additionalProperties: false }))

const Rollover = field<RecurringAllowance['rollover']>('rollover', {},
  value => value === 'none' || value === 'all' || rolloverProblem(value) === undefined,
  "must be 'none', 'all' or { max }")

/** What is wrong with an allowance that renews. */
export const allowanceProblem = compile(Type.Object({
  credits: CreditsOrNone,
  every: oneOf('day', 'week', 'month'),
  rollover: Type.Optional(Rollover),
  anchor: Type.Optional(oneOf('calendar', 'account'))
}, { additionalProperties: false }))

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

const ledgerSchema = {
  defaultUser: DefaultUser,
  allowance: Allowance,
  prices: Type.Any(), // openPriceBook checks it, and names the very part that is wrong
  priceVersion: PriceVersion,
  historyDays: Days,
  historyLimit: Limit,
  timeZone: TimeZone,
  timeout: Milliseconds,
  maxQueue: QueueLength,
  low: Low,
  schema: Schema,
  prepare: Flag
}

const checkLedgerOptions = compile(strict(ledgerSchema))

const checkPluginOptions = compile(strict({
  ...ledgerSchema,
  prefix: Prefix,
  routes: Routes,
  identify: Callable,
  management: Management,
  pg: Name,
  connectionString: Name,
  migrate: Flag,
  sampleData: Flag
}))

const ledgerDefaults = {
  defaultUser: 'default_user' as string | null,
  allowance: 10_000 as number | RecurringAllowance,
  historyDays: 30,
  historyLimit: 1000,
  timeZone: 'UTC',
  timeout: 5000,
  maxQueue: 10_000,
  low: [] as LowThreshold[],
  prepare: true
}

const pluginDefaults = { ...ledgerDefaults, prefix: '/api', routes: true, migrate: true, sampleData: false }

/** A ledger's options, complete. */
export type ParsedLedgerOptions = typeof ledgerDefaults & { prices: PriceBook, schema?: string }

/** A ledger's options with the defaults filled in. Throws InvalidOptionError, which names the option. */
export function parseLedgerOptions (options: LedgerOptions): ParsedLedgerOptions {
  refuse(checkLedgerOptions(options))
  return { ...withDefaults<typeof ledgerDefaults>(ledgerDefaults, options), prices: parsePrices(options) }
}

/** The plugin's options with the defaults filled in. Throws InvalidOptionError, which names the option. */
export function parsePluginOptions (options: FastifyAiCreditsOptions) {
  refuse(checkPluginOptions(options))
  const parsed = withDefaults<typeof pluginDefaults & Omit<FastifyAiCreditsOptions, 'prices'>>(pluginDefaults, options)
  if (parsed.pg !== undefined && parsed.connectionString !== undefined) {
    throw new InvalidOptionError('connectionString', 'opens a pool of its own and cannot go together with pg')
  }
  if (parsed.sampleData && parsed.defaultUser === null) {
    throw new InvalidOptionError('sampleData', 'needs a defaultUser to give the sample data to')
  }
  return { ...parsed, prices: parsePrices(options), prefix: parsed.prefix.replace(/\/+$/, '') }
}

function parsePrices ({ prices, priceVersion }: LedgerOptions): PriceBook {
  if (priceVersion !== undefined && prices === undefined) throw new InvalidOptionError('priceVersion', 'needs prices to name')
  return openPriceBook(prices === undefined ? {} : prices, priceVersion)
}

function refuse (problem: ReturnType<typeof checkLedgerOptions>) {
  if (problem !== undefined) throw new InvalidOptionError(problem.field, problem.problem)
}

// An option that is undefined is an option left out.
function withDefaults<T extends object> (defaults: object, options: object): T {
  const given = Object.entries(options).filter(([, value]) => value !== undefined)
  return { ...defaults, ...Object.fromEntries(given) } as T
}
