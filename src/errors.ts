import { createError } from '@fastify/error'
import type { Balance } from './ledger/types.js'

/** 400: an argument of a method is malformed, and nothing was done. `field` names it. */
export class InvalidInputError extends createError('FST_CREDITS_INVALID', '%s %s', 400) {
  constructor (readonly field: string, readonly problem: string) {
    super(field, problem)
  }
}

/** 400: a charge by usage needs a price, and the option `prices` has none for this operation. Nothing was charged. */
export class NoPriceError extends createError('FST_CREDITS_NO_PRICE', 'There is no price for %s', 400) {
  constructor (readonly operation: string) {
    super(operation)
  }
}

/** 401: the host's `identify` found nobody behind the request. */
export class UnidentifiedError extends createError(
  'FST_CREDITS_UNIDENTIFIED', 'The request does not say who is asking', 401) {}

/** 402: the balance does not cover the credits `required`. Nothing was charged, and the key (if any) stays unused. */
export class InsufficientCreditsError extends createError(
  'FST_CREDITS_INSUFFICIENT', 'Insufficient credits: %s required, %s available', 402) {
  constructor (readonly credits: Balance, readonly required: number) {
    super(required, credits.available)
  }
}

/** 403: the request names an account that is not the one `identify` found, or `authorize` said no. */
export class ForbiddenError extends createError('FST_CREDITS_FORBIDDEN', '%s', 403) {
  constructor (reason = 'The request names an account that is not its own') {
    super(reason)
  }
}

/** 404: no hold, grant or usage record has this id, or it belongs to another account than the one named. */
export class NotFoundError extends createError('FST_CREDITS_NOT_FOUND', 'There is no such %s', 404) {}

/** 409: the hold was closed by another call, or has lapsed and cannot be extended. */
export class HoldClosedError extends createError('FST_CREDITS_HOLD_CLOSED', 'The hold is closed', 409) {}

/** 409: the grant has expired and cannot be revoked. */
export class GrantClosedError extends createError('FST_CREDITS_GRANT_CLOSED', 'The grant has expired', 409) {}

/** 409: the refund is more than the usage record has left to give back. */
export class RefundExceedsError extends createError(
  'FST_CREDITS_REFUND_EXCEEDS', 'The refund exceeds what is left of the usage record', 409) {}

/** 409: the idempotency key was used before, for another request. Nothing was charged. */
export class IdempotencyConflictError extends createError(
  'FST_CREDITS_IDEMPOTENCY_CONFLICT', 'The idempotency key was already used for a different request', 409) {}

/**
 * 503: the database cannot be reached, refused, or did not answer within `timeout`, or `maxQueue` calls are waiting. Whether
 * anything was charged is unknown: a call with an idempotency key can be repeated safely. `cause` is the database's own
 * error; at start the message says it, too.
 */
export class UnavailableError extends createError(
  'FST_CREDITS_UNAVAILABLE', 'The credits database is unavailable', 503) {
  /** Reply headers, in Fastify's convention. */
  readonly headers = { 'retry-after': '1' }

  constructor (cause: unknown, reason?: string) {
    super()
    if (reason !== undefined) this.message += `: ${reason}`
    this.cause = cause
  }
}

/** At start: the database has another encoding than UTF8, and could not hold every user, operation or key. */
export class EncodingError extends createError(
  'FST_CREDITS_ENCODING', 'The database has the encoding %s, and fastify-ai-credits needs UTF8', 500) {
  constructor (readonly encoding: string) {
    super(encoding)
  }
}

/** At registration: an option is unknown or malformed. The message names it. */
export class InvalidOptionError extends createError('FST_CREDITS_INVALID_OPTION', 'Option %s %s', 500) {
  constructor (readonly option: string, problem: string) {
    super(option, problem)
  }
}

/** At registration: the plugin is there already. In a child context it may be registered again. */
export class AlreadyRegisteredError extends createError(
  'FST_CREDITS_ALREADY_REGISTERED',
  'fastify-ai-credits is registered in this context already: register it again in a context of its own, ' +
  'app.register(async child => { await child.register(credits, { … }) })', 500) {}

/** At registration: the host, or another plugin, has decorated what this plugin decorates. */
export class NameTakenError extends createError(
  'FST_CREDITS_NAME_TAKEN',
  '%s is there already, and fastify-ai-credits needs the name: ' +
  'rename the other, or keep it out of the context that registers fastify-ai-credits', 500) {}

