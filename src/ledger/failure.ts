import { UnavailableError } from '../errors.js'

const LOCK_TIMEOUT = '55P03'

const CANCELLED = '57014'

const UNPREPARED = new Set(['26000', '42P05', '0A000'])

// Deadlock, serialization failure, cancelled statement: PostgreSQL rolled the statement back.
const ROLLED_BACK = new Set(['40P01', '40001', CANCELLED])

// Connection failures, a server that goes away, and a session that was timed out.
const CONNECTION_LOST = /^(08|57P|25P)/

// A server, or one that was so when the connection was opened, that writes nothing: after a failover, the one of before.
const READ_ONLY = '25006'

// A full disk, a failing one, and a server that writes nothing refuse one call as they do many.
const SERVER_REFUSES = /^(25006|53100|58)/

/** Whether the connection is gone, and with it the knowledge of whether its last statement was committed. */
export function isConnectionLost (error: unknown): boolean {
  const sqlState = sqlStateOf(error)
  return sqlState === undefined || CONNECTION_LOST.test(sqlState)
}

/** Whether a statement waited for a lock for as long as it might. */
export function isLockTimeout (error: unknown): boolean {
  return sqlStateOf(error) === LOCK_TIMEOUT
}

/** Whether the server cancelled a statement: it took longer than the host's statement_timeout, or somebody wished it. */
export function isCancelled (error: unknown): boolean {
  return sqlStateOf(error) === CANCELLED
}

/**
 * Whether a statement was not run as its name was of no use: the session has forgotten what was prepared (26000) or has it
 * already (42P05), its result would have another type now (0A000), or `pg` knows the name with another text.
 */
export function isUnprepared (error: unknown): boolean {
  return UNPREPARED.has(sqlStateOf(error) ?? '') || /^Prepared statements must be unique/.test(String((error as Error).message))
}

/** Whether the connection is of no use to anybody any more. */
export function isUseless (error: unknown): boolean {
  return isConnectionLost(error) || sqlStateOf(error) === READ_ONLY
}

/** Whether the server refused a statement for reasons of its own, whatever was in it. */
export function isServersFault (error: unknown): boolean {
  return SERVER_REFUSES.test(sqlStateOf(error) ?? '')
}

/** Whether a failed statement may be sent again. */
export function mayRepeat (error: unknown, repeatable: boolean): boolean {
  if (isOurs(error)) return false
  return ROLLED_BACK.has(sqlStateOf(error) ?? '') || (repeatable && isConnectionLost(error))
}

const LATE = 'No answer within timeout'

/** The error of a call whose deadline has passed. */
export function late (): UnavailableError {
  return new UnavailableError(new Error(LATE))
}

/** The same, where it is known that the account was locked elsewhere. */
export function lateForLock (): UnavailableError {
  return new UnavailableError(new Error(`${LATE}: the account is locked elsewhere`))
}

/** What an error of the server or the socket says. Of several addresses that were tried, each says something. */
export function reasonOf (error: unknown): string {
  const { message, code, errors = [] } = error as { message: string, code?: string, errors?: unknown[] }
  return message || errors.map(reasonOf).join(', ') || String(code)
}

/** The error of a call that finds as many waiting as may be. */
export function tooMany (maxQueue: number): UnavailableError {
  return new UnavailableError(new Error(`${maxQueue} calls are waiting (maxQueue)`))
}

/** The error as callers of the ledger see it. */
export function asCreditsError (error: unknown): unknown {
  return isOurs(error) ? error : new UnavailableError(error)
}

/** Whether the error is one of this library's. */
export function isOurs (error: unknown): boolean {
  return String((error as { code?: unknown }).code).startsWith('FST_CREDITS_')
}

// What PostgreSQL answers has a severity; what the socket says (EPIPE, ECONNRESET) has none.
function sqlStateOf (error: unknown) {
  const { code, severity } = error as { code?: unknown, severity?: unknown }
  return typeof severity === 'string' ? String(code) : undefined
}
