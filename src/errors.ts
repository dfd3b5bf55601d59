import { createError } from '@fastify/error'
import type { BudgetPeriod, BudgetRefusal } from './ledger/budgets/types.js'
import type { Balance } from './ledger/posting/balance.js'

/** 400: an argument is invalid. `field` names it. Nothing was changed. */
export class InvalidInputError extends createError('FST_CREDITS_INVALID', '%s %s', 400) {
  constructor (readonly field: string, readonly problem: string) {
    super(field, problem)
  }
}

/** 400: a charge by usage needs a price, and the option `prices` has none for `operation`. Nothing was charged. */
export class NoPriceError extends createError('FST_CREDITS_NO_PRICE', 'There is no price for %s', 400) {
  constructor (readonly operation: string) {
    super(operation)
  }
}

/** 401: the host's `identify` returned no user for the request. */
export class UnidentifiedError extends createError(
  'FST_CREDITS_UNIDENTIFIED', 'The request does not say who is asking', 401) {}

/** 402: the balance does not cover the `required` credits. Nothing was charged, and the idempotency key stays unused. */
export class InsufficientCreditsError extends createError(
  'FST_CREDITS_INSUFFICIENT', 'Insufficient credits: %s required, %s available', 402) {
  constructor (readonly credits: Balance, readonly required: number) {
    super(required, credits.available)
  }
}

/**
 * 402: a budget does not have the `required` credits left. If several limits do not have them, the error names the one that resets
 * last. `credits` is the account's balance. Nothing was charged, and the idempotency key stays unused.
 */
export class BudgetExceededError extends createError(
  'FST_CREDITS_BUDGET_EXCEEDED', 'Budget %s is exceeded: %s required, %s left', 402) implements BudgetRefusal {
  readonly budget: string
  readonly period: BudgetPeriod
  readonly limit: number
  readonly used: number
  readonly held: number
  readonly resetsAt: Date | null

  constructor (refusal: BudgetRefusal, readonly credits: Balance, readonly required: number) {
    super(refusal.budget, required, Math.max(0, refusal.limit - refusal.used - refusal.held))
    this.budget = refusal.budget
    this.period = refusal.period
    this.limit = refusal.limit
    this.used = refusal.used
    this.held = refusal.held
    this.resetsAt = refusal.resetsAt
  }
}

/** 403: the request names another account or budget than `identify` returned, or `authorize` refused it. */
export class ForbiddenError extends createError('FST_CREDITS_FORBIDDEN', '%s', 403) {
  constructor (reason = 'The request names an account that is not its own') {
    super(reason)
  }
}

/**
 * 404: no hold, grant or usage record has this id, or it belongs to another account than the call names; or the account has no
 * budget of this name, and no template that makes it.
 */
export class NotFoundError extends createError('FST_CREDITS_NOT_FOUND', 'There is no such %s', 404) {}

/** 409: the hold was closed by another call, or has lapsed and cannot be extended. */
export class HoldClosedError extends createError('FST_CREDITS_HOLD_CLOSED', 'The hold is closed', 409) {}

/** 409: the grant has expired and cannot be revoked. */
export class GrantClosedError extends createError('FST_CREDITS_GRANT_CLOSED', 'The grant has expired', 409) {}

/** 409: the budget cannot be removed, because others are within it. */
export class BudgetInUseError extends createError('FST_CREDITS_BUDGET_IN_USE', 'Other budgets are within this one', 409) {}

/** 409: the refund is larger than the part of the usage record that is not yet refunded. */
export class RefundExceedsError extends createError(
  'FST_CREDITS_REFUND_EXCEEDS', 'The refund exceeds what is left of the usage record', 409) {}

/** 409: the idempotency key was used before, with a different request. Nothing was charged. */
export class IdempotencyConflictError extends createError(
  'FST_CREDITS_IDEMPOTENCY_CONFLICT', 'The idempotency key was already used for a different request', 409) {}

/**
 * 503: the database cannot be reached, refused the call or did not answer within `timeout`; or `maxQueue` calls are waiting;
 * or the ledger is closed. It is unknown whether anything was charged. A call with an idempotency key can be repeated safely.
 * `cause` is the underlying error. At start, the message includes it.
 */
