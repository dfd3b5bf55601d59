-- Replaces the functions, all as one set: in one transaction, after tables.sql, which says how to run both.
--
-- The set has a number that only grows. A database with a higher one is left as it is. oldest_caller is the number of the
-- oldest library that these functions still serve. content is a hash of functions/, written by generate.js: two sets with
-- one number are told apart by it.
--
-- What a library calls begins with p_caller, that library's number. Before 7 there was none: a process that is older finds no
-- function, which is better than one that answers it otherwise than it understands.

\if :{?schema}
\else
  select coalesce((select nspname from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
    where c.oid = pg_catalog.to_regclass('ai_credits')), pg_catalog.current_schema()) as schema \gset
\endif
\set number 7
\set oldest_caller 7
\set content 4cd21987ad2a8c6790e78cd612e0e50fc762068030d17a0bb0094a51624840c0

begin isolation level read committed;
set local search_path to pg_catalog, pg_temp;
set local check_function_bodies to off; -- bodies name the schema by a token until the end
select set_config('fastify_ai_credits.schema', :'schema', true), set_config('fastify_ai_credits.number', :'number', true),
  set_config('fastify_ai_credits.oldest_caller', :'oldest_caller', true),
  set_config('fastify_ai_credits.content', :'content', true);
select pg_advisory_xact_lock(hashtextextended('fastify-ai-credits', 0));

\if :{?citus}
\ir citus/begin.sql
\endif
\ir functions/begin.sql
\ir functions/time.sql
\ir functions/account.sql
\ir functions/budgets.sql
\ir functions/daily_usage.sql
\ir functions/posting.sql
\ir functions/grants.sql
\ir functions/allowance.sql
\ir functions/settle.sql
\ir functions/deduct.sql
\ir functions/holds.sql
\ir functions/shared.sql
\ir functions/refund.sql
\ir functions/reading.sql
\ir functions/reconcile.sql
\ir functions/prune.sql
\ir functions/settings.sql
\ir functions/sample_data.sql
\if :{?citus}
\ir citus/functions.sql
\endif
\ir functions/end.sql
\if :{?citus}
\ir citus/delegation.sql
\endif

commit;
