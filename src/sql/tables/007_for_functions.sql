-- Tables, number 7: what the functions need that is no function. A record of them; the types of what they hand each other;
-- indexes by which they find what is due and what spending can be laid on; and checks of what rows may say. The functions of
-- before go: those of functions/ are replaced as a set, and have other signatures.
--
-- No table refers to another one by a foreign key. It would lock the account's row once more (FOR KEY SHARE) and run a trigger
-- for every record that a charge writes, and both tables would have to be partitioned or distributed alike. Who writes holds
-- the account's lock, and reconciliation finds what does not belong together.

begin isolation level read committed;
set local search_path to pg_catalog, pg_temp;
select set_config('fastify_ai_credits.schema', :'schema', true);
select pg_advisory_xact_lock(hashtextextended('fastify-ai-credits', 0));
insert into :"schema".ai_credit_migrations (id) values (7);

do $$
declare
  schema text := current_setting('fastify_ai_credits.schema');
  function text;
begin
  foreach function in array array(
    select pg_proc.oid::regprocedure::text from pg_proc join pg_namespace on pg_namespace.oid = pronamespace
    where nspname = schema and proname like 'ai\_credit\_%' and proname not like 'ai\_credit\_usage\_%')
  loop
    execute format('drop function if exists %s cascade', function); -- with those whose definition names it
  end loop;
  if to_regclass(format('%I.ai_credit_entries', schema)) is not null then
    execute format('drop view %I.ai_credit_entries', schema);
  end if;
end
$$;

-- Each set of functions that was installed, the newest of which is in force: its number, the number of the oldest library
-- that it serves, and the hash of its content.
create table :"schema".ai_credit_functions (
  number integer primary key,
  oldest_caller integer not null,
  content text not null,
  installed_at timestamptz not null default now()
);

set local statement_timeout to 0;

-- Text for what is no column of an adopted table, and no copy of one: user_id and operation stay as they are everywhere, as
-- the view ai_credit_entries finds rows by index only where a column has one type in all its tables.
--
-- This rewrites no table and no index but two: PostgreSQL makes a partial index anew when one of its columns gets another
-- type, and so ai_credit_grants_key and ai_credit_holds_key. For the same reason kind and idempotency_key of usage records,
-- which may be many, stay as they are.
drop index :"schema".ai_credit_grants_living;
drop index :"schema".ai_credit_holds_open;
alter table :"schema".ai_credit_settings alter column name type text, alter column value type text;
alter table :"schema".ai_credit_usage alter column reason type text, alter column price_version type text;
alter table :"schema".ai_credit_grants
  alter column kind type text,
  alter column state type text,
  alter column reason type text,
  alter column idempotency_key type text,
  drop column request_hash; -- what a key stands for are the grant's own columns
alter table :"schema".ai_credit_holds
  alter column state type text,
  alter column idempotency_key type text;
alter table :"schema".ai_credit_events alter column kind type text;

-- What rows may say. Rows that are there already are checked by number 8, for which nobody has to wait.
alter table :"schema".ai_credit_usage
  add constraint ai_credit_usage_kind check (kind in ('deduct', 'capture', 'refund')) not valid;
alter table :"schema".ai_credit_grants
  add constraint ai_credit_grants_kind check (kind in ('grant', 'allowance', 'refund')) not valid,
  add constraint ai_credit_grants_state check (state in ('living', 'expired', 'revoked')) not valid;
alter table :"schema".ai_credit_holds
  add constraint ai_credit_holds_state check (state in ('open', 'captured', 'released', 'lapsed')) not valid;
alter table :"schema".ai_credit_events
  add constraint ai_credit_events_kind check (kind in ('release', 'lapse', 'expiry', 'renewal', 'revoke')) not valid;

-- Indexes of usage records, made when adopted records have their places: until then they would be in the way of the writing.
-- A database that was at number 6 has them.
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

