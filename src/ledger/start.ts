import { AdoptionUnfinishedError, EncodingError } from '../errors.js'
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
  await checkEncoding(db)
  const schema = await findSchema(db, options.schema)
  await checkSchema(db, schema)
  options.timeZone = await settleTimeZone(db, schema, options.timeZone)
  if (await areDaysMissing(db, schema)) throw new AdoptionUnfinishedError(schema, options.timeZone)
  const { rows: [{ isolation }] } = await db.query(
    "select pg_catalog.current_setting('default_transaction_isolation'::pg_catalog.text) as isolation")
  return { strictIsolation: isolation !== 'read committed' && isolation !== 'read uncommitted', schema }
}

/** Refuses a database that cannot hold every text: a user, an operation or a key may be any. */
export async function checkEncoding (db: Queryable): Promise<void> {
  const { rows: [{ encoding }] } = await db.query(
    "select pg_catalog.current_setting('server_encoding'::pg_catalog.text) as encoding")
  if (encoding !== 'UTF8') throw new EncodingError(encoding)
}
