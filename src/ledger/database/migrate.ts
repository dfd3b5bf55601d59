import { FunctionsDifferError, MigrationRequiredError, SchemaTooNewError, SchemaTooOldError } from '../../errors.js'
import { citusTables, functions, tables } from '../../sql/index.js'
import { beginAdoption, endAdoption, sumDays, type Adoption } from './adopt.js'
import type { Connection, Queryable } from './types.js'
import { runReadCommitted } from './read-committed.js'
import { findSchema, inSchema } from './schema.js'
import { CATALOG_OF_CITUS, isDistributed } from './shards.js'
import { settleTimeZone } from './time-zone.js'

/** Returns the SQL that replaces the functions, for PostgreSQL or for Citus. */
export const functionScript = (onCitus: boolean): string => functions.parts.filter((_, index) => onCitus || index % 2 === 0).join('')

const newest = tables.at(-1)!.id
const oldest = tables[0]!.id

/** The versions in a database: the numbers of its tables and of its functions, 0 for none. */
interface Version {
  tables: number
  functions: number
  /** The number of the oldest library that the functions still serve. */
  oldestCaller: number
  /** The hash of the functions. */
  content: string | null
}

/** Checks that this version of the library works with the tables and the functions in the database. Throws if it does not. */
export async function checkSchema (db: Queryable, schema: string): Promise<void> {
  const version = await readVersion(db, schema)
  refuse(version, schema)
  if (version.tables < newest || version.functions < functions.number) {
    throw new MigrationRequiredError(version, { tables: newest, functions: functions.number }, schema)
  }
}

/** The options of `migrate`. */
export interface Migration extends Pick<Adoption, 'timeZone' | 'seconds' | 'onProgress'> {
  /** The option `schema`. */
  schema?: string | undefined
}

/** Creates, adopts or upgrades the tables, and replaces the functions. Several processes may do so at once. */
export async function migrate (connection: Connection, { schema: named, ...options }: Migration): Promise<void> {
  const db: Queryable = { query: (text, values) => connection.query({ text, values: values ?? [] }) }
  const schema = await findSchema(db, named)
  const version = await readVersion(db, schema)
  refuse(version, schema)
  const adoption = { connection, schema, ...options }
  if (version.tables === 0) {
    await createSchema(connection, schema)
    await beginAdoption(adoption)
  }
  for (const { id, sql } of tables) {
    if (id > version.tables) await applyTables(connection, inSchema(sql, schema))
    if (id === oldest) await endAdoption(adoption)
  }
  const onCitus = await isOnCitus(db, schema)
  if (!await hasFunctions(db, schema, version, onCitus)) await applyFunctions(connection, db, schema, onCitus)
  await runReadCommitted(connection, () => settleTimeZone(db, schema, options.timeZone))
  if (!onCitus) await sumDays(adoption) // citus.sql asks that it is done before
}

function refuse (version: Version, schema: string) {
  const { number, content } = functions
  if (version.tables > 0 && version.tables < oldest) throw new SchemaTooOldError(version.tables, oldest)
  if (version.functions > number) {
    if (version.oldestCaller <= number) return
    throw new SchemaTooNewError(
      `The credits functions serve callers from number ${version.oldestCaller} on, and this version is ${number}`)
  }
  if (version.tables > newest) {
    throw new SchemaTooNewError(`The credits tables are at number ${version.tables}, and this version knows them up to ${newest}`)
  }
  if (version.functions === number && version.content !== content) throw new FunctionsDifferError(number, schema, number)
}

async function readVersion (db: Queryable, schema: string): Promise<Version> {
  const none = { tables: 0, functions: 0, oldestCaller: 0, content: null }
  const { rows: [{ table }] } = await db.query(inSchema(
    "select pg_catalog.to_regclass(pg_catalog.format('%I.ai_credit_migrations'::pg_catalog.text, :'schema'::pg_catalog.text))::pg_catalog.text " +
    'as table', schema))
  if (table === null) return none
  const { rows: [{ id }] } = await db.query(inSchema('select coalesce(pg_catalog.max(id), 0) as id from :"schema".ai_credit_migrations', schema))
  if (id < newest) return { ...none, tables: id } // the functions are replaced after a table upgrade anyway
  const { rows: [set] } = await db.query(inSchema(
    'select number, oldest_caller, content from :"schema".ai_credit_functions order by number desc limit 1', schema))
  if (set === undefined) return { ...none, tables: id }
  return { tables: id, functions: set.number, oldestCaller: set.oldest_caller, content: set.content }
}

async function isOnCitus (db: Queryable, schema: string) {
  const { rows: [{ citus }] } = await db.query(`select ${CATALOG_OF_CITUS} as citus`)
  return citus !== null && await isDistributed(db, schema)
}

async function hasFunctions (db: Queryable, schema: string, version: Version, onCitus: boolean) {
  return version.functions >= functions.number && (!onCitus || await hasFunctionsOfCitus(db, schema))
}

// citus.sql notes for which functions it was run. These may be newer than this library, and serve it.
const FUNCTIONS_OF_CITUS = `
  select (select value from :"schema".ai_credit_settings where name::pg_catalog.text operator(pg_catalog.=) 'citus'::pg_catalog.text) as noted,
    (select content from :"schema".ai_credit_functions order by number desc limit 1) as content`

/** Returns whether the functions are those for Citus, in a database whose tables are distributed. */
export async function hasFunctionsOfCitus (db: Queryable, schema: string): Promise<boolean> {
  const { rows: [{ noted, content }] } = await db.query(inSchema(FUNCTIONS_OF_CITUS, schema))
  return noted !== null && noted === content
}

// Looks for the schema first, because `create schema if not exists` needs the right to create schemas even if it exists.
async function createSchema (connection: Connection, schema: string) {
  const { rows: [{ found }] } = await connection.query({
    text: 'select pg_catalog.to_regnamespace(pg_catalog.quote_ident($1::pg_catalog.text))::pg_catalog.text as found', values: [schema]
  })
  if (found === null) await connection.query({ text: inSchema('create schema if not exists :"schema"', schema) })
}

async function applyTables (connection: Connection, sql: string) {
  try {
    await connection.query({ text: sql })
  } catch (error) {
    await connection.query({ text: 'rollback' })
    const { constraint } = error as { constraint?: unknown }
    if (constraint !== 'ai_credit_migrations_pkey') throw error // this one says that another process was first
  }
}

// Takes the same lock as the script. A process that had to wait for it finds the functions installed.
async function applyFunctions (connection: Connection, db: Queryable, schema: string, onCitus: boolean) {
  try {
    if (onCitus) await connection.query({ text: inSchema(citusTables, schema).replace(":'time_zone'", "''") })
    await connection.query({ text: 'begin isolation level read committed' })
    await connection.query({
      text: "select pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended('fastify-ai-credits'::pg_catalog.text, 0::bigint))"
    })
    const version = await readVersion(db, schema)
    const isDone = await hasFunctions(db, schema, version, onCitus)
    await connection.query({ text: isDone ? 'commit' : inSchema(functionScript(onCitus), schema) })
  } catch (error) {
    await connection.query({ text: 'rollback' })
    throw error
  }
}
