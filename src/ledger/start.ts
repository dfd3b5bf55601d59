import { InvalidOptionError, TimeZoneMismatchError } from '../errors.js'
import type { Queryable } from './database.js'
import { checkSchema } from './migrate.js'

const INVALID_PARAMETER_VALUE = '22023'

/** What a ledger learns of its database before the first call. */
export interface DatabaseFacts {
  /** Whether transactions are stricter than READ COMMITTED by default: a waiter would not see what it waited for. */
  strictIsolation: boolean
}

/** Refuses a database that this ledger would misread: another schema, or another time zone. */
export async function start (db: Queryable, timeZone: string): Promise<DatabaseFacts> {
  await checkSchema(db)
  await checkTimeZone(db, timeZone)
  const { rows: [{ isolation }] } = await db.query("select current_setting('default_transaction_isolation') as isolation")
  return { strictIsolation: isolation !== 'read committed' && isolation !== 'read uncommitted' }
}

async function checkTimeZone (db: Queryable, timeZone: string) {
  const kept = await useTimeZone(db, timeZone)
  if (kept !== timeZone) throw new TimeZoneMismatchError(timeZone, kept)
}

async function useTimeZone (db: Queryable, timeZone: string): Promise<string> {
  try {
    const { rows: [{ kept }] } = await db.query('select ai_credit_use_time_zone($1) as kept', [timeZone])
    return kept
  } catch (error) {
    if ((error as { code?: unknown }).code !== INVALID_PARAMETER_VALUE) throw error
    throw new InvalidOptionError('timeZone', `is ${timeZone}, which PostgreSQL does not know`)
  }
}
