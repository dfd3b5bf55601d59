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

/** 403: the request names an account that is not the one `identify` found. */
export class ForbiddenError extends createError(
  'FST_CREDITS_FORBIDDEN', 'The request names an account that is not its own', 403) {}

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
 * 503: the database cannot be reached, refused, or did not answer within `timeout`, or `maxQueue` calls are waiting. Whether anything was charged is
 * unknown: a call with an idempotency key can be repeated safely. `cause` is the database's own error.
 */
export class UnavailableError extends createError(
  'FST_CREDITS_UNAVAILABLE', 'The credits database is unavailable', 503) {
  /** Reply headers, in Fastify's convention. */
  readonly headers = { 'retry-after': '1' }

  constructor (cause: unknown) {
    super()
    this.cause = cause
  }
}

/** At registration: an option is unknown or malformed. The message names it. */
export class InvalidOptionError extends createError('FST_CREDITS_INVALID_OPTION', 'Option %s %s', 500) {
  constructor (readonly option: string, problem: string) {
    super(option, problem)
  }
}

/** 500, the host's bug: `identify` answered something that is no user id. */
export class InvalidIdentityError extends createError(
  'FST_CREDITS_INVALID_IDENTITY', 'identify must answer a user id, { any: true }, or nothing; it answered %s', 500) {}

/** 500, the host's bug: a function of a route's `config.credits` answered something that nothing can be charged by. */
export class InvalidChargeError extends createError(
  'FST_CREDITS_INVALID_CHARGE', 'config.credits.%s of %s answered something else: it %s', 500) {}

/**
 * 500, the host's bug: the route has `config.credits` and was declared before the plugin had loaded, so that it cannot
 * be charged. Declare it after `await app.register(…)`, or in a plugin registered after it.
 */
export class RouteTooEarlyError extends createError(
  'FST_CREDITS_ROUTE_TOO_EARLY',
  'Route %s %s has config.credits, and was declared before fastify-ai-credits had loaded: await its registration', 500) {}

/** At start: the tables are missing or older than this version needs, and `migrate` is off. The message says what to run. */
export class MigrationRequiredError extends createError(
  'FST_CREDITS_MIGRATION_REQUIRED',
  'The credits tables are at migration %s of %s: start once with migrate: true, or run %s', 500) {}

/** At start: a newer version of this library has migrated the database; this one would misread it. */
export class SchemaTooNewError extends createError(
  'FST_CREDITS_SCHEMA_TOO_NEW',
  'The credits tables are at migration %s, and this version of fastify-ai-credits knows %s: upgrade it', 500) {}

/** At start: the database keeps its days in another time zone than `timeZone` says. */
export class TimeZoneMismatchError extends createError(
  'FST_CREDITS_TIME_ZONE', 'Option timeZone is %s, and this database keeps its days in %s', 500) {}
