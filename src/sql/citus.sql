-- Distributes the tables by account with Citus, and makes the functions those of Citus. On the coordinator, as the owner of the tables;
-- after tables.sql, and again after each upgrade, in place of functions.sql:
--
--   psql "$DATABASE_URL" -v ON_ERROR_STOP=1 -v time_zone=UTC -f tables.sql -f citus.sql
--
-- time_zone is the library's option timeZone. It counts where the database has none yet.
-- It can be run again at any time, also after it was interrupted. See docs/citus.md for what it does to tables with data.

\if :{?schema}
\else
  select coalesce((select nspname from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
    where c.oid = pg_catalog.to_regclass('ai_credits')), pg_catalog.current_schema()) as schema \gset
\endif
\if :{?time_zone}
\else
  \set time_zone ''
\endif
\set citus on
\ir citus/tables.sql
\ir functions.sql
