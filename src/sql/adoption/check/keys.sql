-- Constraints and indexes that refuse what the ledger writes, or that do not outlive a change of type.
with tables as (
  select oid, relname, oid::regclass as name, case relname when 'ai_credits' then 'user_id' else 'id' end as key
  from pg_class
  where relnamespace = to_regnamespace(quote_ident(:'schema')) and relname in ('ai_credits', 'ai_credit_usage') and relkind = 'r'
), given as (
  select tables.*, attnum, attname, atttypid::regtype::text as type,
    case attname
      when 'user_id' then atttypid not in ('varchar'::regtype, 'text'::regtype)
      when 'metadata' then atttypid <> 'jsonb'::regtype
      when 'created_at' then atttypid <> 'timestamptz'::regtype
      when 'updated_at' then atttypid <> 'timestamptz'::regtype
      else false end as changes
  from tables join pg_attribute on attrelid = tables.oid and not attisdropped
  where attname in ('id', 'user_id', 'total_credits', 'used_credits', 'credits_used', 'operation', 'metadata', 'created_at',
    'updated_at')
), indexes as (
  select tables.*, indexrelid, indisprimary, indexprs is not null or indpred is not null as computed, conname,
    array(select attname::text from unnest(indkey) with ordinality keys (attnum, place)
      left join pg_attribute on attrelid = tables.oid and pg_attribute.attnum = keys.attnum
      where place <= indnkeyatts) as names, -- null for an expression
    indisunique, indimmediate, indclass
  from tables join pg_index on indrelid = tables.oid left join pg_constraint on conindid = indexrelid and conrelid = indrelid
), refusing as (
  -- A column of the host's that is null in what the ledger writes makes it unique; one that may not be null refuses it.
  select indexrelid
  from indexes, lateral (
    select coalesce(bool_or(not attnotnull and not atthasdef), false) as spares,
      coalesce(bool_or(attnotnull and not atthasdef), false) as refuses
    from pg_attribute
    where attrelid = indexes.oid and attname = any(names)
      and attname not in (select attname from given where given.oid = indexes.oid)
  ) host
  where indisunique and (key <> all(array_remove(names, null)) and not spares or indisprimary and refuses
    or relname = 'ai_credits' and not indimmediate) -- ON CONFLICT takes none that is checked late
), fragile as (
  select indexrelid from indexes
  where indexrelid not in (select indexrelid from refusing) and exists (
    select from given
    where given.oid = indexes.oid and changes and (
      computed and exists (
        select from pg_depend where classid = 'pg_class'::regclass and objid = indexrelid
          and refclassid = 'pg_class'::regclass and refobjid = given.oid and refobjsubid = given.attnum)
      or attname = any(names) and exists (
        select from unnest(indclass) class (oid) join pg_opclass using (oid) where not opcdefault)))
), points as (
  select format('The unique index %s refuses rows that the ledger writes', indexrelid::regclass) as problem,
    case when conname is null then format('drop index %s;', indexrelid::regclass)
      else format('alter table %s drop constraint %I%s;', name, conname, case when indisprimary then (
        select string_agg(format(', alter column %I drop not null', column_name), '')
        from unnest(names) host (column_name) where column_name not in (select attname from given where given.oid = indexes.oid))
        end) end as statement
  from indexes where indexrelid in (select indexrelid from refusing)
  union all
  select format('The index %s is made from a column that gets another type. Make it again afterwards, from: %s',
      indexrelid::regclass, pg_get_indexdef(indexrelid)),
    format('drop index %s;', indexrelid::regclass)
  from indexes where indexrelid in (select indexrelid from fragile)
  union all
  select format('The constraint %I of %s, %s, may refuse what the ledger writes', conname, name, pg_get_constraintdef(constraints.oid)),
    format('alter table %s drop constraint %I;', name, conname)
  from tables join pg_constraint constraints on conrelid = tables.oid
  where contype in ('c', 'x') and exists (select from given where given.oid = tables.oid and attnum = any(conkey))
  union all
  select format('The foreign key %I of %s, %s, is about a user_id that becomes varchar', conname, conrelid::regclass,
      pg_get_constraintdef(constraints.oid)),
    format('alter table %s drop constraint %I;', conrelid::regclass, conname)
  from pg_constraint constraints
  where contype = 'f' and conparentid = 0 and exists (
    select from given where attname = 'user_id' and changes
      and (given.oid = conrelid and attnum = any(conkey) or given.oid = confrelid and attnum = any(confkey)))
)
select set_config('fastify_ai_credits.points', (current_setting('fastify_ai_credits.points')::jsonb
  || coalesce(jsonb_agg(jsonb_build_array(problem, statement) order by problem), '[]'))::text, true)
from points;
