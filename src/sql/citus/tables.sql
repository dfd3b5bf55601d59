-- Distributes the tables by account: all that belongs to an account lies on one node. Run by ../citus.sql.

begin isolation level read committed;
set local search_path to pg_catalog, pg_temp;
set local statement_timeout to 0;
select set_config('fastify_ai_credits.schema', :'schema', true), set_config('fastify_ai_credits.time_zone', :'time_zone', true);
select pg_advisory_xact_lock(hashtextextended('fastify-ai-credits', 0));

do $$
declare
  schema text := current_setting('fastify_ai_credits.schema');
  tables text[] := '{ai_credits,ai_credit_usage,ai_credit_daily_usage,ai_credit_grants,ai_credit_holds,ai_credit_events,'
    'ai_credit_pruned,ai_credit_budgets,ai_credit_budget_usage}';
  problem text;
  time_zone text := current_setting('fastify_ai_credits.time_zone');
  undistributed text[];
  function text;
  table_name text;
begin
  if not exists (select from pg_extension where extname = 'citus') then
    raise object_not_in_prerequisite_state using
      message = 'This database does not have the extension citus', hint = 'Nothing was changed. Run: create extension citus';
  elsif to_regclass(format('%I.ai_credit_migrations', schema)) is null then
    raise object_not_in_prerequisite_state using
      message = format('There are no credits tables in the schema %s', schema), hint = 'Nothing was changed. Run tables.sql first.';
  end if;
  execute format($query$
    select case
      when exists (select from %1$I.ai_credit_settings where name = 'unsummed_to')
        then 'Adopted records are not yet summed up by day. Run daily_usage.sql first.'
      when (select relkind from pg_class where oid = '%1$I.ai_credit_usage'::regclass) = 'p'
        then 'ai_credit_usage is partitioned. Citus distributes it by account instead: copy it back into one table first.'
      end$query$, schema) into problem;
  if problem is not null then
    raise object_not_in_prerequisite_state using message = problem, hint = 'Nothing was changed.';
  end if;

  execute format('select coalesce((select value from %I.ai_credit_settings where name = ''time_zone''), %L)', schema, time_zone)
    into time_zone;
  if time_zone = '' then
    raise object_not_in_prerequisite_state using
      message = 'The time zone of the ledger is not known yet',
      hint = 'Nothing was changed. Name it with -v time_zone=UTC, as in the option timeZone.';
  end if;
  perform now() at time zone time_zone; -- an unknown one is an error
  execute format('insert into %I.ai_credit_settings (name, value) values (''time_zone'', %L) on conflict (name) do nothing',
    schema, time_zone);

  undistributed := array(
    select listed.name from unnest(tables) with ordinality as listed (name, place)
    where not exists (select from pg_dist_partition where logicalrelid = format('%I.%I', schema, listed.name)::regclass)
    order by listed.place);
  if cardinality(undistributed) = 0 then
    return;
  end if;

  -- The functions and the view go until all tables are distributed: functions.sql makes them again, on every node.
  execute format('drop view if exists %I.ai_credit_entries', schema);
  foreach function in array array(
    select pg_proc.oid::regprocedure::text from pg_proc join pg_namespace on pg_namespace.oid = pronamespace
    where nspname = schema and proname like 'ai\_credit\_%' and proname not like 'ai\_credit\_usage\_%')
  loop
    execute format('drop function if exists %s', function);
  end loop;
  execute format('delete from %I.ai_credit_functions', schema);

  if not exists (select from pg_dist_partition where logicalrelid = format('%I.ai_credit_settings', schema)::regclass) then
    perform create_reference_table(format('%I.ai_credit_settings', schema)::regclass);
  end if;
  -- Citus asks that a unique key names the column by which a table is distributed.
  if 'ai_credit_usage' = any(undistributed) then
    execute format('alter table %I.ai_credit_usage drop constraint ai_credit_usage_pkey', schema);
    execute format('alter table %I.ai_credit_usage add constraint ai_credit_usage_pkey primary key (id, user_id)', schema);
  end if;
  foreach table_name in array undistributed loop
    perform create_distributed_table(format('%I.%I', schema, table_name)::regclass, 'user_id',
      colocate_with => case table_name when 'ai_credits' then 'none' else format('%I.ai_credits', schema) end);
  end loop;
end
$$;

commit;

-- Whether this node uses the plan of a query again that is about one account of its own. Citus 12.1.12, 13.2.1, 13.2.2 and 14.0.1
-- make such a plan anew each time, and keep them all. null: that is not known, as no account lives here.
create or replace function :"schema".ai_credit_keeps_plans(p_schema text) returns boolean
set search_path = pg_catalog, pg_temp
language plpgsql as $$
declare
  mine text;
  bytes bigint;
  more bigint;
begin
  execute format('select n::text from generate_series(1, 1000) n
    where exists (select from pg_dist_placement join pg_dist_local_group using (groupid)
      where shardid = get_shard_id_for_distribution_column(''%I.ai_credits'', n::text)) limit 1', p_schema) into mine;
  if mine is null then
    return null;
  end if;
  perform set_config('search_path', format('pg_catalog, %I', p_schema), true);
  for round in 1..2 loop
    for n in 1..50 * round loop
      perform from ai_credits where user_id = mine;
    end loop;
    more := bytes;
    bytes := (select sum(total_bytes) from pg_backend_memory_contexts where name = 'CachedPlan');
  end loop;
  return bytes - more < 500000;
exception when insufficient_privilege then -- to read of memory
  return false;
end
$$;
