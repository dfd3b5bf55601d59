-- The columns that are given, and those of the host.
with given (relname, column_name, type, types) as (
  values ('ai_credits', 'user_id', 'varchar', '{varchar,text,bpchar,name,int2,int4,int8,uuid}'::text[]),
    ('ai_credits', 'total_credits', 'bigint', '{int2,int4,int8,numeric,float4,float8}'),
    ('ai_credits', 'used_credits', 'bigint', '{int2,int4,int8,numeric,float4,float8}'),
    ('ai_credits', 'created_at', 'timestamptz', '{timestamp,timestamptz,date}'),
    ('ai_credits', 'updated_at', 'timestamptz', '{timestamp,timestamptz,date}'),
    ('ai_credit_usage', 'id', 'bigint', '{int2,int4,int8}'),
    ('ai_credit_usage', 'user_id', 'varchar', '{varchar,text,bpchar,name,int2,int4,int8,uuid}'),
    ('ai_credit_usage', 'credits_used', 'bigint', '{int2,int4,int8,numeric,float4,float8}'),
    ('ai_credit_usage', 'operation', 'varchar', '{varchar,text,bpchar,name,int2,int4,int8,enum}'),
    ('ai_credit_usage', 'metadata', 'jsonb', '{jsonb,json,text,varchar,bpchar}'),
    ('ai_credit_usage', 'created_at', 'timestamptz', '{timestamp,timestamptz,date}')
), ours (relname, names) as (
  values ('ai_credits', '{held_credits,spent_before,allocated,opening_total,opening_used,overdraft,seq,due_at,plan,plan_own,
      next_plan,renews_at}'::text[]),
    ('ai_credit_usage', '{seq,kind,total_after,used_after,held_after,idempotency_key,request_hash,hold_id,amount,uncollected,
      refunded_id,reason,price_version,quantities}')
), tables as (
  select oid, relname, oid::regclass as name from pg_class
  where relnamespace = to_regnamespace(quote_ident(:'schema')) and relname in ('ai_credits', 'ai_credit_usage') and relkind = 'r'
), columns as (
  select tables.name, given.*, attrelid, attnum, attgenerated, attidentity, format_type(atttypid, atttypmod) as type_name,
    case when pg_type.typtype = 'e' then 'enum' else coalesce(domain.typname, pg_type.typname) end as typname,
    coalesce(not collisdeterministic, false) or pg_type.typname = 'citext' as folds
  from tables join given using (relname)
    left join pg_attribute on attrelid = tables.oid and attname = column_name and not attisdropped
    left join pg_type on pg_type.oid = atttypid
    left join pg_type domain on domain.oid = pg_type.typbasetype
    left join pg_collation on pg_collation.oid = attcollation
), points as (
  select format('%s has no column %I', name, column_name) as problem,
    format('alter table %s add column %I %s;', name, column_name, case column_name when 'id' then 'bigserial' else type end)
      as statement
  from columns where attnum is null
  union all
  select format('%s.%I is a generated column, and the ledger has to write it', name, column_name),
    format('alter table %s alter column %I drop expression;', name, column_name)
  from columns where attgenerated <> ''
  union all
  select format('%s.%I is an identity, which its new type %s cannot be', name, column_name, type),
    format('alter table %s alter column %I drop identity;', name, column_name)
  from columns where attidentity <> '' and column_name <> 'id'
  union all
  select format('In %s.%I upper and lower case are the same, but user ids of the ledger differ by them. Make all of them '
      'lower case, and have callers send them so', name, column_name),
    format('alter table %s alter column %I type varchar collate "default" using lower(%2$I::text);', name, column_name)
  from columns where folds and column_name = 'user_id'
  union all
  select format('%s.%I is of type %s, which does not become %s by itself', name, column_name, type_name, type),
    case column_name
      when 'id' then format('alter table %s rename column id to original_id; alter table %1$s %salter column original_id '
        'drop not null, add column id bigserial;', name, (select format('drop constraint %I, ', conname) from pg_constraint
          where contype = 'p' and conrelid = attrelid and attnum = any(conkey)))
      when 'metadata' then format('alter table %s alter column metadata drop default, alter column metadata type jsonb '
        'using to_jsonb(metadata);', name)
      else format('alter table %s alter column %I drop default, alter column %2$I type %s using %2$I::text::%3$s;', name,
        column_name, type) end
  from columns where typname <> all (types) and attgenerated = '' and not (folds and column_name = 'user_id')
    and not (folds and column_name = 'operation')
  union all
  select format('%s.%I has the name of a column of the ledger', name, attname),
    format('alter table %s rename column %I to %I;', name, attname, 'original_' || attname)
  from tables join ours using (relname) join pg_attribute on attrelid = tables.oid and attname = any(names) and not attisdropped
  union all
  select format('%s.%I must not be null and has no default, and the ledger does not know it', name, attname),
    format('alter table %s alter column %I drop not null;', name, attname)
  from tables join pg_attribute on attrelid = tables.oid
  where attnum > 0 and attnotnull and not atthasdef and attidentity = ''
    and not exists (select from given where given.relname = tables.relname and column_name = attname)
    and not exists (select from pg_index where indrelid = tables.oid and indisprimary and attnum = any(indkey)) -- see keys.sql
)
select set_config('fastify_ai_credits.points', (current_setting('fastify_ai_credits.points')::jsonb
  || coalesce(jsonb_agg(jsonb_build_array(problem, statement) order by problem), '[]'))::text, true)
from points;
