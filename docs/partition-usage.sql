-- fastify-ai-credits: makes ai_credit_usage a table partitioned by month. Optional; docs/operations.md says when it is
-- worth it and what it costs.
--
-- By hand, after tables.sql and functions.sql: psql "$DATABASE_URL" -v ON_ERROR_STOP=1 -f partition-usage.sql
-- The schema is the one in which PostgreSQL finds ai_credit_usage; -v schema=name names another one. It runs as the owner of
-- the table, of whom the caller has to be a member.
--
-- It is one transaction, in which the table is locked. What is in the table becomes the first partition, up to the end of
-- this month. A second run changes nothing but the partitions to come.
--
-- The unique indexes get created_at beside their columns, as PostgreSQL demands. That one posting has one number and one
-- key is charged once is the account's lock's doing; these indexes were the backstop, and are one within a month.

\if :{?schema}
\else
  select nspname as schema from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
  where c.oid = pg_catalog.to_regclass('ai_credit_usage') \gset
\endif

begin;

set local search_path to pg_catalog, pg_temp;
set local check_function_bodies to off;
select set_config('fastify_ai_credits.schema', :'schema', true);
select set_config('role', pg_get_userbyid(relowner), true) from pg_class
where oid = format('%I.ai_credit_usage', :'schema')::regclass;
select pg_advisory_xact_lock(hashtextextended('fastify-ai-credits', 0));

-- Makes the partitions of the next months that are not there yet. To be called at least once in so many months: a record
-- without one goes to ai_credit_usage_default, from where it has to be moved by hand before its month can have a partition.
create or replace function :"schema".ai_credit_usage_add_partitions(p_months integer) returns void
set search_path = pg_catalog, pg_temp set fastify_ai_credits.schema = :'schema'
language plpgsql as $$
declare
  schema varchar := current_setting('fastify_ai_credits.schema');
  this_month timestamp;
  month timestamp;
  name varchar;
begin
  execute format('select date_trunc(''month'', %I.ai_credit_now() at time zone ''UTC'')', schema) into this_month;
  for i in 1..p_months loop
    month := this_month + i * interval '1 month';
    name := 'ai_credit_usage_' || to_char(month, 'YYYY_MM');
    if to_regclass(format('%I.%I', schema, name)) is null then
      execute format('create table %1$I.%2$I partition of %1$I.ai_credit_usage for values from (%3$L) to (%4$L)', schema, name,
        month at time zone 'UTC', (month + interval '1 month') at time zone 'UTC');
    end if;
  end loop;
end
$$;

-- Drops the partitions of past months that pruning has emptied, and returns their names.
create or replace function :"schema".ai_credit_usage_drop_partitions() returns setof varchar
set search_path = pg_catalog, pg_temp set fastify_ai_credits.schema = :'schema'
language plpgsql as $$
declare
  schema varchar := current_setting('fastify_ai_credits.schema');
  instant timestamptz;
  past record;
  used boolean;
begin
  execute format('select %I.ai_credit_now()', schema) into instant;
  for past in
    select pg_class.oid::regclass as partition, relname as name
    from pg_inherits join pg_class on pg_class.oid = inhrelid
    where inhparent = format('%I.ai_credit_usage', schema)::regclass
      and substring(pg_get_expr(relpartbound, pg_class.oid) from $q$TO \('(.*)'\)$q$)::timestamptz <= instant
    order by pg_class.oid
  loop
    execute format('select exists (select from %s)', past.partition) into used;
    if not used then -- otherwise it is not locked; nothing is written into a past month
      return next past.name;
      execute format('drop table %s', past.partition);
    end if;
  end loop;
end
$$;

revoke execute on function :"schema".ai_credit_usage_add_partitions(integer), :"schema".ai_credit_usage_drop_partitions()
from public;

do $$
declare
  schema varchar := current_setting('fastify_ai_credits.schema');
  usage regclass := format('%I.ai_credit_usage', schema);
  row_types oid[];
  views regclass[];
  functions regprocedure[];
  statement text;
  statements text[];
  index record;
  ends timestamptz;
