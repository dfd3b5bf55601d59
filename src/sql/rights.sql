-- Least rights: a role that may call the ledger's functions and read its tables, and write nothing by itself. The functions
-- run with the rights of their owner, who ran tables.sql and functions.sql. Run this as the owner, and again after each
-- upgrade, as there may be new functions:
--
--   psql "$DATABASE_URL" -v ON_ERROR_STOP=1 -v role=gateway -f rights.sql

\if :{?schema}
\else
  select coalesce((select nspname from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
    where c.oid = pg_catalog.to_regclass('ai_credits')), pg_catalog.current_schema()) as schema \gset
\endif

begin;
set local search_path to pg_catalog, pg_temp;
select set_config('fastify_ai_credits.schema', :'schema', true), set_config('fastify_ai_credits.role', :'role', true);

do $$
declare
  schema text := current_setting('fastify_ai_credits.schema');
  role text := quote_ident(current_setting('fastify_ai_credits.role'));
  statement text;
begin
  foreach statement in array
    array[format('grant usage on schema %I to %s', schema, role)]
    || array(
      select format('revoke all on table %s from %s', pg_class.oid::regclass, role)
      from pg_class join pg_namespace on pg_namespace.oid = relnamespace
      where nspname = schema and (relname like 'ai\_credit\_%' or relname = 'ai_credits') and relkind in ('r', 'p', 'v'))
    || array(
      select format('grant select on table %s to %s', pg_class.oid::regclass, role)
      from pg_class join pg_namespace on pg_namespace.oid = relnamespace
      where nspname = schema and (relname like 'ai\_credit\_%' or relname = 'ai_credits') and relkind in ('r', 'p', 'v'))
    || array( -- those that callers call, and no others
      select format('grant execute on function %s to %s', pg_proc.oid::regprocedure, role)
      from pg_proc join pg_namespace on pg_namespace.oid = pronamespace
      where nspname = schema and proname like 'ai\_credit\_%' and prosecdef)
  loop
    execute statement;
  end loop;
end
$$;

commit;
