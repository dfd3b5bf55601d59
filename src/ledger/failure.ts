import { UnavailableError } from '../errors.js'

// Deadlock, serialization failure, cancelled statement: PostgreSQL rolled the statement back.
const ROLLED_BACK = new Set(['40P01', '40001', '57014'])

// Connection failures, a server that goes away, and a session that was timed out.
const CONNECTION_LOST = /^(08|57P|25P)/

/** Whether the connection is gone, and with it the knowledge of whether its last statement was committed. */
export function isConnectionLost (error: unknown): boolean {
  const sqlState = sqlStateOf(error)
  return sqlState === undefined || CONNECTION_LOST.test(sqlState)
}

/** Whether a failed statement may be sent again. */
export function mayRepeat (error: unknown, repeatable: boolean): boolean {
  if (isOurs(error)) return false
  return ROLLED_BACK.has(sqlStateOf(error) ?? '') || (repeatable && isConnectionLost(error))
}

/** The error of a call whose deadline has passed. */
export function late (): UnavailableError {
  return new UnavailableError(new Error('No answer within timeout'))
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
