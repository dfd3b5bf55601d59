-- How far adoption is. (psql sets variables of these names; the library reads them.)
--   originals  there are tables to adopt
--   recorded   ai_credit_usage is one of them
--   begun      columns.sql is done, and finish.sql is not
--   ordered    order.sql is done
--   each 'true' or 'false': a host's pool may parse booleans in a way of its own
select (adoption is null and (credits is not null or usage is not null) and migrations is null)::pg_catalog.text as originals,
  (usage is not null)::pg_catalog.text as recorded,
  (adoption is not null)::pg_catalog.text as begun,
  exists (
    select from pg_catalog.pg_index where indrelid operator(pg_catalog.=) adoption::pg_catalog.oid)::pg_catalog.text as ordered
from (
  select pg_catalog.to_regclass(pg_catalog.format('%I.ai_credits'::pg_catalog.text, :'schema'::pg_catalog.text)) as credits,
    pg_catalog.to_regclass(pg_catalog.format('%I.ai_credit_usage'::pg_catalog.text, :'schema'::pg_catalog.text)) as usage,
    pg_catalog.to_regclass(pg_catalog.format('%I.ai_credit_migrations'::pg_catalog.text, :'schema'::pg_catalog.text)) as migrations,
    pg_catalog.to_regclass(pg_catalog.format('%I.ai_credit_adoption'::pg_catalog.text, :'schema'::pg_catalog.text)) as adoption
) names
\gset
