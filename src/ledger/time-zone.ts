import { InvalidOptionError, TimeZoneMismatchError } from '../errors.js'
import type { Queryable } from './database.js'
import { inSchema } from './schema.js'

const INVALID_PARAMETER_VALUE = '22023'

/** Has the database keep its days in the time zone, unless it does so in another: then it throws TimeZoneMismatchError. */
export async function checkTimeZone (db: Queryable, schema: string, timeZone: string) {
  const kept = await useTimeZone(db, schema, timeZone)
  if (kept !== timeZone) throw new TimeZoneMismatchError(timeZone, kept)
}

async function useTimeZone (db: Queryable, schema: string, timeZone: string): Promise<string> {
  try {
    const { rows: [{ kept }] } = await db.query(inSchema('select :"schema".ai_credit_use_time_zone($1::varchar) as kept', schema), [timeZone])
    return kept
  } catch (error) {
    if ((error as { code?: unknown }).code !== INVALID_PARAMETER_VALUE) throw error
    throw new InvalidOptionError('timeZone', `is ${timeZone}, which PostgreSQL does not know`)
  }
}