begin
  if (select relkind from pg_class where oid = usage) = 'p' then
    return;
  end if;
  execute format('lock table %s in access exclusive mode', usage);
  execute format('select (date_trunc(''month'', %I.ai_credit_now() at time zone ''UTC'') + interval ''1 month'') at time zone ''UTC''',
    schema) into ends;

  -- What knows the table by its identity and not by its name is made anew. Functions are so all of them, for the sake of
  -- sessions that have compiled them already.
  views := array(
    select distinct ev_class::regclass from pg_depend join pg_rewrite on pg_rewrite.oid = objid
    where classid = 'pg_rewrite'::regclass and refobjid = usage);
  row_types := array(
    select type.oid from pg_type type
    where typrelid = usage or typrelid = any(views)
      or typelem in (select oid from pg_type where typrelid = usage));
  functions := array(
    select distinct objid::regprocedure from pg_depend
    where classid = 'pg_proc'::regclass
      and (refclassid = 'pg_type'::regclass and refobjid = any(row_types)
        or refclassid = 'pg_class'::regclass and (refobjid = usage or refobjid = any(views))));
  statements := array(select format('create view %s as %s', name, pg_get_viewdef(name)) from unnest(views) name)
    || array(select pg_get_functiondef(oid) from pg_proc
      where pronamespace = (select relnamespace from pg_class where oid = usage)
        and proname like 'ai\_credit\_%' and prokind = 'f'
      order by oid)
    -- Who may call them, and who may read the views, is what it was.
    || array(select format('revoke all on function %s from public', signature) from unnest(functions) signature)
    || array(
      select format('grant execute on function %s to %s', signature,
        case grantee when 0 then 'public' else quote_ident(pg_get_userbyid(grantee)) end)
      from unnest(functions) signature join pg_proc on pg_proc.oid = signature,
        aclexplode(coalesce(proacl, acldefault('f', proowner))))
    || array(
      select format('grant %s on %s to %s', privilege_type, name,
        case grantee when 0 then 'public' else quote_ident(pg_get_userbyid(grantee)) end)
      from unnest(views || usage) name join pg_class on pg_class.oid = name, aclexplode(relacl))
    -- So is what is said of them.
    || array(
      select format('comment on %s is %L', identity, description)
      from unnest(views || usage) name,
        format('%s %s', case name when usage then 'table' else 'view' end, name) identity,
        obj_description(name, 'pg_class') description
      where description is not null)
    || array(
      select format('comment on function %s is %L', signature, description)
      from unnest(functions) signature, obj_description(signature, 'pg_proc') description
      where description is not null);
  for i in 1..cardinality(functions) loop
    execute format('drop function %s', functions[i]);
  end loop;
  for i in 1..cardinality(views) loop
    execute format('drop view %s', views[i]);
  end loop;

  execute format('alter table %s rename to ai_credit_usage_before', usage);
  execute format('create table %1$I.ai_credit_usage (like %1$I.ai_credit_usage_before including defaults including constraints)
    partition by range (created_at)', schema);
  execute format('alter sequence %1$I.ai_credit_usage_id_seq owned by %1$I.ai_credit_usage.id', schema);

  for index in
    select relname as name, indexrelid::regclass as current, indisunique, indisprimary, pg_get_indexdef(indexrelid) as definition
    from pg_index join pg_class on pg_class.oid = indexrelid
    where indrelid = usage -- its identity is that of the table of before
  loop
    statement := regexp_replace(index.definition, ' INDEX .* USING',
      format(' INDEX %I ON %I.ai_credit_usage USING', index.name, schema));
    if index.indisprimary then
      execute format('alter table %I.ai_credit_usage_before drop constraint ai_credit_usage_pkey', schema);
      statement := format('alter table %I.ai_credit_usage add constraint ai_credit_usage_pkey primary key (id, created_at)', schema);
    else
      execute format('drop index %s', index.current);
    end if;
    if index.indisunique and not index.indisprimary then
      statement := regexp_replace(statement, 'USING btree \(([^)]*)\)', 'USING btree (\1, created_at)');
    end if;
    execute statement;
  end loop;

  execute format('alter table %1$I.ai_credit_usage attach partition %1$I.ai_credit_usage_before
    for values from (minvalue) to (%2$L)', schema, ends);
  execute format('create table %1$I.ai_credit_usage_default partition of %1$I.ai_credit_usage default', schema);
  foreach statement in array statements loop
    execute statement;
  end loop;
end
$$;

select :"schema".ai_credit_usage_add_partitions(3);

commit;
