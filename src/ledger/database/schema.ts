import { InvalidOptionError } from '../../errors.js'
import type { Queryable } from './types.js'

// Every name is qualified with its schema. Otherwise a user who may create objects in a schema of the search_path could
// replace the types and functions that this query uses.
const CREDITS_TABLES = `
  select n.nspname::pg_catalog.text as schema, c.relname::pg_catalog.text as name,
    pg_catalog.pg_table_is_visible(c.oid)::pg_catalog.text as visible
  from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid operator(pg_catalog.=) c.relnamespace
  where c.relname operator(pg_catalog.=) 'ai_credits'::pg_catalog.name
    or c.relname operator(pg_catalog.=) 'ai_credit_usage'::pg_catalog.name`

const FIRST_SCHEMA = 'select pg_catalog.current_schema()::pg_catalog.text as schema'

interface Table {
  schema: string
  name: string
  /** Whether the search_path reaches the table. Not a boolean, because the host may have changed how `pg` parses booleans. */
  visible: 'true' | 'false'
}

/**
 * Returns the schema of the ledger's tables: the one that the option `schema` names, otherwise the one in which PostgreSQL
 * finds ai_credits or ai_credit_usage, otherwise the first one in the search_path. Throws InvalidOptionError if the tables
 * are only in schemas that the search_path does not reach, because new tables would give every account its allowance again.
 * Also throws it if the two tables are in different schemas, or if the search_path has no schema.
 */
export async function findSchema (db: Queryable, named: string | undefined): Promise<string> {
  if (named !== undefined) return named
  const { rows } = await db.query(CREDITS_TABLES)
  const tables = (rows as Table[]).filter(({ schema }) => !schema.startsWith('pg_'))
  const visible = tables.filter(({ visible }) => visible === 'true')
  // If the search_path reaches one of the two tables only, the other one counts wherever it is.
  const found = schemasOf([...visible, ...tables.filter(({ name }) => !visible.some(table => table.name === name))])
  if (visible.length === 0 && found.length > 0) {
    refuse(`there are credits tables in ${found.join(', ')}, which the search_path does not reach`)
  }
  if (found.length > 1) refuse(`ai_credits and ai_credit_usage are in different schemas: ${found.join(', ')}`)
  if (found.length === 1) return found[0]!
  const { rows: [first] } = await db.query(FIRST_SCHEMA)
  return first.schema ?? refuse('the search_path has no schema that exists')
}

function schemasOf (tables: Table[]) {
  return [...new Set(tables.map(({ schema }) => schema))]
}

function refuse (problem: string): never {
  throw new InvalidOptionError('schema', `must be given: ${problem}`)
}

const texts = new Map<string, string>()

/** Replaces the tokens for the schema in SQL, like psql: `:"schema"` by a quoted identifier, `:'schema'` by a string. */
export function inSchema (sql: string, schema: string): string {
  const key = `${schema} ${sql}`
  let text = texts.get(key)
  if (text === undefined) {
    text = sql.replaceAll(':"schema"', `"${schema.replaceAll('"', '""')}"`).replaceAll(":'schema'", `'${schema}'`)
    texts.set(key, text)
  }
  return text
}
