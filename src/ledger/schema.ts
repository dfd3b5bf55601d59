import { InvalidOptionError } from '../errors.js'
import type { Queryable } from './database.js'

// Every name says where it is looked up: whoever may create objects in a schema of the search_path could otherwise have
// ours resolved to theirs.
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
  /** Not a boolean: a host's pool may parse those in a way of its own. */
  visible: 'true' | 'false'
}

/**
 * Returns the schema of the ledger's tables: the one that the option names, otherwise the one in which PostgreSQL finds
 * ai_credits or ai_credit_usage, otherwise the first of the search_path. Throws InvalidOptionError where the tables are
 * only in schemas that the search_path does not reach: new ones would give every account its allowance anew.
 */
export async function findSchema (db: Queryable, named: string | undefined): Promise<string> {
  if (named !== undefined) return named
  const { rows } = await db.query(CREDITS_TABLES)
  const tables = (rows as Table[]).filter(({ schema }) => !schema.startsWith('pg_'))
  const visible = tables.filter(({ visible }) => visible === 'true')
  // Of a table that the path does not reach, those that there are elsewhere.
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

/** SQL with the schema in place of its token, `:"schema"` as an identifier or `:'schema'` as a string, as psql has it. */
export function inSchema (sql: string, schema: string): string {
  const key = `${schema} ${sql}`
  let text = texts.get(key)
  if (text === undefined) {
    text = sql.replaceAll(':"schema"', `"${schema.replaceAll('"', '""')}"`).replaceAll(":'schema'", `'${schema}'`)
    texts.set(key, text)
  }
  return text
}
