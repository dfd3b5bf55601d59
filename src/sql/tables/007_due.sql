-- Tables, number 7: a record of the functions; what is due, and what spending can be laid on, is found by index. The functions of before go: those of
-- functions/ are replaced as a set, and have other signatures.

begin isolation level read committed;
set local search_path to pg_catalog, pg_temp;
select set_config('fastify_ai_credits.schema', :'schema', true);
select pg_advisory_xact_lock(hashtextextended('fastify-ai-credits', 0));
insert into :"schema".ai_credit_migrations (id) values (7);

-- Each set of functions that was installed, the newest of which is in force: its number, the number of the oldest library
-- that it serves, and the hash of its content.
create table :"schema".ai_credit_functions (
  number integer primary key,
  oldest_caller integer not null,
  content varchar not null,
  installed_at timestamptz not null default now()
);

-- Indexes of usage records, made when adopted records have their places: until then they would be in the way of the writing.
-- A database that was at number 6 has them.
set local statement_timeout to 0;
create unique index if not exists ai_credit_usage_seq on :"schema".ai_credit_usage (user_id, seq);

-- The account's lock is what makes a key unique; this is the backstop. A capture's key belongs to its hold instead.
create unique index if not exists ai_credit_usage_key on :"schema".ai_credit_usage (user_id, kind, idempotency_key)
  where idempotency_key is not null and kind <> 'capture';
create unique index if not exists ai_credit_usage_capture_key on :"schema".ai_credit_usage (user_id, hold_id, idempotency_key)
  where kind = 'capture' and idempotency_key is not null;
create index if not exists ai_credit_usage_refunded on :"schema".ai_credit_usage (user_id, refunded_id)
  where refunded_id is not null;

-- The holds of an account that lapse next.
create index ai_credit_holds_ends on :"schema".ai_credit_holds (user_id, expires_at, id) where state = 'open';
drop index :"schema".ai_credit_holds_open;

-- The grants of an account that expire next; those that burn next; and those that have something to get back.
create index ai_credit_grants_ends on :"schema".ai_credit_grants (user_id, expires_at) where state = 'living';
create index ai_credit_grants_burning on :"schema".ai_credit_grants (user_id, priority, expires_at, id)
  where state = 'living' and credits_left > 0;
create index ai_credit_grants_spent on :"schema".ai_credit_grants (user_id, priority, expires_at, id)
  where state = 'living' and credits_left < credits;
drop index :"schema".ai_credit_grants_living;

do $$
declare
  schema varchar := current_setting('fastify_ai_credits.schema');
  function varchar;
begin
  foreach function in array array(
    select pg_proc.oid::regprocedure::varchar from pg_proc join pg_namespace on pg_namespace.oid = pronamespace
    where nspname = schema and proname like 'ai\_credit\_%' and proname not like 'ai\_credit\_usage\_%')
  loop
    execute format('drop function if exists %s cascade', function); -- with those whose definition names it
  end loop;
  if to_regclass(format('%I.ai_credit_entries', schema)) is not null then
    execute format('drop view %I.ai_credit_entries', schema);
  end if;
end
$$;

commit;
