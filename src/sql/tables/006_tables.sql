-- The tables, as of number 6: settings, accounts, usage records, daily usage, grants, holds, events, pruned books. The two
-- original tables, ai_credits and ai_credit_usage (INTEGER, SERIAL, TIMESTAMP, with rows), are upgraded in place where they
-- are there already.

begin isolation level read committed;
set local search_path to pg_catalog, pg_temp;
select set_config('fastify_ai_credits.schema', :'schema', true);

-- Several processes start at once: the others wait here, then find the number recorded.
select pg_advisory_xact_lock(hashtextextended('fastify-ai-credits', 0));

create table if not exists :"schema".ai_credit_migrations (
  id integer primary key,
  applied_at timestamptz not null default now()
);

insert into :"schema".ai_credit_migrations (id) values (6);

-- What all processes on this database must agree on: the time zone in which a day begins.
create table :"schema".ai_credit_settings (
  name varchar primary key,
  value varchar not null
);

-- Accounts

create table if not exists :"schema".ai_credits (
  user_id varchar primary key,
  total_credits bigint default 10000,
  used_credits bigint default 0,
  created_at timestamptz default now(),
  updated_at timestamptz default now()
);

-- Adopted accounts may have gaps where the original columns allowed null.
update :"schema".ai_credits
set total_credits = coalesce(total_credits, 10000),
    used_credits = coalesce(used_credits, 0),
    created_at = coalesce(created_at, updated_at, now()),
    updated_at = coalesce(updated_at, created_at, now())
where total_credits is null or used_credits is null or created_at is null or updated_at is null;

-- A timestamp without a zone is read in the session's time zone, which is how CURRENT_TIMESTAMP wrote it.
alter table :"schema".ai_credits
  alter column user_id type varchar,
  alter column total_credits type bigint,
  alter column total_credits set default 10000,
  alter column total_credits set not null,
  alter column used_credits type bigint,
  alter column used_credits set default 0,
  alter column used_credits set not null,
  alter column created_at type timestamptz,
  alter column created_at set default now(),
  alter column created_at set not null,
  alter column updated_at type timestamptz,
  alter column updated_at set default now(),
  alter column updated_at set not null,
  add column held_credits bigint not null default 0,          -- set aside by open holds
  add column spent_before bigint not null default 0,          -- spent, but not part of used_credits: earlier periods
  add column allocated bigint not null default 0,             -- spending already laid on grants
  add column opening_total bigint not null default 10000,     -- the balance before the first posting
  add column opening_used bigint not null default 0,
  add column overdraft bigint not null default 0,             -- how far available may go below zero
  add column seq bigint not null default 0,                   -- postings so far; each takes the next number
  add column due_at timestamptz not null default 'infinity';  -- when time alone changes this account next

-- Usage records

create table if not exists :"schema".ai_credit_usage (
  id bigserial primary key,
  user_id varchar,
  credits_used bigint,
  operation varchar,
  metadata jsonb,
  created_at timestamptz default now()
);

-- '' is an account that no caller can name: records that named nobody stay, and belong to nobody.
update :"schema".ai_credit_usage
set user_id = coalesce(user_id, ''),
    credits_used = coalesce(credits_used, 0),
    operation = coalesce(operation, ''),
    metadata = coalesce(metadata, '{}'),
    created_at = coalesce(created_at, now())
where user_id is null or credits_used is null or operation is null or metadata is null or created_at is null;

alter table :"schema".ai_credit_usage
  alter column id type bigint,
  alter column user_id type varchar,
  alter column user_id set not null,
  alter column credits_used type bigint,
  alter column credits_used drop default,
  alter column credits_used set not null,
  alter column operation type varchar,
  alter column operation set not null,
  alter column metadata type jsonb,
  alter column metadata set default '{}',
  alter column metadata set not null,
  alter column created_at type timestamptz,
  alter column created_at set default now(),
  alter column created_at set not null,
  add column seq bigint,                                      -- the account's posting number
  add column kind varchar not null default 'deduct',          -- what spent: the scope of an idempotency key
  add column total_after bigint,                              -- the balance that the caller was answered
  add column used_after bigint,
  add column held_after bigint,
  add column idempotency_key varchar,
  add column request_hash bytea;                              -- SHA-256 of the request that first used the key

