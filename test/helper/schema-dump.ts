import type { Queryable } from '../../src/index.js'

// Catalog queries, each of whose rows describes one thing: all that PostgreSQL 14 to 18 have in common. They leave out NOT
// NULL constraints (in the catalog since 18; the columns show them).
const COLUMNS = `
  select relname || '.' || lpad(attnum::text, 2, '0') || ' ' || attname || ' ' || format_type(atttypid, atttypmod)
    || case when attnotnull then ' not null' else '' end
    || coalesce(' default ' || pg_get_expr(adbin, adrelid), '') 
    || case when attidentity = '' then '' else ' identity=' || attidentity::text end as line
  from pg_attribute join pg_class on pg_class.oid = attrelid
    left join pg_attrdef on adrelid = attrelid and adnum = attnum
  where relnamespace = 'public'::regnamespace and relkind in ('r', 'p', 'v', 'm') and attnum > 0 and not attisdropped`

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

const sections = {
  Columns: COLUMNS,
  Indexes: INDEXES,
  Constraints: CONSTRAINTS,
  Sequences: SEQUENCES,
  Functions: FUNCTIONS,
  'Triggers and views': OTHERS
}

/** What the catalog says of the schema `public`, as text: the same for the same schema, whatever led to it. */
export async function dumpSchema (db: Queryable): Promise<string> {
  let text = ''
  for (const [title, query] of Object.entries(sections)) {
    const { rows } = await db.query(`select line from (${query}) lines order by line collate "C"`)
    text += `${title}\n${rows.map(({ line }) => `  ${line}\n`).join('')}\n`
  }
  return text
}

/** The schema, all rows and where they are stored: it changes when anything is written, even the same again. */
export async function dumpDatabase (db: Queryable): Promise<string> {
  const { rows: relations } = await db.query(`
    select relname as name, relkind as kind, relname || ' ' || relkind::text || ' ' || relfilenode as line
    from pg_class where relnamespace = 'public'::regnamespace order by relname collate "C"`)
  let text = await dumpSchema(db)
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
