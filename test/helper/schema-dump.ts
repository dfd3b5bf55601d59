import type { Queryable } from '../../src/index.js'

// Catalog queries; each row describes one object. They show what PostgreSQL 14 to 18 have in common, and leave out NOT NULL
// constraints, which are in the catalog only since 18. The columns show those.
const COLUMNS = `
  select relname || '.' || lpad(attnum::text, 2, '0') || ' ' || attname || ' ' || format_type(atttypid, atttypmod)
    || case when attnotnull then ' not null' else '' end
    || coalesce(' default ' || pg_get_expr(adbin, adrelid), '') 
    || case when attidentity = '' then '' else ' identity=' || attidentity::text end as line
  from pg_attribute join pg_class on pg_class.oid = attrelid
    left join pg_attrdef on adrelid = attrelid and adnum = attnum
  where relnamespace = 'public'::regnamespace and relkind in ('r', 'p', 'v', 'm', 'c') and attnum > 0 and not attisdropped`

const INDEXES = `
  select pg_get_indexdef(indexrelid) as line
  from pg_index join pg_class on pg_class.oid = indexrelid
  where relnamespace = 'public'::regnamespace`

const CONSTRAINTS = `
  select conrelid::regclass || ' ' || conname || ' ' || pg_get_constraintdef(oid) as line
  from pg_constraint
  where connamespace = 'public'::regnamespace and contype <> 'n'`

const SEQUENCES = `
  select seqrelid::regclass || ' ' || format_type(seqtypid, null) || ' from ' || seqstart || ' by ' || seqincrement
    || ' in ' || seqmin || '..' || seqmax || ' cache ' || seqcache || ' cycle=' || seqcycle
    || ' owned by ' || coalesce(refobjid::regclass || '.' || refobjsubid, 'nobody') as line
  from pg_sequence
    left join pg_depend on objid = seqrelid and classid = 'pg_class'::regclass and deptype in ('a', 'i')
      and refclassid = 'pg_class'::regclass`

const FUNCTIONS = `
  select pg_get_functiondef(oid) || ' callable by everybody=' || has_function_privilege('public', oid, 'execute') as line
  from pg_proc
  where pronamespace = 'public'::regnamespace`

const OTHERS = `
  select 'trigger ' || pg_get_triggerdef(pg_trigger.oid) as line
  from pg_trigger join pg_class on pg_class.oid = tgrelid
  where relnamespace = 'public'::regnamespace and not tgisinternal
  union all
  select 'view ' || viewname || ' as' || chr(10) || definition from pg_views where schemaname = 'public'`

const COMMENTS = `
  select case when pg_class.oid is null then pg_proc.oid::regprocedure::text else relname end || ' ' || description as line
  from pg_description
    left join pg_class on classoid = 'pg_class'::regclass and pg_class.oid = objoid
    left join pg_proc on classoid = 'pg_proc'::regclass and pg_proc.oid = objoid
  where coalesce(relnamespace, pronamespace) = 'public'::regnamespace and objsubid = 0`

const sections = {
  Columns: COLUMNS,
  Indexes: INDEXES,
  Constraints: CONSTRAINTS,
  Sequences: SEQUENCES,
  Functions: FUNCTIONS,
  'Triggers and views': OTHERS,
  Comments: COMMENTS
}

/** Returns the catalog's description of the schema `public` as text. It is equal for equal schemas, however they were made. */
export async function dumpSchema (db: Queryable): Promise<string> {
  let text = ''
  for (const [title, query] of Object.entries(sections)) {
    const { rows } = await db.query(`select line from (${query}) lines order by line collate "C"`)
    text += `${title}\n${rows.map(({ line }) => `  ${line}\n`).join('')}\n`
  }
  return text
}

/** Returns the schema and all rows with their places in storage. It changes with every write, even of equal values. */
export async function dumpDatabase (db: Queryable): Promise<string> {
  return await dumpSchema(db) + await dumpRows(db)
}

/** Returns all rows with their places in storage, and how far sequences are. It changes with every write, even of equal values. */
export async function dumpRows (db: Queryable): Promise<string> {
  const { rows: relations } = await db.query(`
    select relname as name, relkind as kind, relname || ' ' || relkind::text || ' ' || relfilenode as line
    from pg_class where relnamespace = 'public'::regnamespace order by relname collate "C"`)
  let text = ''
  for (const { name, kind, line } of relations) {
    text += `${line}\n`
    if (kind === 'r') text += await lines(db, `select xmin::text || ' ' || ctid::text || ' ' || r::text as line from "${name}" r`)
    if (kind === 'S') text += await lines(db, `select last_value || ' ' || is_called as line from "${name}"`)
  }
  return text
}

async function lines (db: Queryable, query: string) {
  const { rows } = await db.query(query)
  return rows.map(({ line }) => `  ${line}\n`).sort().join('')
}
