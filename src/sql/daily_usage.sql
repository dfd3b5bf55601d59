-- Sums up by day the usage records that were adopted, in the time zone in which the ledger keeps its days (the library's
-- option timeZone). After functions.sql, where there were records before; the library does the same at its start:
--
--   psql "$DATABASE_URL" -v ON_ERROR_STOP=1 -v time_zone=UTC -f tables.sql -f functions.sql -f daily_usage.sql
--
-- Interrupted, it goes on when it is run again.

\if :{?schema}
\else
  select coalesce((select nspname from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
    where c.oid = pg_catalog.to_regclass('ai_credits')), pg_catalog.current_schema()) as schema \gset
\endif
select :"schema".ai_credit_use_time_zone(:'time_zone');
select set_config('fastify_ai_credits.schema', :'schema', false);
do $$
declare
  schema text := current_setting('fastify_ai_credits.schema');
  part bigint;
  done bigint := 0;
  total bigint;
begin
  execute format('select count(*) from %I.ai_credit_usage where id <= (
    select value::bigint from %1$I.ai_credit_settings where name = ''unsummed_to'')', schema) into total;
  loop
    execute format('select %I.ai_credit_sum_days(50000)', schema) into part;
    commit;
    exit when part = 0;
    done := done + part;
    raise notice 'summed up % of % usage records', done, total;
  end loop;
end
$$;