-- The grants of an account that expire next; those that burn next; and those that have something to get back.
create index ai_credit_grants_ends on :"schema".ai_credit_grants (user_id, expires_at) where state = 'living';
create index ai_credit_grants_burning on :"schema".ai_credit_grants (user_id, priority, expires_at, id)
  where state = 'living' and credits_left > 0;
create index ai_credit_grants_spent on :"schema".ai_credit_grants (user_id, priority, expires_at, id)
  where state = 'living' and credits_left < credits;

-- Daily usage is written late, of many records at once: see functions/daily_usage.sql.
alter table :"schema".ai_credits
  add column summed_seq bigint; -- the posting up to which daily usage has the account's records; null: it has all of them

-- What functions hand each other. No table's row type: a further column of a table changes none of these.

-- A locked account. Its updated_at is the instant of what is posted now.
create type :"schema".ai_credit_account as (
  user_id varchar, total_credits bigint, used_credits bigint, held_credits bigint, spent_before bigint, allocated bigint,
  overdraft bigint, seq bigint, summed_seq bigint, due_at timestamptz, created_at timestamptz, updated_at timestamptz,
  plan jsonb, plan_own boolean, next_plan jsonb, renews_at timestamptz,
  obstacle text, -- why nothing can be posted to it: the verdict of who has asked for it; null: nothing is in the way
  settled text   -- what time has done to it, as its caller is told; null: nothing
);

-- A usage record to be written.
create type :"schema".ai_credit_record as (
  id bigint, user_id varchar, seq bigint, kind text, credits_used bigint, operation varchar, metadata jsonb,
  created_at timestamptz, total_after bigint, used_after bigint, held_after bigint, idempotency_key text,
  request_hash bytea, hold_id bigint, amount bigint, uncollected bigint, refunded_id bigint, reason text,
  price_version text, quantities jsonb
);

-- A hold to be written.
create type :"schema".ai_credit_new_hold as (
  id bigint, user_id varchar, seq bigint, credits bigint, operation varchar, metadata jsonb, ttl integer,
  created_at timestamptz, expires_at timestamptz, total_after bigint, used_after bigint, held_after bigint,
  idempotency_key text, request_hash bytea
);

-- What a capture or a release reads and changes of a hold.
create type :"schema".ai_credit_hold_state as (
  id bigint, user_id varchar, seq bigint, state text, credits_left bigint, pinned bigint, operation varchar, metadata jsonb,
  closing_seq bigint, closing_hash bytea
);

-- What a call about a hold is told: see number 6.
alter type :"schema".ai_credit_answer alter attribute verdict type text;

-- An adopted table keeps the comment that its host gave it.
do $$
declare
  given record;
begin
  for given in
    select format('%I.%I', current_setting('fastify_ai_credits.schema'), name)::regclass as relation, said
    from (values ('ai_credits', 'Accounts: what each has, has spent and holds, and the terms that it has of its own.'),
      ('ai_credit_usage', 'Usage records: each deduct, capture and refund, with the balance after it.')) as ours (name, said)
  loop
    if obj_description(given.relation, 'pg_class') is null then
      execute format('comment on table %s is %L', given.relation, given.said);
    end if;
  end loop;
end
$$;
comment on table :"schema".ai_credit_daily_usage is 'Credits that an account used, summed by day, operation and metadata.';
comment on table :"schema".ai_credit_grants is 'Credits given to accounts, with what is left of each.';
comment on table :"schema".ai_credit_holds is 'Credits set aside for calls whose cost is not known yet.';
comment on table :"schema".ai_credit_events is 'Changes of accounts that have no row elsewhere: release, lapse, expiry, renewal, revoke.';
comment on table :"schema".ai_credit_pruned is 'Up to which posting an account''s old records were removed, and its balance then.';
comment on table :"schema".ai_credit_settings is 'What all processes on this database have to agree on.';
comment on table :"schema".ai_credit_migrations is 'The numbers of the files that made these tables.';
comment on table :"schema".ai_credit_functions is 'The sets of functions that were installed; the one with the highest number is in force.';

commit;