-- Ids are taken before their rows are written, from a sequence that has one name, also that of an adopted table.
do $$
declare
  usage regclass := format('%I.ai_credit_usage', current_setting('fastify_ai_credits.schema'));
  sequence regclass := pg_get_serial_sequence(usage::text, 'id');
begin
  execute format('alter sequence %s as bigint', sequence);
  if (select relname from pg_class where oid = sequence) <> 'ai_credit_usage_id_seq' then
    execute format('alter sequence %s rename to ai_credit_usage_id_seq', sequence);
  end if;
end
$$;

-- Records of users without an account: they get one, as their first access would have given them.
insert into :"schema".ai_credits (user_id)
select distinct user_id from :"schema".ai_credit_usage
on conflict (user_id) do nothing;

-- Adopted records get their place in the account's order, and balances that lead up to the one the account has.
update :"schema".ai_credit_usage record
set seq = history.seq,
    total_after = account.total_credits,
    used_after = account.used_credits - history.spent_later,
    held_after = 0
from :"schema".ai_credits account,
  (select id, user_id,
     row_number() over earlier as seq,
     sum(credits_used) over (partition by user_id) - sum(credits_used) over earlier as spent_later
   from :"schema".ai_credit_usage
   window earlier as (partition by user_id order by created_at, id rows unbounded preceding)) history
where history.id = record.id and account.user_id = history.user_id;

-- Where used_credits differs from the sum of the records, the difference is kept, and counts as laid on grants.
update :"schema".ai_credits account
set seq = history.records, opening_total = account.total_credits, opening_used = account.used_credits - history.spent,
    spent_before = history.spent - account.used_credits, allocated = history.spent - account.used_credits
from (
  select user_id, count(record.id) as records, coalesce(sum(credits_used), 0) as spent
  from :"schema".ai_credits left join :"schema".ai_credit_usage record using (user_id)
  group by user_id
) history
where history.user_id = account.user_id;

alter table :"schema".ai_credit_usage
  alter column seq set not null,
  alter column total_after set not null,
  alter column used_after set not null,
  alter column held_after set not null;

create unique index ai_credit_usage_seq on :"schema".ai_credit_usage (user_id, seq);

-- The account's lock is what makes a key unique; this is the backstop. A capture's key belongs to its hold instead.
create unique index ai_credit_usage_key on :"schema".ai_credit_usage (user_id, kind, idempotency_key)
  where idempotency_key is not null and kind <> 'capture';

-- Daily usage: written with each charge, so that reading history costs what is shown

create table :"schema".ai_credit_daily_usage (
  user_id varchar not null,
  day date not null,
  operation varchar not null,
  metadata_hash bytea not null,  -- metadata may be too long for an index
  metadata jsonb not null,
  used_credits bigint not null,
  primary key (user_id, day, operation, metadata_hash)
);

alter table :"schema".ai_credits
  add column plan jsonb,                              -- the allowance that renews: credits, every, rollover, anchor
  add column plan_own boolean not null default false, -- it was set for this account; else it follows the host's option
  add column next_plan jsonb,                         -- what follows at the next renewal, where that was set; null in
                                                      -- JSON: nothing
  add column renews_at timestamptz not null default 'infinity';

alter table :"schema".ai_credit_usage
  add column hold_id bigint,      -- of a capture
  add column amount bigint,       -- of a capture: by how much it changed what is available
  add column uncollected bigint,  -- of a capture: what was asked for and not there
  add column refunded_id bigint,  -- of a refund: the record that it gives back
  add column reason varchar;      -- of a refund

create unique index ai_credit_usage_capture_key on :"schema".ai_credit_usage (user_id, hold_id, idempotency_key)
  where kind = 'capture' and idempotency_key is not null;

create index ai_credit_usage_refunded on :"schema".ai_credit_usage (user_id, refunded_id) where refunded_id is not null;

