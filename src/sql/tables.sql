-- Creates the tables, or brings those that are there up to date; what is applied is skipped. Then run functions.sql:
--
--   psql "$DATABASE_URL" -v ON_ERROR_STOP=1 -f tables.sql -f functions.sql
--
-- The schema is the one in which PostgreSQL finds ai_credits, otherwise the first of the search_path; -v schema=name names
-- another one, which must be there. Where ai_credits and ai_credit_usage are there already, with rows, they are adopted
-- (see adoption/); then run daily_usage.sql, too.

\if :{?schema}
\else
  select coalesce((select nspname from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
    where c.oid = pg_catalog.to_regclass('ai_credits')), pg_catalog.current_schema()) as schema \gset
\endif
\set number 6
\ir tables/due.sql
\if :due
  \ir adoption/begin.sql
  \ir tables/006_tables.sql
\endif
\ir adoption/end.sql
\set number 7
\ir tables/due.sql
\if :due
  \ir tables/007_for_functions.sql
\endif
\set number 8
\ir tables/due.sql
\if :due
  \ir tables/008_checked.sql
\endif
\set number 9
\ir tables/due.sql
\if :due
  \ir tables/009_budgets.sql
\endif
\set number 10
\ir tables/due.sql
\if :due
  \ir tables/010_event.sql
\endif
