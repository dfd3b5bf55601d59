import { AdoptionUnfinishedError, CitusFunctionsError, EncodingError, IsolationError } from '../../errors.js'
import { areDaysMissing } from './adopt.js'
import type { Queryable } from './types.js'
import { checkSchema, hasFunctionsOfCitus } from './migrate.js'
import { findSchema } from './schema.js'
import { CATALOG_OF_CITUS, isDistributed, readShards, type ShardMap } from './shards.js'
import { settleTimeZone } from './time-zone.js'

/** The facts about the database that a ledger needs before its first call. */
export interface DatabaseFacts {
  /** Whether transactions are by default stricter than READ COMMITTED; see runReadCommitted. */
  strictIsolation: boolean
  /** The schema of the tables. */
  schema: string
  /** Where accounts live, if Citus has distributed the tables; null: they are on one server. */
  shards: ShardMap | null
}

// So Citus costs no query of its own in a database without it.
const SETTINGS = `
  select pg_catalog.current_setting('default_transaction_isolation'::pg_catalog.text) as isolation,
    ${CATALOG_OF_CITUS} as citus`

/**
 * Checks that this ledger can work with the database: its encoding, tables, functions, time zone and adopted records. Sets
 * `options.timeZone` to the name that the database has for the time zone. Throws an error that says what is wrong.
 */
export async function start (
  db: Queryable, options: { timeZone: string, schema?: string | undefined }
): Promise<DatabaseFacts> {
  await checkEncoding(db)
  const schema = await findSchema(db, options.schema)
  await checkSchema(db, schema)
  options.timeZone = await settleTimeZone(db, schema, options.timeZone)
  const { rows: [{ isolation, citus }] } = await db.query(SETTINGS)
  const strictIsolation = isolation !== 'read committed' && isolation !== 'read uncommitted'
  if (citus === null || !await isDistributed(db, schema)) {
    if (await areDaysMissing(db, schema)) throw new AdoptionUnfinishedError(schema, options.timeZone)
    return { strictIsolation, schema, shards: null }
  }
  if (!await hasFunctionsOfCitus(db, schema)) throw new CitusFunctionsError(schema)
  if (strictIsolation) throw new IsolationError(isolation)
  return { strictIsolation, schema, shards: await readShards(db, schema) }
}

/** Checks that the database can store every user id, operation and key. Throws EncodingError if its encoding is not UTF8. */
export async function checkEncoding (db: Queryable): Promise<void> {
  const { rows: [{ encoding }] } = await db.query(
    "select pg_catalog.current_setting('server_encoding'::pg_catalog.text) as encoding")
  if (encoding !== 'UTF8') throw new EncodingError(encoding)
}