-- Credits given, which burn in the order of priority, expiry and age. The allowance is one too, made when it is first
-- needed: an account that only deducts has none.
create table :"schema".ai_credit_grants (
  id bigserial,
  user_id varchar not null,
  kind varchar not null,                  -- 'grant', 'allowance', 'refund' (what a refund gave back beyond all grants)
  state varchar not null default 'living',  -- 'living', 'expired', 'revoked'
  credits bigint not null,
  credits_left bigint not null,           -- what no spending has been laid on
  priority smallint not null,             -- a one-off allowance has 101 and burns last
  expires_at timestamptz not null default 'infinity',
  reason varchar,
  created_at timestamptz not null,
  seq bigint,                             -- of a grant: its posting, the balance after it, and its key
  total_after bigint,
  used_after bigint,
  held_after bigint,
  idempotency_key varchar,
  request_hash bytea,
  closing_seq bigint,                     -- the event that revoked it
  primary key (user_id, id)
);

create index ai_credit_grants_id on :"schema".ai_credit_grants (id);
create unique index ai_credit_grants_seq on :"schema".ai_credit_grants (user_id, seq) where seq is not null;
create unique index ai_credit_grants_key on :"schema".ai_credit_grants (user_id, idempotency_key)
  where idempotency_key is not null;
create index ai_credit_grants_living on :"schema".ai_credit_grants (user_id, priority, expires_at, id) where state = 'living';

-- Credits set aside.
create table :"schema".ai_credit_holds (
  id bigserial,
  user_id varchar not null,
  seq bigint not null,
  state varchar not null default 'open',  -- 'open', 'captured', 'released', 'lapsed'
  credits bigint not null,
  credits_left bigint not null,           -- still held; of a lapsed hold, what it held then
  pinned bigint not null default 0,       -- of those, kept from grants that have ended since
  operation varchar not null,
  metadata jsonb not null,
  ttl integer not null,                   -- milliseconds, as asked for
  created_at timestamptz not null,
  expires_at timestamptz not null,
  total_after bigint not null,
  used_after bigint not null,
  held_after bigint not null,
  idempotency_key varchar,
  request_hash bytea,
  closing_seq bigint,                     -- the posting that closed it
  closing_hash bytea,                     -- of the capture that closed it
  primary key (user_id, seq)
);

create index ai_credit_holds_id on :"schema".ai_credit_holds (id);
create index ai_credit_holds_open on :"schema".ai_credit_holds (user_id, id) where state = 'open';
create unique index ai_credit_holds_key on :"schema".ai_credit_holds (user_id, idempotency_key)
  where idempotency_key is not null;

-- The rare changes of an account that have no row elsewhere: release, lapse, expiry, renewal, revoke.
create table :"schema".ai_credit_events (
  user_id varchar not null,
  seq bigint not null,
  kind varchar not null,
  created_at timestamptz not null,
  amount bigint not null,     -- by how much it changed what is available
  reference_id bigint,        -- the hold or the grant
  details jsonb,              -- of a renewal: how many periods ended, the credits given, the credits that expired
  total_after bigint not null,
  used_after bigint not null,
  held_after bigint not null,
  primary key (user_id, seq)
);

-- The version of the price book that a charge by usage was computed with, and the quantities that it was computed from.
alter table :"schema".ai_credit_usage
  add column price_version varchar,
  add column quantities jsonb;

-- An account's books are closed up to one of its postings: with that one its statement opens, and of what is older only
-- that stays which something newer still needs. A table of its own, so that charges have no more of an account to write.
create table :"schema".ai_credit_pruned (
  user_id varchar primary key,
  seq bigint not null,          -- the posting that the books are closed with
  created_at timestamptz not null,
  total_after bigint not null,  -- the balance after it
  used_after bigint not null,
  held_after bigint not null,
  credits bigint not null       -- what the usage records that are gone add up to
);

-- What a call about a hold is told. id: of the usage record. null: nothing to say.
create type :"schema".ai_credit_answer as (
  verdict varchar, id bigint, total bigint, used bigint, held bigint, credits bigint, uncollected bigint, required bigint
);

commit;