/** 500, the host's bug: `identify` answered something that is no user id. */
export class InvalidIdentityError extends createError(
  'FST_CREDITS_INVALID_IDENTITY', 'identify must answer a user id, { any: true }, or nothing; it answered %s', 500) {}

/** 500, the host's bug: `authorize` returned neither yes nor no, nor a promise, and takes no `done`. */
export class InvalidAuthorizationError extends createError(
  'FST_CREDITS_INVALID_AUTHORIZATION',
  'authorize must return true, false or a promise, or take a third parameter done and call it; it returned %s', 500) {}

/** 500, the host's bug: a function of a route's `config.credits` answered something that nothing can be charged by. */
export class InvalidChargeError extends createError(
  'FST_CREDITS_INVALID_CHARGE', 'config.credits.%s of %s answered something else: it %s', 500) {}

/** 500, the host's bug: the promise of `identify`, or of a function of `config.credits`, was rejected with nothing. */
export class NothingRejectedError extends createError(
  'FST_CREDITS_NOTHING_REJECTED', 'A function of config.credits, or identify, was rejected with nothing: reject with an Error', 500) {}

/**
 * 500, the host's bug: the route has `config.credits` and was declared before the plugin had loaded, so that it cannot
 * be charged. Declare it after `await app.register(…)`, or in a plugin registered after it.
 */
export class RouteTooEarlyError extends createError(
  'FST_CREDITS_ROUTE_TOO_EARLY',
  'Route %s %s has config.credits, and was declared before fastify-ai-credits had loaded: await its registration', 500) {}

/**
 * At start: the tables or the functions are missing or older than this version needs, and `migrate` is off. The message
 * says what to run.
 */
export class MigrationRequiredError extends createError('FST_CREDITS_MIGRATION_REQUIRED', '%s', 500) {
  constructor (has: { tables: number, functions: number }, needs: { tables: number, functions: number }, schema: string) {
    super(`The credits tables are at number ${has.tables} of ${needs.tables}, and the functions at ${has.functions} of ` +
      `${needs.functions}: start once with migrate: true, or run (cd node_modules/fastify-ai-credits/src/sql && ` +
      `psql "$DATABASE_URL" -v ON_ERROR_STOP=1 -v schema='${schema}' -f tables.sql -f functions.sql)`)
  }
}

/**
 * At start: a newer version of this library has migrated the database, and its functions no longer serve this one. The
 * message names the numbers.
 */
export class SchemaTooNewError extends createError(
  'FST_CREDITS_SCHEMA_TOO_NEW', '%s: upgrade fastify-ai-credits', 500) {}

/** At start: the tables were made by a version that was never released, and cannot be upgraded. */
export class SchemaTooOldError extends createError(
  'FST_CREDITS_SCHEMA_TOO_OLD',
  'The credits tables are at number %s; upgrades begin at number %s', 500) {}

/** At start: the database has other functions than this version, under the same number: one of the two was changed. */
export class FunctionsDifferError extends createError(
  'FST_CREDITS_FUNCTIONS_DIFFER',
  'The credits functions in the database are number %s as those of this version, but differ from them. To replace them: ' +
  'delete from "%s".ai_credit_functions where number = %s, and start again', 500) {}

/**
 * At start: the tables `ai_credits` and `ai_credit_usage` were there before and cannot be adopted as they are. The message
 * lists every obstacle with the statement that removes it. Nothing was changed.
 */
export class AdoptionError extends createError('FST_CREDITS_ADOPTION', '%s', 500) {}

/**
 * At start: there are more usage records to adopt than Fastify's `pluginTimeout` has time for. The message says what to
 * run. Nothing was changed.
 */
export class AdoptionTooLongError extends createError('FST_CREDITS_ADOPTION_TOO_LONG', '%s', 500) {
  constructor (seconds: number, schema: string, timeZone: string) {
    super(`There are too many usage records to adopt them within the ${seconds} seconds of Fastify's pluginTimeout. ` +
      'Give Fastify the option pluginTimeout: 0 for this start, or adopt them by hand first, with ' +
      adoptionCommand(schema, timeZone))
  }
}

/** At start: usage records were adopted and are not yet summed up by day, and `migrate` is off. The message says what to run. */
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

/** At start: the database keeps its days in another time zone than `timeZone` says. */
export class TimeZoneMismatchError extends createError(
  'FST_CREDITS_TIME_ZONE', 'Option timeZone is %s, and this database keeps its days in %s', 500) {}