export class UnavailableError extends createError(
  'FST_CREDITS_UNAVAILABLE', 'The credits database is unavailable', 503) {
  /** Fastify adds these headers to the reply. */
  readonly headers = { 'retry-after': '1' }

  constructor (cause: unknown, reason?: string) {
    super()
    if (reason !== undefined) this.message += `: ${reason}`
    this.cause = cause
  }
}

/** At start: the database's encoding is not UTF8. It cannot store every user id, operation and key. */
export class EncodingError extends createError(
  'FST_CREDITS_ENCODING', 'The database has the encoding %s, and fastify-ai-credits needs UTF8', 500) {
  constructor (readonly encoding: string) {
    super(encoding)
  }
}

/**
 * At start: Citus has distributed the tables, and transactions are by default stricter than READ COMMITTED. Each call would
 * need a transaction block of its own, and Citus runs no function where its account lives in a transaction block.
 */
export class IsolationError extends createError(
  'FST_CREDITS_ISOLATION',
  "On Citus, default_transaction_isolation must be 'read committed', and it is '%s': otherwise each call needs a transaction " +
  'block, in which Citus does not delegate functions to the node of the account. Set it for the role of the gateway: ' +
  "alter role … set default_transaction_isolation = 'read committed', or for the database: " +
  "alter database … set default_transaction_isolation = 'read committed'", 500) {
  constructor (readonly isolation: string) {
    super(isolation)
  }
}

/** At registration: an option is unknown or malformed. The message names it. */
export class InvalidOptionError extends createError('FST_CREDITS_INVALID_OPTION', 'Option %s %s', 500) {
  constructor (readonly option: string, problem: string) {
    super(option, problem)
  }
}

/** At registration: the plugin is already registered in this context. A child context may register it again. */
export class AlreadyRegisteredError extends createError(
  'FST_CREDITS_ALREADY_REGISTERED',
  'fastify-ai-credits is registered in this context already: register it again in a context of its own, ' +
  'app.register(async child => { await child.register(credits, { … }) })', 500) {}

/** At registration: the host or another plugin already has a decorator with a name that this plugin needs. */
export class NameTakenError extends createError(
  'FST_CREDITS_NAME_TAKEN',
  '%s is there already, and fastify-ai-credits needs that name: ' +
  'rename the existing one, or keep it out of the context that registers fastify-ai-credits', 500) {}

/** 500, a bug of the host: `identify` returned something that is not an identity. */
export class InvalidIdentityError extends createError(
  'FST_CREDITS_INVALID_IDENTITY',
  'identify must return a user id, { userId, budget }, { any: true }, or nothing; it returned %s', 500) {}

/** 500, a bug of the host: `authorize` does not take `done`, and returned neither a promise nor a decision. */
export class InvalidAuthorizationError extends createError(
  'FST_CREDITS_INVALID_AUTHORIZATION',
  'authorize must return true, false or a promise, or take a third parameter done and call it; it returned %s', 500) {}

/** 500, a bug of the host: a function in a route's `config.credits` returned an invalid value. */
export class InvalidChargeError extends createError(
  'FST_CREDITS_INVALID_CHARGE', 'config.credits.%s of %s returned an invalid value: it %s', 500) {}

/** 500, a bug of the host: `identify` or a function in `config.credits` rejected its promise without an error. */
export class NothingRejectedError extends createError(
  'FST_CREDITS_NOTHING_REJECTED',
  'identify, or a function in config.credits, rejected its promise without an error: reject with an Error', 500) {}

/**
 * 500, a bug of the host: the route has `config.credits`, but was declared before the plugin had loaded. It cannot be
 * charged. Declare it after `await app.register(…)`, or in a plugin that is registered after this one.
 */
export class RouteTooEarlyError extends createError(
  'FST_CREDITS_ROUTE_TOO_EARLY',
  'Route %s %s has config.credits, and was declared before fastify-ai-credits had loaded: await its registration', 500) {}

/**
 * At start: the tables or the functions are missing or older than this version needs, and `migrate` is off. The message
 * contains the command to run.
 */
