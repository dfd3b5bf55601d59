import { AdoptionUnfinishedError } from '../errors.js'
import { areDaysMissing } from './adopt.js'
import type { Queryable } from './database.js'
import { checkSchema } from './migrate.js'
import { findSchema } from './schema.js'
import { settleTimeZone } from './time-zone.js'

/** What a ledger learns of its database before the first call. */
export interface DatabaseFacts {
  /** Whether transactions are stricter than READ COMMITTED by default: a waiter would not see what it waited for. */
  strictIsolation: boolean
  /** The schema of the tables. */
  schema: string
}

/**
 * Refuses a database that this ledger would misread: another schema, or another time zone. `options.timeZone` becomes the
 * name that the database has for it.
 */
export async function start (
  db: Queryable, options: { timeZone: string, schema?: string | undefined }
): Promise<DatabaseFacts> {
  const schema = await findSchema(db, options.schema)
  await checkSchema(db, schema)
  options.timeZone = await settleTimeZone(db, schema, options.timeZone)
  if (await areDaysMissing(db, schema)) throw new AdoptionUnfinishedError(schema, options.timeZone)
  const { rows: [{ isolation }] } = await db.query(
    "select pg_catalog.current_setting('default_transaction_isolation'::pg_catalog.text) as isolation")
  return { strictIsolation: isolation !== 'read committed' && isolation !== 'read uncommitted', schema }
}
