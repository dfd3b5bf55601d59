import { InvalidOptionError, TimeZoneMismatchError } from '../errors.js'
import type { Queryable } from './database.js'
import { checkSchema } from './migrate.js'
import { findSchema, inSchema } from './schema.js'

const INVALID_PARAMETER_VALUE = '22023'

/** What a ledger learns of its database before the first call. */
export interface DatabaseFacts {
  /** Whether transactions are stricter than READ COMMITTED by default: a waiter would not see what it waited for. */
  strictIsolation: boolean
  /** The schema of the tables. */
  schema: string
}

/** Refuses a database that this ledger would misread: another schema, or another time zone. */
export async function start (
  db: Queryable, { timeZone, schema: named }: { timeZone: string, schema: string | undefined }
): Promise<DatabaseFacts> {
  const schema = await findSchema(db, named)
  await checkSchema(db, schema)
  await checkTimeZone(db, schema, timeZone)
  const { rows: [{ isolation }] } = await db.query(
    "select pg_catalog.current_setting('default_transaction_isolation'::pg_catalog.text) as isolation")
  return { strictIsolation: isolation !== 'read committed' && isolation !== 'read uncommitted', schema }
}

async function checkTimeZone (db: Queryable, schema: string, timeZone: string) {
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
