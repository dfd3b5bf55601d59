import { UnavailableError } from '../../errors.js'

const LOCK_TIMEOUT = '55P03'

const CANCELLED = '57014'

const UNPREPARED = new Set(['26000', '42P05', '0A000'])

// Deadlock, serialization failure and cancelled statement. PostgreSQL has rolled the statement back.
const ROLLED_BACK = new Set(['40P01', '40001', CANCELLED])

// Connection failures, a server that shuts down, and a session that timed out.
const CONNECTION_LOST = /^(08|57P|25P)/

// The server is read-only, or was so when the connection was opened. After a failover, this may be the former primary.
const READ_ONLY = '25006'

// The server is read-only, or its disk is full or failing. It would refuse each call alone just as it refuses many together.
const SERVER_REFUSES = /^(25006|53100|58)/

/** Returns whether the connection was lost. It is then unknown whether its last statement was committed. */
export function isConnectionLost (error: unknown): boolean {
  const sqlState = sqlStateOf(error)
  return sqlState === undefined || CONNECTION_LOST.test(sqlState)
}

/** Returns whether the statement reached its lock timeout. */
export function isLockTimeout (error: unknown): boolean {
  return sqlStateOf(error) === LOCK_TIMEOUT
}

/** Returns whether the server cancelled the statement: by the host's statement_timeout, or on a request to cancel it. */
export function isCancelled (error: unknown): boolean {
  return sqlStateOf(error) === CANCELLED
}

/**
 * Returns whether a statement was not run because its name could not be used: the session does not have the prepared
 * statement (26000) or has the name already (42P05), the type of its result has changed (0A000), or `pg` knows the name with
 * another text.
 */
export function isUnprepared (error: unknown): boolean {
  return UNPREPARED.has(sqlStateOf(error) ?? '') || /^Prepared statements must be unique/.test(String((error as Error).message))
}

/** Returns whether the connection cannot be used again: it was lost, or its server is read-only. */
export function isUseless (error: unknown): boolean {
  return isConnectionLost(error) || sqlStateOf(error) === READ_ONLY
}

/** Returns whether the server refused the statement for a reason that does not depend on the statement. */
export function isServersFault (error: unknown): boolean {
  return SERVER_REFUSES.test(sqlStateOf(error) ?? '')
}

/** Returns whether a failed statement may be sent again. */
export function mayRepeat (error: unknown, repeatable: boolean): boolean {
  if (isOurs(error)) return false
  return ROLLED_BACK.has(sqlStateOf(error) ?? '') || (repeatable && isConnectionLost(error))
}

const LATE = 'No answer within timeout'

/** Returns the error of a call that has passed its deadline. */
export function late (): UnavailableError {
  return new UnavailableError(new Error(LATE))
}

/** Returns the error of a call that has passed its deadline because its account was locked elsewhere. */
export function lateForLock (): UnavailableError {
  return new UnavailableError(new Error(`${LATE}: the account is locked elsewhere`))
}

/** Returns the message of an error of the server or the socket. If several addresses were tried, joins their messages. */
export function reasonOf (error: unknown): string {
  const { message, code, errors = [] } = error as { message: string, code?: string, errors?: unknown[] }
  return message || errors.map(reasonOf).join(', ') || String(code)
}

/**
 * Returns the error of a call that finds `maxQueue` calls waiting. It has no stack trace: under overload there are thousands of
 * these errors a second, and to take their traces costs more than to charge.
 */
export function tooMany (maxQueue: number): UnavailableError {
  const { stackTraceLimit } = Error
  Reflect.set(Error, 'stackTraceLimit', 0) // does not throw where a host has frozen Error
  try {
    return new UnavailableError(new Error(`${maxQueue} calls are waiting (maxQueue)`))
  } finally {
    Reflect.set(Error, 'stackTraceLimit', stackTraceLimit)
  }
}

/** Returns the error that callers of the ledger get: an error of this library unchanged, any other in an UnavailableError. */
export function asCreditsError (error: unknown): unknown {
  return isOurs(error) ? error : new UnavailableError(error)
}

/** Returns whether this library has created the error. */
export function isOurs (error: unknown): boolean {
  return String((error as { code?: unknown }).code).startsWith('FST_CREDITS_')
}

// Errors of PostgreSQL have a severity. Errors of the socket (EPIPE, ECONNRESET) have none.
function sqlStateOf (error: unknown) {
  const { code, severity } = error as { code?: unknown, severity?: unknown }
  return typeof severity === 'string' ? String(code) : undefined
}