export class MigrationRequiredError extends createError('FST_CREDITS_MIGRATION_REQUIRED', '%s', 500) {
  constructor (has: { tables: number, functions: number }, needs: { tables: number, functions: number }, schema: string) {
    super(`The credits tables are at number ${has.tables} of ${needs.tables}, and the functions at ${has.functions} of ` +
      `${needs.functions}: start once with migrate: true, or run (cd node_modules/fastify-ai-credits/src/sql && ` +
      `psql "$DATABASE_URL" -v ON_ERROR_STOP=1 -v schema='${schema}' -f tables.sql -f functions.sql)`)
  }
}

/**
 * At start: a newer version of this library has migrated the database, and this version no longer works with it. The
 * message contains the version numbers of both.
 */
export class SchemaTooNewError extends createError(
  'FST_CREDITS_SCHEMA_TOO_NEW', '%s: upgrade fastify-ai-credits', 500) {}

/** At start: a version that was never released has created the tables. They cannot be upgraded. */
export class SchemaTooOldError extends createError(
  'FST_CREDITS_SCHEMA_TOO_OLD',
  'The credits tables are at number %s; upgrades begin at number %s', 500) {}

/**
 * At start: Citus has distributed the tables, and the functions are not those for Citus of this version, and `migrate` is off. The
 * message contains the command to run.
 */
export class CitusFunctionsError extends createError('FST_CREDITS_CITUS_FUNCTIONS', '%s', 500) {
  constructor (schema: string) {
    super('Citus has distributed the credits tables, and the functions are not those for Citus of this version: run ' +
      '(cd node_modules/fastify-ai-credits/src/sql && ' +
      `psql "$DATABASE_URL" -v ON_ERROR_STOP=1 -v schema='${schema}' -f tables.sql -f citus.sql)`)
  }
}

/** At start: the functions in the database have this version's number but other content, because one of the two was edited. */
export class FunctionsDifferError extends createError(
  'FST_CREDITS_FUNCTIONS_DIFFER',
  'The credits functions in the database have the number %s, like those of this version, but differ from them. To replace ' +
  'them: delete from "%s".ai_credit_functions where number = %s, and start again', 500) {}

/**
 * At start: the tables `ai_credits` and `ai_credit_usage` existed before the library, and cannot be adopted in their present
 * form. The message lists every obstacle, each with the statement that removes it. Nothing was changed.
 */
export class AdoptionError extends createError('FST_CREDITS_ADOPTION', '%s', 500) {}

/**
 * At start: there are too many usage records to adopt within Fastify's `pluginTimeout`. The message contains the command to
 * run. Nothing was changed, unless an adoption had begun before.
 */
export class AdoptionTooLongError extends createError('FST_CREDITS_ADOPTION_TOO_LONG', '%s', 500) {
  constructor (seconds: number, schema: string, timeZone: string) {
    super(`There are too many usage records to adopt them within the ${seconds} seconds of Fastify's pluginTimeout. ` +
      'Give Fastify the option pluginTimeout: 0 for this start, or adopt them by hand first, with ' +
      adoptionCommand(schema, timeZone))
  }
}

/**
 * At start: the daily usage of adopted usage records is not complete, and `migrate` is off. The message contains the
 * command to run.
 */
export class AdoptionUnfinishedError extends createError('FST_CREDITS_ADOPTION_UNFINISHED', '%s', 500) {
  constructor (schema: string, timeZone: string) {
    super(`The usage records that were adopted are not yet summed up by day: start once with migrate: true, or run ${
      adoptionCommand(schema, timeZone)}`)
  }
}

function adoptionCommand (schema: string, timeZone: string) {
  return '(cd node_modules/fastify-ai-credits/src/sql && psql "$DATABASE_URL" -v ON_ERROR_STOP=1 ' +
    `-v schema=${schema} -v time_zone=${timeZone} -f tables.sql -f functions.sql -f daily_usage.sql)`
}

/** At start: the database computes daily usage in another time zone than the option `timeZone`. */
export class TimeZoneMismatchError extends createError(
  'FST_CREDITS_TIME_ZONE', 'Option timeZone is %s, and this database keeps its days in %s', 500) {}
