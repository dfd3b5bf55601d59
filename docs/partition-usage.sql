-- fastify-ai-credits: makes ai_credit_usage a table partitioned by month. Optional; docs/operations.md says when it is
-- worth it and what it costs.
--
-- By hand, after all migrations: psql "$DATABASE_URL" -v ON_ERROR_STOP=1 -f partition-usage.sql
-- It is one transaction, in which the table is locked. What is in the table becomes the first partition, up to the end of
-- this month. A second run changes nothing but the partitions to come.
--
-- The unique indexes get created_at beside their columns, as PostgreSQL demands. That one posting has one number and one
-- key is charged once is the account's lock's doing; these indexes were the backstop, and are one within a month.

begin;

select pg_advisory_xact_lock(hashtextextended('fastify-ai-credits', 0));
set local check_function_bodies = off;

-- Makes the partitions of the next months that are not there yet. To be called at least once in so many months: a record
-- without one goes to ai_credit_usage_default, from where it has to be moved by hand before its month can have a partition.
create or replace function ai_credit_usage_add_partitions(p_months integer) returns void
language plpgsql as $$
declare
  this_month timestamp := date_trunc('month', statement_timestamp() at time zone 'UTC');
  month timestamp;
  name varchar;
begin
  for i in 1..p_months loop
    month := this_month + i * interval '1 month';
    name := 'ai_credit_usage_' || to_char(month, 'YYYY_MM');
    if to_regclass(name) is null then
      execute format('create table %I partition of ai_credit_usage for values from (%L) to (%L)', name,
        month at time zone 'UTC', (month + interval '1 month') at time zone 'UTC');
    end if;
  end loop;
end
$$;

-- Drops the partitions of past months that pruning has emptied, and answers their names.
create or replace function ai_credit_usage_drop_partitions() returns setof varchar
language plpgsql as $$
declare
  past regclass;
  used boolean;
begin
  for past in
    select oid::regclass
    from pg_inherits join pg_class on pg_class.oid = inhrelid
    where inhparent = 'ai_credit_usage'::regclass
      and substring(pg_get_expr(relpartbound, oid) from $q$TO \('(.*)'\)$q$)::timestamptz <= statement_timestamp()
    order by oid
  loop
    execute format('select exists (select from %s)', past) into used;
    if not used then -- else it is not locked; nothing is written into a past month
      return next past::text;
      execute format('drop table %s', past);
    end if;
  end loop;
end
$$;

do $$
declare
  row_types oid[];
  views regclass[];
  functions regprocedure[];
  statement text;
  statements text[];
  index record;
  ends timestamptz := (date_trunc('month', statement_timestamp() at time zone 'UTC') + interval '1 month') at time zone 'UTC';
begin
  if (select relkind from pg_class where oid = 'ai_credit_usage'::regclass) = 'p' then
    return;
  end if;
  lock table ai_credit_usage in access exclusive mode;

  -- What knows the table by its identity and not by its name is made anew. Functions are so all of them, for the sake of
  -- sessions that have compiled them already.
  views := array(
    select distinct ev_class::regclass from pg_depend join pg_rewrite on pg_rewrite.oid = objid
    where classid = 'pg_rewrite'::regclass and refobjid = 'ai_credit_usage'::regclass);
  statements := array(select format('create view %s as %s', name, pg_get_viewdef(name)) from unnest(views) name)
    || array(select pg_get_functiondef(oid) from pg_proc
      where pronamespace = (select relnamespace from pg_class where oid = 'ai_credit_usage'::regclass)
        and proname like 'ai\_credit\_%' and prokind = 'f'
      order by oid);
  row_types := array(
    select type.oid from pg_type type
    where typrelid = 'ai_credit_usage'::regclass or typrelid = any(views)
      or typelem in (select oid from pg_type where typrelid = 'ai_credit_usage'::regclass));
  functions := array(
    select distinct objid::regprocedure from pg_depend
    where classid = 'pg_proc'::regclass
      and (refclassid = 'pg_type'::regclass and refobjid = any(row_types)
        or refclassid = 'pg_class'::regclass and (refobjid = 'ai_credit_usage'::regclass or refobjid = any(views))));
  for i in 1..cardinality(functions) loop
    execute format('drop function %s', functions[i]);
  end loop;
  for i in 1..cardinality(views) loop
    execute format('drop view %s', views[i]);
  end loop;

  alter table ai_credit_usage rename to ai_credit_usage_before;
  create table ai_credit_usage (like ai_credit_usage_before including defaults) partition by range (created_at);
  alter sequence ai_credit_usage_id_seq owned by ai_credit_usage.id;

  for index in
    select indexrelid::regclass::text as name, indisunique, indisprimary, pg_get_indexdef(indexrelid) as definition
    from pg_index where indrelid = 'ai_credit_usage_before'::regclass
  loop
    statement := regexp_replace(index.definition, ' INDEX .* USING', format(' INDEX %s ON ai_credit_usage USING', index.name));
    if index.indisprimary then
      alter table ai_credit_usage_before drop constraint ai_credit_usage_pkey;
      statement := 'alter table ai_credit_usage add constraint ai_credit_usage_pkey primary key (id, created_at)';
    else
      execute format('drop index %s', index.name);
    end if;
    if index.indisunique and not index.indisprimary then
      statement := regexp_replace(statement, 'USING btree \(([^)]*)\)', 'USING btree (\1, created_at)');
    end if;
    execute statement;
  end loop;

  execute format('alter table ai_credit_usage attach partition ai_credit_usage_before for values from (minvalue) to (%L)', ends);
  create table ai_credit_usage_default partition of ai_credit_usage default;
  foreach statement in array statements loop
    execute statement;
  end loop;
end
$$;

select ai_credit_usage_add_partitions(3);

commit;
