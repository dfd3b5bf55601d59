-- The tables, as of number 6: settings, accounts, usage records, daily usage, grants, holds, events, pruned books. Two of
-- them, ai_credits and ai_credit_usage, may be there already: ../adoption has then given their first columns these types.

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
  total_credits bigint not null default 10000,
  used_credits bigint not null default 0,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now()
);

alter table :"schema".ai_credits
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
  user_id varchar not null,
  credits_used bigint not null,
  operation varchar not null,
  metadata jsonb not null default '{}',
  created_at timestamptz not null default now()
);

-- Adopted records get their place in the account's order, and their balances, after this: until then they have 0.
alter table :"schema".ai_credit_usage
  add column seq bigint not null default 0,                   -- the account's posting number
  add column kind varchar not null default 'deduct',          -- what spent: the scope of an idempotency key
  add column total_after bigint not null default 0,           -- the balance that the caller was answered
  add column used_after bigint not null default 0,
  add column held_after bigint not null default 0,
  add column idempotency_key varchar,
  add column request_hash bytea;                              -- SHA-256 of the request that first used the key

alter table :"schema".ai_credit_usage
  alter column seq drop default,
  alter column total_after drop default,
  alter column used_after drop default,
  alter column held_after drop default;

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
