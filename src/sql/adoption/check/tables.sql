-- The two tables as such.
with relations as (
  select oid, oid::regclass as name, relname, relkind, relowner, relpersistence, relrowsecurity, relreplident
  from pg_class
  where relnamespace = to_regnamespace(quote_ident(:'schema')) and relname in ('ai_credits', 'ai_credit_usage')
), points as (
  select 1 as place, format('%s is %s, and the ledger needs a plain table. Keep it under another name, and copy it', name,
      case relkind when 'v' then 'a view' when 'm' then 'a materialized view' when 'f' then 'a foreign table'
        when 'p' then 'a partitioned table' else 'no table' end) as problem,
    format('alter table %s rename to %I; create table %I.%I as select * from %3$I.%2$I;', name, 'original_' || relname,
      :'schema', relname) as statement
  from relations where relkind <> 'r'
  union all
  select 2, format('%I is in the schema %I, apart from the other of the two', relname, nspname),
    format('alter table %I.%I set schema %I;', nspname, relname, :'schema')
  from pg_class join pg_namespace on pg_namespace.oid = relnamespace
  where relname in ('ai_credits', 'ai_credit_usage') and nspname <> :'schema'
    and current_setting('fastify_ai_credits.path')::jsonb ? nspname
    and not exists (select from relations where relations.relname = pg_class.relname)
    and not exists (
      select from pg_class ours where ours.relnamespace = pg_namespace.oid and ours.relname = 'ai_credit_migrations')
  union all
  select 3, format('%s belongs to %I, and only its owner can change it. As a superuser', name, pg_get_userbyid(relowner)),
    format('alter table %s owner to %I;', name, current_user)
  from relations where not pg_has_role(relowner, 'usage')
  union all
  select 4, format('%I may not create tables in the schema %I. As its owner', current_user, :'schema'),
    format('grant create on schema %I to %I;', :'schema', current_user)
  where not has_schema_privilege(quote_ident(:'schema'), 'create')
  union all
  select 5, format('%s is unlogged: a crash of the server would empty it', name), format('alter table %s set logged;', name)
  from relations where relkind = 'r' and relpersistence = 'u'
  union all
  select 6, format('%s has row level security, which may hide accounts from the ledger', name),
    format('alter table %s disable row level security;', name)
  from relations where relkind = 'r' and relrowsecurity
  union all
  select 7, format('%s is published without a replica identity, and so no row of it can be updated', name),
    format('alter table %s replica identity default;', name)
  from relations
  where relkind = 'r' and relreplident = 'n'
    and exists (select from pg_publication_tables where schemaname = :'schema' and tablename = relname)
  union all
  select 8, format('%s inherits from %s', inhrelid::regclass, inhparent::regclass),
    case when child.relispartition then format('alter table %s detach partition %s;', inhparent::regclass, inhrelid::regclass)
      else format('alter table %s no inherit %s;', inhrelid::regclass, inhparent::regclass) end
  from pg_inherits join pg_class child on child.oid = inhrelid
  where inhrelid in (select oid from relations) or inhparent in (select oid from relations where relkind = 'r')
  union all
  select 9, format('%s has a name that the ledger needs', pg_class.oid::regclass),
    format('alter %s %s rename to %I;', case relkind when 'S' then 'sequence' when 'c' then 'type' when 'i' then 'index'
      when 'v' then 'view' when 'm' then 'materialized view' when 'f' then 'foreign table' else 'table' end,
      pg_class.oid::regclass, 'original_' || relname)
  from pg_class
  where relnamespace = to_regnamespace(quote_ident(:'schema'))
    and (relname = any('{ai_credit_settings,ai_credit_daily_usage,ai_credit_grants,ai_credit_holds,ai_credit_events,
      ai_credit_pruned,ai_credit_answer,ai_credit_account,ai_credit_record,ai_credit_new_hold,ai_credit_hold_state,
      ai_credit_functions,ai_credit_entries,ai_credit_usage_seq,ai_credit_usage_key,ai_credit_usage_capture_key,
      ai_credit_usage_refunded}')
    or relname = 'ai_credit_usage_id_seq' and not (relkind = 'S' and exists ( -- the sequence of the ids is kept
      select from pg_depend left join pg_attrdef on classid = 'pg_attrdef'::regclass and pg_attrdef.oid = objid
      where classid = 'pg_class'::regclass and objid = pg_class.oid and refobjid in (select oid from relations)
        or refclassid = 'pg_class'::regclass and refobjid = pg_class.oid and adrelid in (select oid from relations))))
)
select set_config('fastify_ai_credits.points', (current_setting('fastify_ai_credits.points')::jsonb
  || coalesce(jsonb_agg(jsonb_build_array(problem, statement) order by place, problem), '[]'))::text, true)
from points;
