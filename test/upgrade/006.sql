-- fastify-ai-credits, migration 001: accounts, usage records, daily usage, and the functions that post to them.
--
-- The plugin runs this file at start. By hand: psql "$DATABASE_URL" -v ON_ERROR_STOP=1 -f 001_ai_credits.sql
-- It is one transaction; a second run stops at ai_credit_migrations_pkey and changes nothing.
-- Two tables that were there before (INTEGER, SERIAL, TIMESTAMP, with rows) are upgraded in place.

begin isolation level read committed;

-- Several processes start at once: the others wait here, then find the migration recorded.
select pg_advisory_xact_lock(hashtextextended('fastify-ai-credits', 0));

create table if not exists ai_credit_migrations (
  id integer primary key,
  applied_at timestamptz not null default now()
);

insert into ai_credit_migrations (id) values (1);

-- What all processes on this database must agree on: the time zone in which a day begins.
create table ai_credit_settings (
  name varchar primary key,
  value varchar not null
);

----------------------------------------------------------------------------------------------------------------------
-- Accounts
----------------------------------------------------------------------------------------------------------------------

create table if not exists ai_credits (
  user_id varchar primary key,
  total_credits bigint default 10000,
  used_credits bigint default 0,
  created_at timestamptz default now(),
  updated_at timestamptz default now()
);

-- Adopted accounts may have gaps where the original columns allowed null.
update ai_credits
set total_credits = coalesce(total_credits, 10000),
    used_credits = coalesce(used_credits, 0),
    created_at = coalesce(created_at, updated_at, now()),
    updated_at = coalesce(updated_at, created_at, now())
where total_credits is null or used_credits is null or created_at is null or updated_at is null;

-- A timestamp without a zone is read in the session's time zone, which is how CURRENT_TIMESTAMP wrote it.
alter table ai_credits
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

----------------------------------------------------------------------------------------------------------------------
-- Usage records
----------------------------------------------------------------------------------------------------------------------

create table if not exists ai_credit_usage (
  id bigserial primary key,
  user_id varchar,
  credits_used bigint,
  operation varchar,
  metadata jsonb,
  created_at timestamptz default now()
);

-- '' is an account that no caller can name: records that named nobody stay, and belong to nobody.
update ai_credit_usage
set user_id = coalesce(user_id, ''),
    credits_used = coalesce(credits_used, 0),
    operation = coalesce(operation, ''),
    metadata = coalesce(metadata, '{}'),
    created_at = coalesce(created_at, now())
where user_id is null or credits_used is null or operation is null or metadata is null or created_at is null;

alter table ai_credit_usage
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

do $$
begin
  execute format('alter sequence %s as bigint', pg_get_serial_sequence('ai_credit_usage', 'id'));
end
$$;

-- Records of users without an account: they get one, as their first access would have given them.
insert into ai_credits (user_id)
select distinct user_id from ai_credit_usage
on conflict (user_id) do nothing;

-- Adopted records get their place in the account's order, and balances that lead up to the one the account has.
update ai_credit_usage record
set seq = history.seq,
    total_after = account.total_credits,
    used_after = account.used_credits - history.spent_later,
    held_after = 0
from ai_credits account,
  (select id, user_id,
     row_number() over earlier as seq,
     sum(credits_used) over (partition by user_id) - sum(credits_used) over earlier as spent_later
   from ai_credit_usage
   window earlier as (partition by user_id order by created_at, id rows unbounded preceding)) history
where history.id = record.id and account.user_id = history.user_id;

-- Where used_credits differs from the sum of the records, the difference is kept, and counts as laid on grants.
update ai_credits account
set seq = history.records, opening_total = account.total_credits, opening_used = account.used_credits - history.spent,
    spent_before = history.spent - account.used_credits, allocated = history.spent - account.used_credits
from (
  select user_id, count(record.id) as records, coalesce(sum(credits_used), 0) as spent
  from ai_credits left join ai_credit_usage record using (user_id)
  group by user_id
) history
where history.user_id = account.user_id;

alter table ai_credit_usage
  alter column seq set not null,
  alter column total_after set not null,
  alter column used_after set not null,
  alter column held_after set not null;

create unique index ai_credit_usage_seq on ai_credit_usage (user_id, seq);

-- The account's lock is what makes a key unique; this is the backstop. A capture's key belongs to its hold instead.
create unique index ai_credit_usage_key on ai_credit_usage (user_id, kind, idempotency_key)
  where idempotency_key is not null and kind <> 'capture';

----------------------------------------------------------------------------------------------------------------------
-- Daily usage: written with each charge, so that reading history costs what is shown
----------------------------------------------------------------------------------------------------------------------

create table ai_credit_daily_usage (
  user_id varchar not null,
  day date not null,
  operation varchar not null,
  metadata_hash bytea not null,  -- metadata may be too long for an index
  metadata jsonb not null,
  used_credits bigint not null,
  primary key (user_id, day, operation, metadata_hash)
);

-- The text of jsonb has one order of keys, so equal content has one hash.
create function ai_credit_hash(p_content jsonb) returns bytea
language sql immutable parallel safe
return sha256(convert_to(p_content::text, 'UTF8'));

-- Answers in which time zone this database keeps its days: the first caller's. That one also sums up the records that
-- are older than daily usage.
create function ai_credit_use_time_zone(p_time_zone varchar) returns varchar
language plpgsql as $$
begin
  perform now() at time zone p_time_zone; -- an unknown one is an error before anything is written
  if not exists (select from ai_credit_settings where name = 'time_zone') then
    insert into ai_credit_settings (name, value) values ('time_zone', p_time_zone) on conflict (name) do nothing;
    if found then
      insert into ai_credit_daily_usage (user_id, day, operation, metadata_hash, metadata, used_credits)
      select user_id, (created_at at time zone p_time_zone)::date, operation, ai_credit_hash(shown), shown,
        sum(credits_used)
      from ai_credit_usage,
        lateral (select case jsonb_typeof(metadata) when 'object' then metadata
                        else jsonb_build_object('metadata', metadata) end as shown) object
      group by 1, 2, 3, 4, 5
      on conflict (user_id, day, operation, metadata_hash) do update set used_credits = excluded.used_credits;
    end if;
  end if;
  return (select value from ai_credit_settings where name = 'time_zone');
end
$$;

----------------------------------------------------------------------------------------------------------------------
-- The posting path. Each operation: lock, decide, post.
----------------------------------------------------------------------------------------------------------------------

-- The slow way to the lock: the account is missing, or another transaction holds it. The SET clause ends with the
-- function, so that the limit set inside leaves nothing behind in a host's transaction.
create function ai_credit_lock_waiting(p_user_id varchar, p_allowance jsonb, p_lock_timeout integer)
returns ai_credits
language plpgsql set lock_timeout = 0 as $$
declare
  account ai_credits;
  started timestamptz := clock_timestamp();
begin
  perform set_config('lock_timeout', p_lock_timeout::text, true);
  insert into ai_credits (user_id, total_credits, opening_total, created_at, updated_at)
  values (p_user_id, (p_allowance->>'credits')::bigint, (p_allowance->>'credits')::bigint,
    statement_timestamp(), statement_timestamp())
  on conflict (user_id) do nothing;
  select * into strict account from ai_credits where user_id = p_user_id for update;
  -- PostgreSQL's limit is one for each lock on the way, and a queue has several: late is late, however it came about.
  if clock_timestamp() > started + p_lock_timeout * interval '1 millisecond' then
    raise lock_not_available using message = 'canceling statement due to lock timeout';
  end if;
  return account;
end
$$;

-- Locks the account, creating it where it is missing, and answers it as of the posting instant (its updated_at).
-- Statements of a caller that come after this one see all that others committed while it waited.
create function ai_credit_lock(p_user_id varchar, p_allowance jsonb, p_lock_timeout integer)
returns ai_credits
language plpgsql as $$
declare
  account ai_credits;
begin
  select * into account from ai_credits where user_id = p_user_id for update skip locked;
  if not found then
    account := ai_credit_lock_waiting(p_user_id, p_allowance, p_lock_timeout);
  end if;
  account.updated_at := greatest(statement_timestamp(), account.updated_at);
  return account;
end
$$;

-- Writes a change of a locked account: the account as given, one usage record (its seq, time and balance are the
-- account's), and the record's share of daily usage. Answers the record's id.
create function ai_credit_post(p_account ai_credits, p_record ai_credit_usage, p_time_zone varchar)
returns bigint
language plpgsql as $$
declare
  record_id bigint;
begin
  update ai_credits
  set total_credits = p_account.total_credits, used_credits = p_account.used_credits,
      seq = p_account.seq, updated_at = p_account.updated_at
  where user_id = p_account.user_id;

  insert into ai_credit_usage (user_id, seq, kind, credits_used, operation, metadata, created_at,
    total_after, used_after, held_after, idempotency_key, request_hash)
  values (p_account.user_id, p_account.seq, p_record.kind, p_record.credits_used, p_record.operation,
    p_record.metadata, p_account.updated_at, p_account.total_credits, p_account.used_credits,
    p_account.held_credits, p_record.idempotency_key, p_record.request_hash)
  returning id into record_id;

  insert into ai_credit_daily_usage as daily (user_id, day, operation, metadata_hash, metadata, used_credits)
  values (p_account.user_id, (p_account.updated_at at time zone p_time_zone)::date, p_record.operation,
    ai_credit_hash(p_record.metadata), p_record.metadata, p_record.credits_used)
  on conflict (user_id, day, operation, metadata_hash)
  do update set used_credits = daily.used_credits + excluded.used_credits;

  return record_id;
end
$$;

-- Spends credits. verdict: 'accepted'; 'replayed' (the key was used for the same request: its record and the balance
-- of then); 'conflict' (the key was used for another request); 'insufficient' (nothing is written but the account).
create function ai_credit_deduct(
  p_user_id varchar, p_credits bigint, p_operation varchar, p_metadata jsonb,
  p_idempotency_key varchar, p_allowance jsonb, p_time_zone varchar, p_lock_timeout integer,
  out verdict varchar, out record_id bigint, out total bigint, out used bigint, out held bigint
)
language plpgsql as $$
declare
  account ai_credits := ai_credit_lock(p_user_id, p_allowance, p_lock_timeout);
  record ai_credit_usage;
  earlier ai_credit_usage;
begin
  record.kind := 'deduct';
  record.credits_used := p_credits;
  record.operation := p_operation;
  record.metadata := p_metadata;
  if p_idempotency_key is not null then
    record.idempotency_key := p_idempotency_key;
    record.request_hash := ai_credit_hash(jsonb_build_array(p_credits, p_operation, p_metadata));
    select * into earlier from ai_credit_usage
    where user_id = p_user_id and kind = 'deduct' and idempotency_key = p_idempotency_key;
    if found then
      verdict := case when earlier.request_hash = record.request_hash then 'replayed' else 'conflict' end;
      record_id := earlier.id;
      total := earlier.total_after;
      used := earlier.used_after;
      held := earlier.held_after;
      return;
    end if;
  end if;

  if account.total_credits - account.used_credits - account.held_credits + account.overdraft < p_credits then
    verdict := 'insufficient';
  else
    verdict := 'accepted';
    account.used_credits := account.used_credits + p_credits;
    account.seq := account.seq + 1;
    record_id := ai_credit_post(account, record, p_time_zone);
  end if;
  total := account.total_credits;
  used := account.used_credits;
  held := account.held_credits;
end
$$;

----------------------------------------------------------------------------------------------------------------------
-- Reading
----------------------------------------------------------------------------------------------------------------------

-- The committed balance, without waiting for charges in flight. Creates the account where it is missing.
create function ai_credit_balance(
  p_user_id varchar, p_allowance jsonb, p_lock_timeout integer,
  out total bigint, out used bigint, out held bigint
)
language plpgsql as $$
declare
  account ai_credits;
begin
  select * into account from ai_credits where user_id = p_user_id;
  if not found then
    account := ai_credit_lock(p_user_id, p_allowance, p_lock_timeout);
  end if;
  total := account.total_credits;
  used := account.used_credits;
  held := account.held_credits;
end
$$;

-- The balance and a page of daily usage in one snapshot, so that they agree. entries is a JSON array of
-- [day, used, operation, metadata, hash]; p_after_* name the last entry of the page before. Rows are found by the
-- primary key's (user_id, day) and sorted within one day at a time.
create function ai_credit_history(
  p_user_id varchar, p_allowance jsonb, p_lock_timeout integer, p_time_zone varchar, p_days integer, p_limit integer,
  p_after_day date, p_after_used bigint, p_after_operation varchar, p_after_hash bytea,
  out total bigint, out used bigint, out held bigint, out entries varchar
)
language plpgsql as $$
begin
  perform ai_credit_balance(p_user_id, p_allowance, p_lock_timeout);
  select account.total_credits, account.used_credits, account.held_credits, page.entries
  into total, used, held, entries
  from ai_credits account,
    lateral (
      select coalesce(json_agg(json_build_array(
          day, used_credits, operation, metadata, encode(metadata_hash, 'hex'))), '[]')::varchar as entries
      from (
        select * from ai_credit_daily_usage
        where user_id = p_user_id
          and day > (greatest(statement_timestamp(), account.updated_at) at time zone p_time_zone)::date - p_days
          and (p_after_day is null or day < p_after_day or day = p_after_day and (used_credits < p_after_used
            or used_credits = p_after_used and (operation collate "C", metadata_hash) > (p_after_operation, p_after_hash)))
        order by day desc, used_credits desc, operation collate "C", metadata_hash
        limit p_limit
      ) daily
    ) page
  where account.user_id = p_user_id;
end
$$;

commit;
-- fastify-ai-credits, migration 002: holds, grants, allowances that renew, refunds, statements, reconciliation.
--
-- By hand: psql "$DATABASE_URL" -v ON_ERROR_STOP=1 -f 002_holds_and_grants.sql, after 001.
-- The functions of 001 keep their signatures, so that processes of the version before go on working.

begin;

select pg_advisory_xact_lock(hashtextextended('fastify-ai-credits', 0));
insert into ai_credit_migrations (id) values (2);

----------------------------------------------------------------------------------------------------------------------
-- Tables
----------------------------------------------------------------------------------------------------------------------

alter table ai_credits
  add column plan jsonb,                              -- the allowance that renews: credits, every, rollover, anchor
  add column plan_own boolean not null default false, -- it was set for this account; else it follows the host's option
  add column next_plan jsonb,                         -- what follows at the next renewal, where that was set; null in
                                                      -- JSON: nothing
  add column renews_at timestamptz not null default 'infinity';

alter table ai_credit_usage
  add column hold_id bigint,      -- of a capture
  add column amount bigint,       -- of a capture: by how much it changed what is available
  add column uncollected bigint,  -- of a capture: what was asked for and not there
  add column refunded_id bigint,  -- of a refund: the record that it gives back
  add column reason varchar;      -- of a refund

create unique index ai_credit_usage_capture_key on ai_credit_usage (user_id, hold_id, idempotency_key)
  where kind = 'capture' and idempotency_key is not null;

create index ai_credit_usage_refunded on ai_credit_usage (user_id, refunded_id) where refunded_id is not null;

-- Credits given, which burn in the order of priority, expiry and age. The allowance is one too, made when it is first
-- needed: an account that only deducts has none.
create table ai_credit_grants (
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

create index ai_credit_grants_id on ai_credit_grants (id);
create unique index ai_credit_grants_seq on ai_credit_grants (user_id, seq) where seq is not null;
create unique index ai_credit_grants_key on ai_credit_grants (user_id, idempotency_key)
  where idempotency_key is not null;
create index ai_credit_grants_living on ai_credit_grants (user_id, priority, expires_at, id) where state = 'living';

-- Credits set aside.
create table ai_credit_holds (
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

create index ai_credit_holds_id on ai_credit_holds (id);
create index ai_credit_holds_open on ai_credit_holds (user_id, id) where state = 'open';
create unique index ai_credit_holds_key on ai_credit_holds (user_id, idempotency_key)
  where idempotency_key is not null;

-- The rare changes of an account that have no row elsewhere: release, lapse, expiry, renewal, revoke.
create table ai_credit_events (
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

----------------------------------------------------------------------------------------------------------------------
-- Writing an account
----------------------------------------------------------------------------------------------------------------------

create function ai_credit_available(p_account ai_credits) returns bigint
language sql immutable
return p_account.total_credits - p_account.used_credits - p_account.held_credits;

create function ai_credit_save(p_account ai_credits) returns void
language plpgsql as $$
begin
  update ai_credits
  set total_credits = p_account.total_credits, used_credits = p_account.used_credits,
      held_credits = p_account.held_credits, spent_before = p_account.spent_before, allocated = p_account.allocated,
      overdraft = p_account.overdraft, seq = p_account.seq, due_at = p_account.due_at,
      updated_at = p_account.updated_at, plan = p_account.plan, plan_own = p_account.plan_own,
      next_plan = p_account.next_plan, renews_at = p_account.renews_at
  where user_id = p_account.user_id;
end
$$;

create or replace function ai_credit_post(p_account ai_credits, p_record ai_credit_usage, p_time_zone varchar)
returns bigint
language plpgsql as $$
declare
  record_id bigint;
begin
  -- What spending changes, and no more: this is every deduct's path.
  update ai_credits
  set total_credits = p_account.total_credits, used_credits = p_account.used_credits,
      held_credits = p_account.held_credits, spent_before = p_account.spent_before, allocated = p_account.allocated,
      seq = p_account.seq, updated_at = p_account.updated_at
  where user_id = p_account.user_id;

  insert into ai_credit_usage (user_id, seq, kind, credits_used, operation, metadata, created_at,
    total_after, used_after, held_after, idempotency_key, request_hash,
    hold_id, amount, uncollected, refunded_id, reason)
  values (p_account.user_id, p_account.seq, p_record.kind, p_record.credits_used, p_record.operation,
    p_record.metadata, p_account.updated_at, p_account.total_credits, p_account.used_credits,
    p_account.held_credits, p_record.idempotency_key, p_record.request_hash,
    p_record.hold_id, p_record.amount, p_record.uncollected, p_record.refunded_id, p_record.reason)
  returning id into record_id;

  insert into ai_credit_daily_usage as daily (user_id, day, operation, metadata_hash, metadata, used_credits)
  values (p_account.user_id, (p_account.updated_at at time zone p_time_zone)::date, p_record.operation,
    ai_credit_hash(p_record.metadata), p_record.metadata, p_record.credits_used)
  on conflict (user_id, day, operation, metadata_hash)
  do update set used_credits = daily.used_credits + excluded.used_credits;

  return record_id;
end
$$;

-- Takes the account's next seq for an event at p_at.
create function ai_credit_note(
  inout account ai_credits, p_kind varchar, p_at timestamptz, p_amount bigint, p_reference_id bigint, p_details jsonb
)
language plpgsql as $$
begin
  account.seq := account.seq + 1;
  insert into ai_credit_events
    (user_id, seq, kind, created_at, amount, reference_id, details, total_after, used_after, held_after)
  values (account.user_id, account.seq, p_kind, p_at, p_amount, p_reference_id, p_details,
    account.total_credits, account.used_credits, account.held_credits);
end
$$;

----------------------------------------------------------------------------------------------------------------------
-- Grants: spending is laid on them lazily, before the set of grants changes. What no grant can cover stays pending: it
-- is debt, and the next grant pays it.
----------------------------------------------------------------------------------------------------------------------

create function ai_credit_open_grant(
  p_account ai_credits, p_kind varchar, p_credits bigint, p_priority integer, p_expires_at timestamptz
) returns bigint
language sql
begin atomic
  insert into ai_credit_grants (user_id, kind, credits, credits_left, priority, expires_at, created_at)
  values (p_account.user_id, p_kind, p_credits, p_credits, p_priority, p_expires_at, p_account.updated_at)
  returning id;
end;

-- Lays pending spending on the living grants. An account's first grant is the allowance that it already has: its
-- total, which nothing else has added to (one below zero, in an adopted account, is debt).
--
-- Here and below, what is to change is materialized, with the account in each row: else PostgreSQL may work it out anew for
-- every grant that there ever was.
create function ai_credit_allocate(inout account ai_credits)
language plpgsql as $$
declare
  pending bigint;
  laid bigint;
begin
  if not exists (select from ai_credit_grants where user_id = account.user_id) then
    perform ai_credit_open_grant(account, 'allowance', greatest(account.total_credits, 0),
      case when account.renews_at = 'infinity' then 101 else 50 end, account.renews_at);
    account.allocated := account.allocated + least(account.total_credits, 0);
  end if;
  pending := account.spent_before + account.used_credits - account.allocated;
  if pending > 0 then
    with burn as materialized (
      select user_id, id, least(credits_left, pending - (sum(credits_left) over burn_order - credits_left)) as credits
      from ai_credit_grants
      where user_id = account.user_id and state = 'living' and credits_left > 0
      window burn_order as (order by priority, expires_at, id)
    ), burnt as (
      update ai_credit_grants living
      set credits_left = living.credits_left - burn.credits
      from burn
      where living.user_id = burn.user_id and living.id = burn.id and burn.credits > 0
      returning burn.credits
    )
    select coalesce(sum(credits), 0) into laid from burnt;
    account.allocated := account.allocated + laid;
  end if;
end
$$;

-- Ends a grant. Pending spending is laid first, then open holds, by id, in burn order: where a hold lies on this grant,
-- that part is pinned to the hold and outlives the grant. Answers the rest, which the caller takes from the total.
create function ai_credit_end_grant(inout account ai_credits, p_grant_id bigint, p_state varchar, out rest bigint)
language plpgsql as $$
declare
  ending ai_credit_grants;
  lies_from bigint;
  kept bigint;
begin
  account := ai_credit_allocate(account);
  select * into strict ending from ai_credit_grants where user_id = account.user_id and id = p_grant_id;
  select coalesce(sum(credits_left), 0) into lies_from from ai_credit_grants
  where user_id = account.user_id and state = 'living'
    and (priority, expires_at, id) < (ending.priority, ending.expires_at, ending.id);

  with hold as (
    select user_id, seq, credits_left - pinned as credits, sum(credits_left - pinned) over (order by id) as lies_to
    from ai_credit_holds
    where user_id = account.user_id and state = 'open'
  ), overlap as materialized (
    select user_id, seq, least(lies_to, lies_from + ending.credits_left) - greatest(lies_to - credits, lies_from) as credits
    from hold
  ), pin as (
    update ai_credit_holds hold
    set pinned = hold.pinned + overlap.credits
    from overlap
    where hold.user_id = overlap.user_id and hold.seq = overlap.seq and overlap.credits > 0
    returning overlap.credits
  )
  select coalesce(sum(credits), 0) into kept from pin;

  update ai_credit_grants set state = p_state, credits_left = 0 where user_id = account.user_id and id = p_grant_id;
  rest := ending.credits_left - kept;
end
$$;

-- Ends a hold. What is pinned to it belongs to no living grant, and leaves the total.
create function ai_credit_end_hold(
  inout account ai_credits, p_hold ai_credit_holds, p_state varchar, p_closing_hash bytea default null
)
language plpgsql as $$
begin
  account.held_credits := account.held_credits - p_hold.credits_left;
  account.total_credits := account.total_credits - p_hold.pinned;
  update ai_credit_holds
  set state = p_state, credits_left = case p_state when 'lapsed' then credits_left else 0 end, pinned = 0,
      closing_seq = account.seq + 1, closing_hash = p_closing_hash
  where user_id = account.user_id and seq = p_hold.seq;
end
$$;

----------------------------------------------------------------------------------------------------------------------
-- Time
----------------------------------------------------------------------------------------------------------------------

create function ai_credit_time_zone() returns varchar
language sql stable
return coalesce((select value from ai_credit_settings where name = 'time_zone'), 'UTC');

-- When a day begins in a time zone: with the first of two midnights, and where there is none, with the next instant.
create function ai_credit_day_start(p_day timestamp, p_time_zone varchar) returns timestamptz
language sql stable
return least(p_day at time zone p_time_zone, (p_day - interval '1 hour') at time zone p_time_zone + interval '1 hour');

-- The end of the period of a plan that p_after lies in. Periods begin with the calendar's days, weeks (on Monday) and
-- months, or count from the account's first day: then a 31st is the last day of a shorter month.
create function ai_credit_next_renewal(p_plan jsonb, p_first timestamptz, p_after timestamptz) returns timestamptz
language plpgsql stable as $$
declare
  time_zone varchar := ai_credit_time_zone();
  first_day timestamp := date_trunc('day', p_first at time zone time_zone);
  local_time timestamp := p_after at time zone time_zone;
  every varchar := p_plan->>'every';
  periods integer;
  boundary timestamptz;
begin
  if p_plan->>'anchor' is distinct from 'account' then
    first_day := date_trunc(every, local_time);
    periods := 1;
  else
    periods := case every
      when 'day' then extract(day from local_time - first_day)
      when 'week' then extract(day from local_time - first_day)::integer / 7
      else extract(year from age(date_trunc('month', local_time), date_trunc('month', first_day))) * 12
        + extract(month from age(date_trunc('month', local_time), date_trunc('month', first_day)))
    end;
  end if;
  loop
    boundary := ai_credit_day_start(first_day + periods * ('1 ' || every)::interval, time_zone);
    exit when boundary > p_after;
    periods := periods + 1;
  end loop;
  return boundary;
end
$$;

create function ai_credit_max() returns bigint
language sql immutable
return 9007199254740991; -- 2^53 - 1, the largest whole number that every reader of JSON holds exactly

-- How much of an ending period's allowance a plan carries into the next.
create function ai_credit_rollover(p_plan jsonb) returns bigint
language sql immutable
return case
  when p_plan->>'rollover' = 'all' then ai_credit_max()
  else coalesce((p_plan#>>'{rollover,max}')::bigint, 0)
end;

-- Begins a period: gives the plan's allowance beside what is carried into it, both of which are for a grant that ends at
-- renews_at. The total never passes 2^53 - 1.
create function ai_credit_begin_period(
  inout account ai_credits, p_carried bigint, p_at timestamptz, out allowance_left bigint
)
language plpgsql as $$
declare
  given bigint := coalesce((account.plan->>'credits')::bigint, 0);
begin
  given := greatest(0, least(given, ai_credit_max() - account.total_credits));
  account.total_credits := account.total_credits + given;
  account.renews_at := case when account.plan is null then 'infinity'
    else ai_credit_next_renewal(account.plan, account.created_at, p_at) end;
  allowance_left := given + p_carried;
end
$$;

create function ai_credit_open_allowance(p_account ai_credits, p_credits bigint) returns bigint
language sql
return ai_credit_open_grant(p_account, 'allowance', p_credits,
  case when p_account.renews_at = 'infinity' then 101 else 50 end, p_account.renews_at);

-- Ends the running period's allowance. Answers what was left of it; the account's total has it still.
create function ai_credit_end_allowance(inout account ai_credits, out allowance_left bigint)
language plpgsql as $$
declare
  ended record;
  allowance_id bigint;
begin
  account := ai_credit_allocate(account);
  select id into strict allowance_id from ai_credit_grants
  where user_id = account.user_id and state = 'living' and kind = 'allowance' and expires_at = account.renews_at;
  ended := ai_credit_end_grant(account, allowance_id, 'expired');
  account := ended.account;
  allowance_left := ended.rest;
  delete from ai_credit_grants where user_id = account.user_id and id = allowance_id; -- nothing refers to it
end
$$;

-- Ends the period at renews_at and begins the next: the allowance's rest expires but for what is carried, and used
-- starts again at 0.
create function ai_credit_renew(
  inout account ai_credits, p_allowance jsonb, inout allowance_left bigint, out expired bigint
)
language plpgsql as $$
declare
  boundary timestamptz := account.renews_at;
  carried bigint := least(allowance_left, ai_credit_rollover(account.plan));
  begun record;
begin
  account.spent_before := account.spent_before + account.used_credits;
  account.total_credits := account.total_credits - account.used_credits;
  account.used_credits := 0;

  if account.next_plan is not null then
    account.plan := nullif(account.next_plan, 'null');
    account.next_plan := null;
  elsif not account.plan_own and p_allowance ? 'every' then
    account.plan := p_allowance;
  end if;
  expired := allowance_left - carried;
  account.total_credits := account.total_credits - expired;
  begun := ai_credit_begin_period(account, carried, boundary);
  account := begun.account;
  allowance_left := begun.allowance_left;
end
$$;

-- The next instant at which a hold lapses or a grant expires.
create function ai_credit_next_end(p_user_id varchar) returns timestamptz
language sql stable
return least('infinity',
  (select min(expires_at) from ai_credit_holds where user_id = p_user_id and state = 'open'),
  (select min(expires_at) from ai_credit_grants where user_id = p_user_id and state = 'living' and kind <> 'allowance'));

-- Renews as often as periods have ended by p_now with nothing else between, as one event. An allowance that nothing
-- but debt has drawn on is not written: ten idle years of days are settled at once.
create function ai_credit_renew_until(inout account ai_credits, p_now timestamptz, p_allowance jsonb)
language plpgsql as $$
declare
  available bigint := ai_credit_available(account);
  next_end timestamptz := ai_credit_next_end(account.user_id);
  period record;
  renewed_at timestamptz;
  paid bigint;
  periods integer := 0;
  expired bigint := 0;
begin
  period := ai_credit_end_allowance(account);
  loop
    account := period.account;
    renewed_at := account.renews_at;
    period := ai_credit_renew(account, p_allowance, period.allowance_left);
    account := period.account;
    expired := expired + period.expired;
    periods := periods + 1;
    exit when account.renews_at > p_now or account.renews_at >= next_end;
    if account.held_credits > 0 then
      perform ai_credit_open_allowance(account, period.allowance_left);
      period := ai_credit_end_allowance(account);
    else
      paid := least(period.allowance_left, account.spent_before - account.allocated);
      account.allocated := account.allocated + paid;
      select account, period.allowance_left - paid as allowance_left into period;
    end if;
  end loop;
  perform ai_credit_open_allowance(account, period.allowance_left);
  account := ai_credit_note(account, 'renewal', renewed_at, ai_credit_available(account) - available, null,
    jsonb_build_object('periods', periods, 'expired', expired, 'allowance', account.plan));
end
$$;

-- Makes happen what is due by p_now, instants in order; at one instant holds lapse, then grants expire, then the
-- allowance renews.
create function ai_credit_settle(inout account ai_credits, p_now timestamptz, p_allowance jsonb)
language plpgsql as $$
declare
  lapsing ai_credit_holds;
  expiring ai_credit_grants;
  ended record;
begin
  loop
    account.due_at := least(account.renews_at, ai_credit_next_end(account.user_id));
    exit when account.due_at > p_now;
    for lapsing in
      select * from ai_credit_holds
      where user_id = account.user_id and state = 'open' and expires_at <= account.due_at order by id
    loop
      account := ai_credit_end_hold(account, lapsing, 'lapsed');
      account := ai_credit_note(account, 'lapse', account.due_at, lapsing.credits_left - lapsing.pinned, lapsing.id, null);
    end loop;
    for expiring in
      select * from ai_credit_grants
      where user_id = account.user_id and state = 'living' and kind <> 'allowance' and expires_at <= account.due_at
      order by priority, expires_at, id
    loop
      ended := ai_credit_end_grant(account, expiring.id, 'expired');
      account := ended.account;
      account.total_credits := account.total_credits - ended.rest;
      account := ai_credit_note(account, 'expiry', account.due_at, -ended.rest, expiring.id, null);
    end loop;
    if account.renews_at = account.due_at then
      account := ai_credit_renew_until(account, p_now, p_allowance);
    end if;
  end loop;
  perform ai_credit_save(account);
end
$$;

----------------------------------------------------------------------------------------------------------------------
-- Locking, as in 001; what is due happens in the same statement
----------------------------------------------------------------------------------------------------------------------

create or replace function ai_credit_lock_waiting(p_user_id varchar, p_allowance jsonb, p_lock_timeout integer)
returns ai_credits
language plpgsql set lock_timeout = 0 as $$
declare
  account ai_credits;
  credits bigint := (p_allowance->>'credits')::bigint;
  plan jsonb := case when p_allowance ? 'every' then p_allowance end;
  instant timestamptz := statement_timestamp();
  renewal timestamptz := 'infinity';
  started timestamptz := clock_timestamp();
begin
  perform set_config('lock_timeout', p_lock_timeout::text, true);
  if plan is not null then
    renewal := ai_credit_next_renewal(plan, instant, instant);
  end if;
  insert into ai_credits (user_id, total_credits, opening_total, created_at, updated_at, plan, renews_at, due_at)
  values (p_user_id, credits, credits, instant, instant, plan, renewal, renewal)
  on conflict (user_id) do nothing;
  select * into strict account from ai_credits where user_id = p_user_id for update;
  if clock_timestamp() > started + p_lock_timeout * interval '1 millisecond' then -- late is late, as in 001
    raise lock_not_available using message = 'canceling statement due to lock timeout';
  end if;
  return account;
end
$$;

create or replace function ai_credit_lock(p_user_id varchar, p_allowance jsonb, p_lock_timeout integer)
returns ai_credits
language plpgsql as $$
declare
  account ai_credits;
begin
  select * into account from ai_credits where user_id = p_user_id for update skip locked;
  if not found then
    account := ai_credit_lock_waiting(p_user_id, p_allowance, p_lock_timeout);
  end if;
  account.updated_at := greatest(statement_timestamp(), account.updated_at);
  if account.due_at <= account.updated_at then
    account := ai_credit_settle(account, account.updated_at, p_allowance);
  end if;
  return account;
end
$$;

create or replace function ai_credit_balance(
  p_user_id varchar, p_allowance jsonb, p_lock_timeout integer,
  out total bigint, out used bigint, out held bigint
)
language plpgsql as $$
declare
  account ai_credits;
begin
  select * into account from ai_credits where user_id = p_user_id;
  if not found or account.due_at <= greatest(statement_timestamp(), account.updated_at) then
    account := ai_credit_lock(p_user_id, p_allowance, p_lock_timeout);
  end if;
  total := account.total_credits;
  used := account.used_credits;
  held := account.held_credits;
end
$$;

-- As in 001, without the entries that refunds have brought to nothing.
create or replace function ai_credit_history(
  p_user_id varchar, p_allowance jsonb, p_lock_timeout integer, p_time_zone varchar, p_days integer, p_limit integer,
  p_after_day date, p_after_used bigint, p_after_operation varchar, p_after_hash bytea,
  out total bigint, out used bigint, out held bigint, out entries varchar
)
language plpgsql as $$
begin
  perform ai_credit_balance(p_user_id, p_allowance, p_lock_timeout);
  select account.total_credits, account.used_credits, account.held_credits, page.entries
  into total, used, held, entries
  from ai_credits account,
    lateral (
      select coalesce(json_agg(json_build_array(
          day, used_credits, operation, metadata, encode(metadata_hash, 'hex'))), '[]')::varchar as entries
      from (
        select * from ai_credit_daily_usage
        where user_id = p_user_id and used_credits <> 0
          and day > (greatest(statement_timestamp(), account.updated_at) at time zone p_time_zone)::date - p_days
          and (p_after_day is null or day < p_after_day or day = p_after_day and (used_credits < p_after_used
            or used_credits = p_after_used and (operation collate "C", metadata_hash) > (p_after_operation, p_after_hash)))
        order by day desc, used_credits desc, operation collate "C", metadata_hash
        limit p_limit
      ) daily
    ) page
  where account.user_id = p_user_id;
end
$$;

-- An instant as callers read it; infinity is none.
create function ai_credit_iso(p_instant timestamptz) returns varchar
language sql stable
return case when p_instant < 'infinity' then to_char(p_instant at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') end;

----------------------------------------------------------------------------------------------------------------------
-- Holds. Verdicts beside those of a deduct: 'missing' (no such hold), 'closed' (it was closed by another call).
----------------------------------------------------------------------------------------------------------------------

create function ai_credit_hold(
  p_user_id varchar, p_credits bigint, p_operation varchar, p_metadata jsonb, p_ttl integer,
  p_idempotency_key varchar, p_allowance jsonb, p_lock_timeout integer,
  out verdict varchar, out id bigint, out expires_at varchar, out total bigint, out used bigint, out held bigint
)
language plpgsql as $$
#variable_conflict use_column
declare
  account ai_credits := ai_credit_lock(p_user_id, p_allowance, p_lock_timeout);
  hold ai_credit_holds;
  hash bytea;
begin
  if p_idempotency_key is not null then
    hash := ai_credit_hash(jsonb_build_array(p_credits, p_operation, p_metadata, p_ttl));
    select * into hold from ai_credit_holds where user_id = p_user_id and idempotency_key = p_idempotency_key;
    if found then
      verdict := case when hold.request_hash = hash then 'replayed' else 'conflict' end;
      ai_credit_hold.id := hold.id;
      ai_credit_hold.expires_at := ai_credit_iso(hold.created_at + hold.ttl * interval '1 millisecond');
      total := hold.total_after;
      used := hold.used_after;
      held := hold.held_after;
      return;
    end if;
  end if;

  if ai_credit_available(account) + account.overdraft < p_credits then
    verdict := 'insufficient';
  else
    verdict := 'accepted';
    account.held_credits := account.held_credits + p_credits;
    account.seq := account.seq + 1;
    insert into ai_credit_holds (user_id, seq, credits, credits_left, operation, metadata, ttl, created_at, expires_at,
      total_after, used_after, held_after, idempotency_key, request_hash)
    values (p_user_id, account.seq, p_credits, p_credits, p_operation, p_metadata, p_ttl, account.updated_at,
      account.updated_at + p_ttl * interval '1 millisecond',
      account.total_credits, account.used_credits, account.held_credits, p_idempotency_key, hash)
    returning * into hold;
    account.due_at := least(account.due_at, hold.expires_at);
    perform ai_credit_save(account);
    ai_credit_hold.id := hold.id;
    ai_credit_hold.expires_at := ai_credit_iso(hold.expires_at);
  end if;
  total := account.total_credits;
  used := account.used_credits;
  held := account.held_credits;
end
$$;

-- The account of a hold, and nobody's where the caller names another one.
create function ai_credit_hold_user(p_hold_id bigint, p_user_id varchar) returns varchar
language sql stable
return (select user_id from ai_credit_holds where id = p_hold_id and user_id = coalesce(p_user_id, user_id));

-- Turns a hold, or a part of it, into spending. p_credits null: all that is left. Beyond what the hold has it draws on
-- what is available; where that is short, p_shortfall 'partial' takes what is there, 'reject' refuses.
create function ai_credit_capture(
  p_hold_id bigint, p_user_id varchar, p_credits bigint, p_metadata jsonb, p_final boolean, p_shortfall varchar,
  p_idempotency_key varchar, p_allowance jsonb, p_time_zone varchar, p_lock_timeout integer,
  out verdict varchar, out user_id varchar, out record_id bigint, out credits bigint, out uncollected bigint,
  out required bigint, out total bigint, out used bigint, out held bigint
)
language plpgsql as $$
#variable_conflict use_column
declare
  account ai_credits;
  hold ai_credit_holds;
  record ai_credit_usage;
  earlier ai_credit_usage;
  hash bytea := ai_credit_hash(jsonb_build_array(p_credits, p_metadata, p_final, p_shortfall));
  available bigint;
  own bigint;     -- of the credits, what the hold covers
  extra bigint;   -- and what it does not, so far as it is available
  pinned bigint;  -- of the own, what was kept from grants that have ended
begin
  ai_credit_capture.user_id := ai_credit_hold_user(p_hold_id, p_user_id);
  if ai_credit_capture.user_id is null then
    verdict := 'missing';
    return;
  end if;
  account := ai_credit_lock(ai_credit_capture.user_id, p_allowance, p_lock_timeout);
  select * into hold from ai_credit_holds where user_id = account.user_id and id = p_hold_id;

  if p_idempotency_key is not null then
    select * into earlier from ai_credit_usage
    where user_id = account.user_id and kind = 'capture' and hold_id = p_hold_id and idempotency_key = p_idempotency_key;
  elsif hold.state = 'captured' and hold.closing_hash = hash then
    select * into earlier from ai_credit_usage where user_id = account.user_id and seq = hold.closing_seq;
  end if;
  if earlier.id is not null then
    verdict := case when earlier.request_hash = hash then 'replayed' else 'conflict' end;
    record_id := earlier.id;
    credits := earlier.credits_used;
    ai_credit_capture.uncollected := earlier.uncollected;
    total := earlier.total_after;
    used := earlier.used_after;
    held := earlier.held_after;
    return;
  end if;

  available := ai_credit_available(account);
  required := coalesce(p_credits, hold.credits_left);
  own := case hold.state when 'open' then least(required, hold.credits_left) else 0 end;
  extra := least(required - own, greatest(0, available + account.overdraft));
  if hold.state not in ('open', 'lapsed') then
    verdict := 'closed';
  elsif own + extra < required and p_shortfall = 'reject' then
    verdict := 'insufficient';
  else
    verdict := 'accepted';
    pinned := least(own, hold.pinned);
    account.allocated := account.allocated + pinned;
    account.held_credits := account.held_credits - own;
    account.used_credits := account.used_credits + own + extra;
    hold.credits_left := hold.credits_left - own;
    hold.pinned := hold.pinned - pinned;
    if hold.state = 'lapsed' then -- it has given back what it held
      update ai_credit_holds set state = 'captured', credits_left = 0, closing_seq = account.seq + 1, closing_hash = hash
      where user_id = account.user_id and seq = hold.seq;
    elsif p_final then
      account := ai_credit_end_hold(account, hold, 'captured', hash);
    else
      update ai_credit_holds set credits_left = hold.credits_left, pinned = hold.pinned
      where user_id = account.user_id and seq = hold.seq;
    end if;
    account.seq := account.seq + 1;
    record.kind := 'capture';
    record.credits_used := own + extra;
    record.operation := hold.operation;
    record.metadata := hold.metadata || coalesce(p_metadata, '{}');
    record.idempotency_key := p_idempotency_key;
    record.request_hash := hash;
    record.hold_id := p_hold_id;
    record.amount := ai_credit_available(account) - available;
    record.uncollected := required - own - extra;
    record_id := ai_credit_post(account, record, p_time_zone);
    credits := record.credits_used;
    ai_credit_capture.uncollected := record.uncollected;
  end if;
  total := account.total_credits;
  used := account.used_credits;
  held := account.held_credits;
end
$$;

-- Gives back what a hold has left. One that has lapsed already did.
create function ai_credit_release(
  p_hold_id bigint, p_user_id varchar, p_allowance jsonb, p_lock_timeout integer,
  out verdict varchar, out user_id varchar, out credits bigint, out total bigint, out used bigint, out held bigint
)
language plpgsql as $$
#variable_conflict use_column
declare
  account ai_credits;
  hold ai_credit_holds;
  event ai_credit_events;
begin
  ai_credit_release.user_id := ai_credit_hold_user(p_hold_id, p_user_id);
  if ai_credit_release.user_id is null then
    verdict := 'missing';
    return;
  end if;
  account := ai_credit_lock(ai_credit_release.user_id, p_allowance, p_lock_timeout);
  select * into hold from ai_credit_holds where user_id = account.user_id and id = p_hold_id;
  if hold.state = 'captured' then
    verdict := 'closed';
    return;
  end if;
  if hold.state = 'open' then
    verdict := 'accepted';
    account := ai_credit_end_hold(account, hold, 'released');
    account := ai_credit_note(account, 'release', account.updated_at, hold.credits_left - hold.pinned, hold.id, null);
    perform ai_credit_save(account);
    hold.closing_seq := account.seq;
  else
    verdict := 'replayed';
  end if;
  select * into event from ai_credit_events where user_id = account.user_id and seq = hold.closing_seq;
  credits := event.amount;
  total := event.total_after;
  used := event.used_after;
  held := event.held_after;
end
$$;

-- Lets a hold live for p_ttl milliseconds from now, if that is longer than it would.
create function ai_credit_extend(
  p_hold_id bigint, p_user_id varchar, p_ttl integer, p_allowance jsonb, p_lock_timeout integer,
  out verdict varchar, out user_id varchar, out credits bigint, out expires_at varchar,
  out total bigint, out used bigint, out held bigint
)
language plpgsql as $$
#variable_conflict use_column
declare
  account ai_credits;
  hold ai_credit_holds;
begin
  ai_credit_extend.user_id := ai_credit_hold_user(p_hold_id, p_user_id);
  if ai_credit_extend.user_id is null then
    verdict := 'missing';
    return;
  end if;
  account := ai_credit_lock(ai_credit_extend.user_id, p_allowance, p_lock_timeout);
  update ai_credit_holds
  set expires_at = greatest(expires_at, account.updated_at + p_ttl * interval '1 millisecond')
  where user_id = account.user_id and id = p_hold_id and state = 'open'
  returning * into hold;
  verdict := case when found then 'accepted' else 'closed' end;
  credits := hold.credits_left;
  ai_credit_extend.expires_at := ai_credit_iso(hold.expires_at);
  total := account.total_credits;
  used := account.used_credits;
  held := account.held_credits;
end
$$;

----------------------------------------------------------------------------------------------------------------------
-- Grants. Verdicts besides: 'past' (it would have expired already), 'overflow' (the total would pass 2^53 - 1).
----------------------------------------------------------------------------------------------------------------------

create function ai_credit_grant(
  p_user_id varchar, p_credits bigint, p_reason varchar, p_expires_at timestamptz, p_priority integer,
  p_idempotency_key varchar, p_allowance jsonb, p_lock_timeout integer,
  out verdict varchar, out id bigint, out total bigint, out used bigint, out held bigint
)
language plpgsql as $$
#variable_conflict use_column
declare
  account ai_credits := ai_credit_lock(p_user_id, p_allowance, p_lock_timeout);
  earlier ai_credit_grants;
  hash bytea;
begin
  if p_idempotency_key is not null then
    hash := ai_credit_hash(jsonb_build_array(p_credits, p_reason, ai_credit_iso(p_expires_at), p_priority));
    select * into earlier from ai_credit_grants where user_id = p_user_id and idempotency_key = p_idempotency_key;
    if found then
      verdict := case when earlier.request_hash = hash then 'replayed' else 'conflict' end;
      ai_credit_grant.id := earlier.id;
      total := earlier.total_after;
      used := earlier.used_after;
      held := earlier.held_after;
      return;
    end if;
  end if;

  if p_expires_at <= account.updated_at then
    verdict := 'past';
  elsif account.total_credits > ai_credit_max() - p_credits then
    verdict := 'overflow';
  else
    verdict := 'accepted';
    account := ai_credit_allocate(account);
    account.total_credits := account.total_credits + p_credits;
    account.seq := account.seq + 1;
    insert into ai_credit_grants (user_id, kind, credits, credits_left, priority, expires_at, reason, created_at, seq,
      total_after, used_after, held_after, idempotency_key, request_hash)
    values (p_user_id, 'grant', p_credits, p_credits, p_priority, p_expires_at, p_reason, account.updated_at,
      account.seq, account.total_credits, account.used_credits, account.held_credits, p_idempotency_key, hash)
    returning ai_credit_grants.id into ai_credit_grant.id;
    account := ai_credit_allocate(account);
    account.due_at := least(account.due_at, p_expires_at);
    perform ai_credit_save(account);
  end if;
  total := account.total_credits;
  used := account.used_credits;
  held := account.held_credits;
end
$$;

-- Takes back what is unspent of a grant.
create function ai_credit_revoke(
  p_grant_id bigint, p_user_id varchar, p_allowance jsonb, p_lock_timeout integer,
  out verdict varchar, out user_id varchar, out credits bigint, out total bigint, out used bigint, out held bigint
)
language plpgsql as $$
#variable_conflict use_column
declare
  account ai_credits;
  revoked ai_credit_grants;
  event ai_credit_events;
  ended record;
begin
  select user_id into ai_credit_revoke.user_id from ai_credit_grants
  where id = p_grant_id and kind = 'grant' and user_id = coalesce(p_user_id, user_id);
  if not found then
    verdict := 'missing';
    return;
  end if;
  account := ai_credit_lock(ai_credit_revoke.user_id, p_allowance, p_lock_timeout);
  select * into revoked from ai_credit_grants where user_id = account.user_id and id = p_grant_id;
  if revoked.state = 'expired' then
    verdict := 'closed';
    return;
  end if;
  if revoked.state = 'living' then
    verdict := 'accepted';
    ended := ai_credit_end_grant(account, p_grant_id, 'revoked');
    account := ended.account;
    account.total_credits := account.total_credits - ended.rest;
    account := ai_credit_note(account, 'revoke', account.updated_at, -ended.rest, p_grant_id, null);
    update ai_credit_grants set closing_seq = account.seq where user_id = account.user_id and id = p_grant_id;
    perform ai_credit_save(account);
    revoked.closing_seq := account.seq;
  else
    verdict := 'replayed';
  end if;
  select * into event from ai_credit_events where user_id = account.user_id and seq = revoked.closing_seq;
  credits := -event.amount;
  total := event.total_after;
  used := event.used_after;
  held := event.held_after;
end
$$;

----------------------------------------------------------------------------------------------------------------------
-- Refunds. Verdict besides: 'exceeds' (more than the record has left to give back).
----------------------------------------------------------------------------------------------------------------------

-- Gives credits back to the living grants, the last to burn first, each at most what it gave; what fits in none
-- becomes a grant of its own.
create function ai_credit_give_back(inout account ai_credits, p_credits bigint)
language plpgsql as $$
declare
  fitting bigint;
begin
  with burn as materialized (
    select user_id, id, least(credits - credits_left,
      p_credits - (sum(credits - credits_left) over back_order - (credits - credits_left))) as credits
    from ai_credit_grants
    where user_id = account.user_id and state = 'living' and credits > credits_left
    window back_order as (order by priority desc, expires_at desc, id desc)
  ), given as (
    update ai_credit_grants living
    set credits_left = living.credits_left + burn.credits
    from burn
    where living.user_id = burn.user_id and living.id = burn.id and burn.credits > 0
    returning burn.credits
  )
  select coalesce(sum(credits), 0) into fitting from given;
  account.allocated := account.allocated - p_credits;
  if p_credits > fitting then
    perform ai_credit_open_grant(account, 'refund', p_credits - fitting, 50, 'infinity');
  end if;
end
$$;

-- Gives spent credits back: those of the record p_record_id, or of the deduct with the key p_deduct_key. p_credits null:
-- all that was not given back before. Debt is paid first.
create function ai_credit_refund(
  p_record_id bigint, p_user_id varchar, p_deduct_key varchar, p_credits bigint, p_reason varchar,
  p_idempotency_key varchar, p_allowance jsonb, p_time_zone varchar, p_lock_timeout integer,
  out verdict varchar, out user_id varchar, out usage_id bigint, out record_id bigint, out credits bigint,
  out total bigint, out used bigint, out held bigint
)
language plpgsql as $$
#variable_conflict use_column
declare
  account ai_credits;
  original ai_credit_usage;
  earlier ai_credit_usage;
  record ai_credit_usage;
  refundable bigint;
  debt bigint;
  in_period bigint; -- what was spent in this period is taken from used, the rest was spent before
begin
  if p_record_id is null then
    select * into original from ai_credit_usage
    where user_id = p_user_id and kind = 'deduct' and idempotency_key = p_deduct_key;
  else
    select * into original from ai_credit_usage
    where id = p_record_id and kind <> 'refund' and user_id = coalesce(p_user_id, user_id);
  end if;
  if not found then
    verdict := 'missing';
    return;
  end if;
  ai_credit_refund.user_id := original.user_id;
  usage_id := original.id;
  account := ai_credit_lock(original.user_id, p_allowance, p_lock_timeout);

  record.request_hash := ai_credit_hash(jsonb_build_array(original.id, p_credits, p_reason));
  if p_idempotency_key is not null then
    select * into earlier from ai_credit_usage
    where user_id = account.user_id and kind = 'refund' and idempotency_key = p_idempotency_key;
    if found then
      verdict := case when earlier.request_hash = record.request_hash then 'replayed' else 'conflict' end;
      record_id := earlier.id;
      credits := -earlier.credits_used;
      total := earlier.total_after;
      used := earlier.used_after;
      held := earlier.held_after;
      return;
    end if;
  end if;

  select original.credits_used + coalesce(sum(credits_used), 0) into refundable
  from ai_credit_usage where user_id = account.user_id and refunded_id = original.id;
  credits := coalesce(p_credits, refundable);
  in_period := least(credits, greatest(0, account.used_credits));
  if credits > refundable or credits = 0 then
    verdict := 'exceeds';
  elsif account.total_credits > ai_credit_max() - (credits - in_period) then
    verdict := 'overflow';
  else
    verdict := 'accepted';
    account := ai_credit_allocate(account);
    debt := account.spent_before + account.used_credits - account.allocated;
    account.used_credits := account.used_credits - in_period;
    account.spent_before := account.spent_before - (credits - in_period);
    account.total_credits := account.total_credits + (credits - in_period);
    if credits > debt then
      account := ai_credit_give_back(account, credits - debt);
    end if;
    account.seq := account.seq + 1;
    record.kind := 'refund';
    record.credits_used := -credits;
    record.operation := original.operation;
    record.metadata := original.metadata;
    record.idempotency_key := p_idempotency_key;
    record.refunded_id := original.id;
    record.reason := p_reason;
    record_id := ai_credit_post(account, record, p_time_zone);
  end if;
  total := account.total_credits;
  used := account.used_credits;
  held := account.held_credits;
end
$$;

----------------------------------------------------------------------------------------------------------------------
-- An account's own terms
----------------------------------------------------------------------------------------------------------------------

-- Gives an account a plan of its own: from its next renewal, or at once if none is running. p_plan null: none.
create function ai_credit_set_allowance(
  p_user_id varchar, p_plan jsonb, p_allowance jsonb, p_lock_timeout integer,
  out renews_at varchar, out total bigint, out used bigint, out held bigint
)
language plpgsql as $$
declare
  account ai_credits := ai_credit_lock(p_user_id, p_allowance, p_lock_timeout);
  available bigint := ai_credit_available(account);
  begun record;
begin
  account.plan_own := true;
  if account.renews_at < 'infinity' then
    account.next_plan := coalesce(p_plan, 'null');
  elsif p_plan is not null then
    account := ai_credit_allocate(account);
    account.plan := p_plan;
    begun := ai_credit_begin_period(account, 0, account.updated_at);
    account := begun.account;
    perform ai_credit_open_allowance(account, begun.allowance_left);
    account.due_at := least(account.due_at, account.renews_at);
    account := ai_credit_note(account, 'renewal', account.updated_at, ai_credit_available(account) - available, null,
      jsonb_build_object('periods', 0, 'expired', 0, 'allowance', account.plan));
  end if;
  perform ai_credit_save(account);
  renews_at := ai_credit_iso(account.renews_at);
  total := account.total_credits;
  used := account.used_credits;
  held := account.held_credits;
end
$$;

-- Lets an account go below zero by p_credits.
create function ai_credit_set_overdraft(
  p_user_id varchar, p_credits bigint, p_allowance jsonb, p_lock_timeout integer,
  out total bigint, out used bigint, out held bigint
)
language plpgsql as $$
declare
  account ai_credits := ai_credit_lock(p_user_id, p_allowance, p_lock_timeout);
begin
  account.overdraft := p_credits;
  perform ai_credit_save(account);
  total := account.total_credits;
  used := account.used_credits;
  held := account.held_credits;
end
$$;

----------------------------------------------------------------------------------------------------------------------
-- Statements
----------------------------------------------------------------------------------------------------------------------

-- Every posting of an account, each from the one table that it is written in.
create view ai_credit_entries as
select user_id, 0::bigint as seq, 'opening'::varchar as kind, created_at, opening_total - opening_used as amount,
  null::bigint as id, null::varchar as operation, null::jsonb as metadata, null::varchar as reason,
  null::bigint as reference_id, null::jsonb as details,
  opening_total as total_after, opening_used as used_after, 0::bigint as held_after
from ai_credits
union all
select user_id, seq, kind, created_at, coalesce(amount, -credits_used), id, operation, metadata, reason,
  coalesce(hold_id, refunded_id), null, total_after, used_after, held_after
from ai_credit_usage
union all
select user_id, seq, 'hold', created_at, -credits, id, operation, metadata, null, null, null,
  total_after, used_after, held_after
from ai_credit_holds
union all
select user_id, seq, 'grant', created_at, credits, id, null, null, reason, null, null,
  total_after, used_after, held_after
from ai_credit_grants where seq is not null
union all
select user_id, seq, kind, created_at, amount, null, null, null, null, reference_id, details,
  total_after, used_after, held_after
from ai_credit_events;

-- A page of an account's entries after p_after_seq, as a JSON array.
create function ai_credit_statement(
  p_user_id varchar, p_from timestamptz, p_to timestamptz, p_after_seq bigint, p_limit integer,
  p_allowance jsonb, p_lock_timeout integer, out entries varchar
)
language plpgsql as $$
begin
  perform ai_credit_balance(p_user_id, p_allowance, p_lock_timeout);
  select coalesce(json_agg(json_build_array(seq, kind, ai_credit_iso(created_at), amount, total_after, used_after,
      held_after, id::varchar, reference_id::varchar, operation, metadata, reason, details) order by seq), '[]')::varchar
  into entries
  from (
    select * from ai_credit_entries
    where user_id = p_user_id and seq > p_after_seq
      and (p_from is null or created_at >= p_from) and (p_to is null or created_at < p_to)
    order by seq
    limit p_limit
  ) page;
end
$$;

----------------------------------------------------------------------------------------------------------------------
-- Reconciliation: the identity of every account, in one snapshot
----------------------------------------------------------------------------------------------------------------------

-- For each account what its row says, and what its records, daily usage, holds, grants and entries add up to.
create function ai_credit_reconcile(p_user_id varchar, p_after_user_id varchar, p_limit integer)
returns table (user_id varchar, total bigint, used bigint, held bigint,
  spent bigint, recorded bigint, summed bigint, holding bigint, granted bigint, covered bigint, entries bigint, seq bigint)
language sql stable
begin atomic
  select account.user_id, account.total_credits, account.used_credits, account.held_credits,
    account.spent_before + account.used_credits,
    (select coalesce(sum(credits_used), 0) from ai_credit_usage where user_id = account.user_id),
    (select coalesce(sum(used_credits), 0) from ai_credit_daily_usage where user_id = account.user_id),
    hold.credits,
    account.total_credits - account.used_credits,
    case when living.grants = 0 then account.total_credits else living.credits + hold.pinned end
      - (account.spent_before + account.used_credits - account.allocated),
    (select count(distinct entry.seq) from ai_credit_entries entry where entry.user_id = account.user_id and entry.seq > 0),
    account.seq
  from ai_credits account,
    lateral (
      select coalesce(sum(credits_left), 0)::bigint as credits, coalesce(sum(pinned), 0)::bigint as pinned
      from ai_credit_holds where user_id = account.user_id and state = 'open'
    ) hold,
    lateral (
      select count(*) as grants, coalesce(sum(credits_left) filter (where state = 'living'), 0)::bigint as credits
      from ai_credit_grants where user_id = account.user_id
    ) living
  where (p_user_id is null or account.user_id = p_user_id) and (p_after_user_id is null or account.user_id > p_after_user_id)
  order by account.user_id
  limit p_limit;
end;

commit;
-- fastify-ai-credits, migration 003: calls that share a statement.
--
-- By hand: psql "$DATABASE_URL" -v ON_ERROR_STOP=1 -f 003_group_commit.sql, after 002.
-- The functions of 001 and 002 keep their signatures, so that processes of the version before go on working.

begin;

select pg_advisory_xact_lock(hashtextextended('fastify-ai-credits', 0));
insert into ai_credit_migrations (id) values (3);

-- Ids are taken before their rows are written, so an adopted table's sequence gets the name that ours has.
do $$
declare
  sequence regclass := pg_get_serial_sequence('ai_credit_usage', 'id');
begin
  if sequence is distinct from to_regclass('ai_credit_usage_id_seq') then
    execute format('alter sequence %s rename to ai_credit_usage_id_seq', sequence);
  end if;
end
$$;

----------------------------------------------------------------------------------------------------------------------
-- Locking, as in 002
----------------------------------------------------------------------------------------------------------------------

-- p_lock_timeout null: an account that is missing or locked elsewhere is not waited for; the answer is null.
create or replace function ai_credit_lock(p_user_id varchar, p_allowance jsonb, p_lock_timeout integer)
returns ai_credits
language plpgsql as $$
declare
  account ai_credits;
begin
  select * into account from ai_credits where user_id = p_user_id for update skip locked;
  if not found then
    if p_lock_timeout is null then
      return null;
    end if;
    account := ai_credit_lock_waiting(p_user_id, p_allowance, p_lock_timeout);
  end if;
  account.updated_at := greatest(statement_timestamp(), account.updated_at);
  if account.due_at <= account.updated_at then
    account := ai_credit_settle(account, account.updated_at, p_allowance);
  end if;
  return account;
end
$$;

----------------------------------------------------------------------------------------------------------------------
-- Captures and releases, for a call that goes alone and for one that shares its statement: each function is handed a
-- locked account and the hold as it is, and answers both as they will be, and what the caller is told.
----------------------------------------------------------------------------------------------------------------------

-- verdict: as before. id: of the usage record. null: nothing to say.
create type ai_credit_answer as (
  verdict varchar, id bigint, total bigint, used bigint, held bigint, credits bigint, uncollected bigint, required bigint
);

create function ai_credit_decide_capture(
  inout account ai_credits, inout hold ai_credit_holds, p_credits bigint, p_metadata jsonb, p_final boolean,
  p_shortfall varchar, p_idempotency_key varchar, out record ai_credit_usage, out answer ai_credit_answer
)
language plpgsql as $$
declare
  earlier ai_credit_usage;
  hash bytea := ai_credit_hash(jsonb_build_array(p_credits, p_metadata, p_final, p_shortfall));
  available bigint := account.total_credits - account.used_credits - account.held_credits;
  required bigint := coalesce(p_credits, hold.credits_left);
  own bigint;     -- of those required, what the hold covers
  extra bigint;   -- and what it does not, so far as it is available
  pinned bigint;  -- of the own, what was kept from grants that have ended
begin
  if p_idempotency_key is not null then
    select * into earlier from ai_credit_usage
    where user_id = account.user_id and kind = 'capture' and hold_id = hold.id and idempotency_key = p_idempotency_key;
  elsif hold.state = 'captured' and hold.closing_hash = hash then
    select * into earlier from ai_credit_usage where user_id = account.user_id and seq = hold.closing_seq;
  end if;
  if earlier.id is not null then
    answer.verdict := case when earlier.request_hash = hash then 'replayed' else 'conflict' end;
    answer.id := earlier.id;
    answer.total := earlier.total_after;
    answer.used := earlier.used_after;
    answer.held := earlier.held_after;
    answer.credits := earlier.credits_used;
    answer.uncollected := earlier.uncollected;
    return;
  end if;

  own := case hold.state when 'open' then least(required, hold.credits_left) else 0 end;
  extra := least(required - own, greatest(0, available + account.overdraft));
  answer.required := required;
  if hold.state not in ('open', 'lapsed') then
    answer.verdict := 'closed';
  elsif own + extra < required and p_shortfall = 'reject' then
    answer.verdict := 'insufficient';
  else
    answer.verdict := 'accepted';
    pinned := least(own, hold.pinned);
    account.allocated := account.allocated + pinned;
    account.held_credits := account.held_credits - own;
    account.used_credits := account.used_credits + own + extra;
    account.seq := account.seq + 1;
    if hold.state = 'open' then
      hold.credits_left := hold.credits_left - own;
      hold.pinned := hold.pinned - pinned;
    end if;
    if p_final or hold.state = 'lapsed' then -- one that has lapsed gave back what it held
      if hold.state = 'open' then
        account.held_credits := account.held_credits - hold.credits_left;
        account.total_credits := account.total_credits - hold.pinned;
      end if;
      hold.state := 'captured';
      hold.credits_left := 0;
      hold.pinned := 0;
      hold.closing_seq := account.seq;
      hold.closing_hash := hash;
    end if;
    record.id := nextval('ai_credit_usage_id_seq');
    record.user_id := account.user_id;
    record.seq := account.seq;
    record.kind := 'capture';
    record.credits_used := own + extra;
    record.operation := hold.operation;
    record.metadata := hold.metadata || coalesce(p_metadata, '{}');
    record.created_at := account.updated_at;
    record.total_after := account.total_credits;
    record.used_after := account.used_credits;
    record.held_after := account.held_credits;
    record.idempotency_key := p_idempotency_key;
    record.request_hash := hash;
    record.hold_id := hold.id;
    record.amount := account.total_credits - account.used_credits - account.held_credits - available;
    record.uncollected := required - own - extra;
    answer.id := record.id;
    answer.credits := record.credits_used;
    answer.uncollected := record.uncollected;
  end if;
  answer.total := account.total_credits;
  answer.used := account.used_credits;
  answer.held := account.held_credits;
end
$$;

-- The event is written at once. One that has lapsed already gave back what it held.
create function ai_credit_decide_release(
  inout account ai_credits, inout hold ai_credit_holds, out answer ai_credit_answer
)
language plpgsql as $$
declare
  event ai_credit_events;
begin
  if hold.state = 'captured' then
    answer.verdict := 'closed';
    return;
  end if;
  answer.verdict := 'replayed';
  if hold.state = 'open' then
    answer.verdict := 'accepted';
    account.held_credits := account.held_credits - hold.credits_left;
    account.total_credits := account.total_credits - hold.pinned;
    account := ai_credit_note(account, 'release', account.updated_at, hold.credits_left - hold.pinned, hold.id, null);
    hold.state := 'released';
    hold.credits_left := 0;
    hold.pinned := 0;
    hold.closing_seq := account.seq;
  end if;
  select * into event from ai_credit_events where user_id = account.user_id and seq = hold.closing_seq;
  answer.total := event.total_after;
  answer.used := event.used_after;
  answer.held := event.held_after;
  answer.credits := event.amount;
end
$$;

create function ai_credit_save_hold(p_hold ai_credit_holds) returns void
language plpgsql as $$
begin
  update ai_credit_holds
  set state = p_hold.state, credits_left = p_hold.credits_left, pinned = p_hold.pinned,
      closing_seq = p_hold.closing_seq, closing_hash = p_hold.closing_hash
  where user_id = p_hold.user_id and seq = p_hold.seq;
end
$$;

-- As in 002.
create or replace function ai_credit_capture(
  p_hold_id bigint, p_user_id varchar, p_credits bigint, p_metadata jsonb, p_final boolean, p_shortfall varchar,
  p_idempotency_key varchar, p_allowance jsonb, p_time_zone varchar, p_lock_timeout integer,
  out verdict varchar, out user_id varchar, out record_id bigint, out credits bigint, out uncollected bigint,
  out required bigint, out total bigint, out used bigint, out held bigint
)
language plpgsql as $$
declare
  account ai_credits;
  hold ai_credit_holds;
  decided record;
  answer ai_credit_answer;
begin
  user_id := ai_credit_hold_user(p_hold_id, p_user_id);
  if user_id is null then
    verdict := 'missing';
    return;
  end if;
  account := ai_credit_lock(user_id, p_allowance, p_lock_timeout);
  select * into hold from ai_credit_holds where id = p_hold_id;
  decided := ai_credit_decide_capture(account, hold, p_credits, p_metadata, p_final, p_shortfall, p_idempotency_key);
  answer := decided.answer;
  if answer.verdict = 'accepted' then
    perform ai_credit_save_hold(decided.hold);
    perform ai_credit_post(decided.account, decided.record, p_time_zone);
  end if;
  verdict := answer.verdict;
  record_id := answer.id;
  credits := answer.credits;
  uncollected := answer.uncollected;
  required := answer.required;
  total := answer.total;
  used := answer.used;
  held := answer.held;
end
$$;

create or replace function ai_credit_release(
  p_hold_id bigint, p_user_id varchar, p_allowance jsonb, p_lock_timeout integer,
  out verdict varchar, out user_id varchar, out credits bigint, out total bigint, out used bigint, out held bigint
)
language plpgsql as $$
declare
  account ai_credits;
  hold ai_credit_holds;
  decided record;
  answer ai_credit_answer;
begin
  user_id := ai_credit_hold_user(p_hold_id, p_user_id);
  if user_id is null then
    verdict := 'missing';
    return;
  end if;
  account := ai_credit_lock(user_id, p_allowance, p_lock_timeout);
  select * into hold from ai_credit_holds where id = p_hold_id;
  decided := ai_credit_decide_release(account, hold);
  answer := decided.answer;
  if answer.verdict = 'accepted' then
    perform ai_credit_save_hold(decided.hold);
    perform ai_credit_save(decided.account);
  end if;
  verdict := answer.verdict;
  credits := answer.credits;
  total := answer.total;
  used := answer.used;
  held := answer.held;
end
$$;

----------------------------------------------------------------------------------------------------------------------
-- Posting
----------------------------------------------------------------------------------------------------------------------

-- As in 002, except that the record may have its id already.
create or replace function ai_credit_post(p_account ai_credits, p_record ai_credit_usage, p_time_zone varchar)
returns bigint
language plpgsql as $$
declare
  record_id bigint := coalesce(p_record.id, nextval('ai_credit_usage_id_seq'));
begin
  -- What spending changes, and no more: this is every deduct's path.
  update ai_credits
  set total_credits = p_account.total_credits, used_credits = p_account.used_credits,
      held_credits = p_account.held_credits, spent_before = p_account.spent_before, allocated = p_account.allocated,
      seq = p_account.seq, updated_at = p_account.updated_at
  where user_id = p_account.user_id;

  insert into ai_credit_usage (id, user_id, seq, kind, credits_used, operation, metadata, created_at,
    total_after, used_after, held_after, idempotency_key, request_hash,
    hold_id, amount, uncollected, refunded_id, reason)
  values (record_id, p_account.user_id, p_account.seq, p_record.kind, p_record.credits_used, p_record.operation,
    p_record.metadata, p_account.updated_at, p_account.total_credits, p_account.used_credits,
    p_account.held_credits, p_record.idempotency_key, p_record.request_hash,
    p_record.hold_id, p_record.amount, p_record.uncollected, p_record.refunded_id, p_record.reason);

  insert into ai_credit_daily_usage as daily (user_id, day, operation, metadata_hash, metadata, used_credits)
  values (p_account.user_id, (p_account.updated_at at time zone p_time_zone)::date, p_record.operation,
    ai_credit_hash(p_record.metadata), p_record.metadata, p_record.credits_used)
  on conflict (user_id, day, operation, metadata_hash)
  do update set used_credits = daily.used_credits + excluded.used_credits;

  return record_id;
end
$$;


-- Posts what several calls have come to: accounts, usage records with their daily usage, new holds, and holds that changed.
create function ai_credit_post_all(
  p_accounts ai_credits[], p_records ai_credit_usage[], p_holds ai_credit_holds[], p_changed ai_credit_holds[],
  p_time_zone varchar
) returns void
language plpgsql as $$
declare
  written integer;
begin
  update ai_credits account
  set total_credits = posted.total_credits, used_credits = posted.used_credits, held_credits = posted.held_credits,
      allocated = posted.allocated, seq = posted.seq, due_at = posted.due_at, updated_at = posted.updated_at
  from unnest(p_accounts) posted
  where account.user_id = posted.user_id and account.seq < posted.seq;

  if cardinality(p_records) > 0 then
    insert into ai_credit_usage (id, user_id, seq, kind, credits_used, operation, metadata, created_at,
      total_after, used_after, held_after, idempotency_key, request_hash, hold_id, amount, uncollected)
    select id, user_id, seq, kind, credits_used, operation, metadata, created_at,
      total_after, used_after, held_after, idempotency_key, request_hash, hold_id, amount, uncollected
    from unnest(p_records);

    insert into ai_credit_daily_usage as daily (user_id, day, operation, metadata_hash, metadata, used_credits)
    select user_id, (created_at at time zone p_time_zone)::date, operation, ai_credit_hash(metadata), metadata, spent
    from (
      select user_id, created_at, operation, metadata, sum(credits_used) as spent
      from unnest(p_records)
      group by user_id, created_at, operation, metadata
    ) summed
    on conflict (user_id, day, operation, metadata_hash)
    do update set used_credits = daily.used_credits + excluded.used_credits;
  end if;

  if cardinality(p_holds) > 0 then
    insert into ai_credit_holds (id, user_id, seq, credits, credits_left, operation, metadata, ttl, created_at, expires_at,
      total_after, used_after, held_after, idempotency_key, request_hash)
    select id, user_id, seq, credits, credits, operation, metadata, ttl, created_at, expires_at,
      total_after, used_after, held_after, idempotency_key, request_hash
    from unnest(p_holds);
  end if;

  if cardinality(p_changed) > 0 then
    update ai_credit_holds hold
    set state = changed.state, credits_left = changed.credits_left, pinned = changed.pinned,
        closing_seq = changed.closing_seq, closing_hash = changed.closing_hash
    from unnest(p_changed) changed
    where hold.user_id = changed.user_id and hold.seq = changed.seq;
    get diagnostics written = row_count;
    if written <> cardinality(p_changed) then -- else a hold would be spent twice
      raise cardinality_violation using message = 'calls of one statement are about the same hold';
    end if;
  end if;
end
$$;

----------------------------------------------------------------------------------------------------------------------
-- Group commit: the calls of one statement
----------------------------------------------------------------------------------------------------------------------

-- What a capture or a release is told, in numbers.
create function ai_credit_numbers(p_answer ai_credit_answer) returns bigint[]
language sql immutable
return array[
  case (p_answer).verdict when 'accepted' then 1 when 'replayed' then 2 when 'conflict' then 3 when 'insufficient' then 4
    else 6 end,
  coalesce((p_answer).id, 0), coalesce((p_answer).total, 0), coalesce((p_answer).used, 0), coalesce((p_answer).held, 0),
  coalesce((p_answer).credits, 0), coalesce((p_answer).uncollected, 0), coalesce((p_answer).required, 0)];

-- Runs calls on the accounts p_user_ids, those on one account side by side and in order. Each is a JSON array that begins
-- with the account's place in p_user_ids:
--   [place, 'deduct', key, credits, operation, metadata]
--   [place, 'hold', key, credits, operation, metadata, milliseconds to live]
--   [place, 'capture', key, credits, null, metadata, hold, final, shortfall]
--   [place, 'release', null, null, null, null, hold]
-- No two calls on one account may have the same key or the same hold.
--
-- It waits for no account: all are locked first, and one that is missing or locked elsewhere is left out. The answer is
-- made of numbers: for each call the verdict (1 accepted, 2 replayed, 3 conflict, 4 insufficient, 5 missing, 6 closed; or
-- 0, left out, and nothing more), then id, total, used and held, then of a hold when it expires (in milliseconds), of a
-- capture or a release credits, uncollected and required. 0 stands for none.
--
-- Long and flat for a reason: a call of another function costs a tenth of a deduct. One plan serves all calls, as
-- PostgreSQL would plan anew for each array.
create function ai_credit_execute(p_user_ids varchar[], p_calls jsonb, p_allowance jsonb, p_time_zone varchar)
returns bigint[]
language plpgsql set plan_cache_mode = force_generic_plan set enable_seqscan = off as $$
declare
  user_id varchar;
  accounts ai_credits[] := '{}';
  account ai_credits;
  place integer := 0;
  call record;
  decided record;
  record ai_credit_usage;
  records ai_credit_usage[] := '{}';
  hold ai_credit_holds;
  holds ai_credit_holds[] := '{}';
  changed ai_credit_holds[] := '{}';
  number bigint;
  told bigint[];
  answers bigint[] := '{}';
begin
  foreach user_id in array p_user_ids loop
    accounts := array_append(accounts, ai_credit_lock(user_id, p_allowance, null));
  end loop;

  for call in
    select given.*,
      case when key is not null then ai_credit_hash(case kind
        when 'deduct' then jsonb_build_array(credits, operation, metadata)
        when 'hold' then jsonb_build_array(credits, operation, metadata, detail) end) end as hash,
      -- what the key was used for before, and how that is answered
      case when key is null then null
        when kind = 'deduct' then (
          select array[case when request_hash = ai_credit_hash(
            jsonb_build_array(given.credits, given.operation, given.metadata)) then 2 else 3 end,
            id, total_after, used_after, held_after]
          from ai_credit_usage spent
          where spent.user_id = given.user_id and spent.kind = 'deduct' and idempotency_key = given.key)
        when kind = 'hold' then (
          select array[case when request_hash = ai_credit_hash(
            jsonb_build_array(given.credits, given.operation, given.metadata, given.detail)) then 2 else 3 end,
            id, total_after, used_after, held_after, floor(extract(epoch from created_at) * 1000)::bigint + ttl]
          from ai_credit_holds made
          where made.user_id = given.user_id and idempotency_key = given.key) end as earlier,
      case when kind in ('capture', 'release') then (
        select made from ai_credit_holds made where id = given.detail) end as hold
    from (
      select (c->0)::integer as place, p_user_ids[(c->0)::integer] as user_id, c->>1 as kind, c->>2 as key,
        (c->>3)::bigint as credits, c->>4 as operation, c->5 as metadata, (c->>6)::bigint as detail, c
      from jsonb_array_elements(p_calls) c
      offset 0 -- so that the conditions above are plain: else they count as dear, and the wrong index seems cheaper
    ) given
  loop
    if place <> call.place then
      if place > 0 then
        accounts[place] := account;
      end if;
      place := call.place;
      account := accounts[place];
      record.user_id := account.user_id;
      record.created_at := account.updated_at;
    end if;

    if account.user_id is null then
      answers := array_append(answers, 0::bigint);
      continue;

    elsif call.kind = 'capture' or call.kind = 'release' then
      if (call.hold).user_id is distinct from account.user_id then
        told := array[5, 0, 0, 0, 0, 0, 0, 0];
      elsif call.kind = 'capture' then
        decided := ai_credit_decide_capture(account, call.hold, call.credits, nullif(call.metadata, 'null'),
          (call.c->>7)::boolean, call.c->>8, call.key);
        told := ai_credit_numbers(decided.answer);
        if told[1] = 1 then
          records := array_append(records, decided.record);
        end if;
      else
        decided := ai_credit_decide_release(account, call.hold);
        told := ai_credit_numbers(decided.answer);
      end if;
      if told[1] = 1 then
        account := decided.account;
        changed := array_append(changed, decided.hold);
      end if;
      foreach number in array told loop
        answers := array_append(answers, number);
      end loop;
      continue;

    elsif call.earlier is not null then
      foreach number in array call.earlier loop
        answers := array_append(answers, number);
      end loop;
      continue;

    elsif account.total_credits - account.used_credits - account.held_credits + account.overdraft < call.credits then
      answers := array_append(answers, 4::bigint);
      answers := array_append(answers, 0::bigint);

    elsif call.kind = 'deduct' then
      account.used_credits := account.used_credits + call.credits;
      account.seq := account.seq + 1;
      record.id := nextval('ai_credit_usage_id_seq');
      record.seq := account.seq;
      record.kind := 'deduct';
      record.credits_used := call.credits;
      record.operation := call.operation;
      record.metadata := call.metadata;
      record.total_after := account.total_credits;
      record.used_after := account.used_credits;
      record.held_after := account.held_credits;
      record.idempotency_key := call.key;
      record.request_hash := call.hash;
      records := array_append(records, record);
      answers := array_append(answers, 1::bigint);
      answers := array_append(answers, record.id);

    else
      account.held_credits := account.held_credits + call.credits;
      account.seq := account.seq + 1;
      hold.id := nextval('ai_credit_holds_id_seq');
      hold.user_id := account.user_id;
      hold.seq := account.seq;
      hold.credits := call.credits;
      hold.operation := call.operation;
      hold.metadata := call.metadata;
      hold.ttl := call.detail;
      hold.created_at := account.updated_at;
      hold.expires_at := account.updated_at + call.detail * interval '1 millisecond';
      hold.total_after := account.total_credits;
      hold.used_after := account.used_credits;
      hold.held_after := account.held_credits;
      hold.idempotency_key := call.key;
      hold.request_hash := call.hash;
      account.due_at := least(account.due_at, hold.expires_at);
      holds := array_append(holds, hold);
      answers := array_append(answers, 1::bigint);
      answers := array_append(answers, hold.id);
    end if;

    answers := array_append(answers, account.total_credits);
    answers := array_append(answers, account.used_credits);
    answers := array_append(answers, account.held_credits);
    if call.kind = 'hold' then
      answers := array_append(answers, floor(extract(epoch from account.updated_at) * 1000)::bigint + call.detail);
    end if;
  end loop;

  if place > 0 then
    accounts[place] := account;
  end if;
  perform ai_credit_post_all(accounts, records, holds, changed, p_time_zone);
  return answers;
end
$$;

-- A session plans a function's queries once, perhaps while the tables are small, and keeps the plan while they grow.
alter function ai_credit_deduct set enable_seqscan = off;
alter function ai_credit_hold set enable_seqscan = off;
alter function ai_credit_capture set enable_seqscan = off;
alter function ai_credit_release set enable_seqscan = off;
alter function ai_credit_grant set enable_seqscan = off;
alter function ai_credit_refund set enable_seqscan = off;

commit;
-- fastify-ai-credits, migration 004: charges by a price book, with their quantities on record.
--
-- By hand: psql "$DATABASE_URL" -v ON_ERROR_STOP=1 -f 004_prices.sql, after those before it.
-- Functions that processes of the versions before call keep their signatures, so that these go on working.

begin;

select pg_advisory_xact_lock(hashtextextended('fastify-ai-credits', 0));
insert into ai_credit_migrations (id) values (4);

-- Waits for the calls that are under way, which have an account locked, and keeps others from beginning: one that began
-- with records of the old shape could not hand them to the functions below.
lock table ai_credits in access exclusive mode;

alter table ai_credit_usage
  add column price_version varchar,  -- of a charge by usage: the version of the price book
  add column quantities jsonb;       -- and what it was computed from; a charge of so many credits has neither

----------------------------------------------------------------------------------------------------------------------
-- Posting
----------------------------------------------------------------------------------------------------------------------

-- As in 003.
create or replace function ai_credit_post(p_account ai_credits, p_record ai_credit_usage, p_time_zone varchar)
returns bigint
language plpgsql as $$
declare
  record_id bigint := coalesce(p_record.id, nextval('ai_credit_usage_id_seq'));
begin
  -- What spending changes, and no more: this is every deduct's path.
  update ai_credits
  set total_credits = p_account.total_credits, used_credits = p_account.used_credits,
      held_credits = p_account.held_credits, spent_before = p_account.spent_before, allocated = p_account.allocated,
      seq = p_account.seq, updated_at = p_account.updated_at
  where user_id = p_account.user_id;

  insert into ai_credit_usage (id, user_id, seq, kind, credits_used, operation, metadata, created_at,
    total_after, used_after, held_after, idempotency_key, request_hash,
    hold_id, amount, uncollected, refunded_id, reason, price_version, quantities)
  values (record_id, p_account.user_id, p_account.seq, p_record.kind, p_record.credits_used, p_record.operation,
    p_record.metadata, p_account.updated_at, p_account.total_credits, p_account.used_credits,
    p_account.held_credits, p_record.idempotency_key, p_record.request_hash,
    p_record.hold_id, p_record.amount, p_record.uncollected, p_record.refunded_id, p_record.reason,
    p_record.price_version, p_record.quantities);

  insert into ai_credit_daily_usage as daily (user_id, day, operation, metadata_hash, metadata, used_credits)
  values (p_account.user_id, (p_account.updated_at at time zone p_time_zone)::date, p_record.operation,
    ai_credit_hash(p_record.metadata), p_record.metadata, p_record.credits_used)
  on conflict (user_id, day, operation, metadata_hash)
  do update set used_credits = daily.used_credits + excluded.used_credits;

  return record_id;
end
$$;

-- As in 003.
create or replace function ai_credit_post_all(
  p_accounts ai_credits[], p_records ai_credit_usage[], p_holds ai_credit_holds[], p_changed ai_credit_holds[],
  p_time_zone varchar
) returns void
language plpgsql as $$
declare
  written integer;
begin
  update ai_credits account
  set total_credits = posted.total_credits, used_credits = posted.used_credits, held_credits = posted.held_credits,
      allocated = posted.allocated, seq = posted.seq, due_at = posted.due_at, updated_at = posted.updated_at
  from unnest(p_accounts) posted
  where account.user_id = posted.user_id and account.seq < posted.seq;

  if cardinality(p_records) > 0 then
    insert into ai_credit_usage (id, user_id, seq, kind, credits_used, operation, metadata, created_at,
      total_after, used_after, held_after, idempotency_key, request_hash, hold_id, amount, uncollected,
      price_version, quantities)
    select id, user_id, seq, kind, credits_used, operation, metadata, created_at,
      total_after, used_after, held_after, idempotency_key, request_hash, hold_id, amount, uncollected,
      price_version, quantities
    from unnest(p_records);

    insert into ai_credit_daily_usage as daily (user_id, day, operation, metadata_hash, metadata, used_credits)
    select user_id, (created_at at time zone p_time_zone)::date, operation, ai_credit_hash(metadata), metadata, spent
    from (
      select user_id, created_at, operation, metadata, sum(credits_used) as spent
      from unnest(p_records)
      group by user_id, created_at, operation, metadata
    ) summed
    on conflict (user_id, day, operation, metadata_hash)
    do update set used_credits = daily.used_credits + excluded.used_credits;
  end if;

  if cardinality(p_holds) > 0 then
    insert into ai_credit_holds (id, user_id, seq, credits, credits_left, operation, metadata, ttl, created_at, expires_at,
      total_after, used_after, held_after, idempotency_key, request_hash)
    select id, user_id, seq, credits, credits, operation, metadata, ttl, created_at, expires_at,
      total_after, used_after, held_after, idempotency_key, request_hash
    from unnest(p_holds);
  end if;

  if cardinality(p_changed) > 0 then
    update ai_credit_holds hold
    set state = changed.state, credits_left = changed.credits_left, pinned = changed.pinned,
        closing_seq = changed.closing_seq, closing_hash = changed.closing_hash
    from unnest(p_changed) changed
    where hold.user_id = changed.user_id and hold.seq = changed.seq;
    get diagnostics written = row_count;
    if written <> cardinality(p_changed) then -- else a hold would be spent twice
      raise cardinality_violation using message = 'calls of one statement are about the same hold';
    end if;
  end if;
end
$$;

----------------------------------------------------------------------------------------------------------------------
-- Charges by usage. The credits were computed from the quantities before. An idempotency key stands for the quantities,
-- and a replay answers the credits of then: what they cost may have changed since. One that costs nothing has a record
-- of no credits.
----------------------------------------------------------------------------------------------------------------------

-- As the deduct of 001. credits: what was charged.
create function ai_credit_deduct(
  p_user_id varchar, p_credits bigint, p_operation varchar, p_metadata jsonb, p_idempotency_key varchar,
  p_price_version varchar, p_quantities jsonb, p_allowance jsonb, p_time_zone varchar, p_lock_timeout integer,
  out verdict varchar, out record_id bigint, out credits bigint, out total bigint, out used bigint, out held bigint
)
language plpgsql set enable_seqscan = off as $$
declare
  account ai_credits := ai_credit_lock(p_user_id, p_allowance, p_lock_timeout);
  record ai_credit_usage;
  earlier ai_credit_usage;
begin
  record.kind := 'deduct';
  record.credits_used := p_credits;
  record.operation := p_operation;
  record.metadata := p_metadata;
  record.price_version := p_price_version;
  record.quantities := p_quantities;
  if p_idempotency_key is not null then
    record.idempotency_key := p_idempotency_key;
    record.request_hash := ai_credit_hash(jsonb_build_array(p_operation, p_quantities, p_metadata));
    select * into earlier from ai_credit_usage
    where user_id = p_user_id and kind = 'deduct' and idempotency_key = p_idempotency_key;
    if found then
      verdict := case when earlier.request_hash = record.request_hash then 'replayed' else 'conflict' end;
      record_id := earlier.id;
      credits := earlier.credits_used;
      total := earlier.total_after;
      used := earlier.used_after;
      held := earlier.held_after;
      return;
    end if;
  end if;

  if ai_credit_available(account) + account.overdraft < p_credits and p_credits > 0 then
    verdict := 'insufficient';
  else
    verdict := 'accepted';
    account.used_credits := account.used_credits + p_credits;
    account.seq := account.seq + 1;
    record_id := ai_credit_post(account, record, p_time_zone);
    credits := p_credits;
  end if;
  total := account.total_credits;
  used := account.used_credits;
  held := account.held_credits;
end
$$;

-- As in 003. By usage, p_operation is what the price was of: verdict 'operation' where the hold has another one. The
-- function of 003 stays for statements that are under way.
create function ai_credit_decide_capture(
  inout account ai_credits, inout hold ai_credit_holds, p_credits bigint, p_metadata jsonb, p_final boolean,
  p_shortfall varchar, p_idempotency_key varchar, p_operation varchar, p_price_version varchar, p_quantities jsonb,
  out record ai_credit_usage, out answer ai_credit_answer
)
language plpgsql as $$
declare
  earlier ai_credit_usage;
  hash bytea := ai_credit_hash(case when p_quantities is null
    then jsonb_build_array(p_credits, p_metadata, p_final, p_shortfall)
    else jsonb_build_array(p_operation, p_quantities, p_metadata, p_final, p_shortfall) end);
  available bigint := account.total_credits - account.used_credits - account.held_credits;
  required bigint := coalesce(p_credits, hold.credits_left);
  own bigint;     -- of those required, what the hold covers
  extra bigint;   -- and what it does not, so far as it is available
  pinned bigint;  -- of the own, what was kept from grants that have ended
begin
  if p_operation <> hold.operation then
    answer.verdict := 'operation';
    return;
  end if;
  if p_idempotency_key is not null then
    select * into earlier from ai_credit_usage
    where user_id = account.user_id and kind = 'capture' and hold_id = hold.id and idempotency_key = p_idempotency_key;
  elsif hold.state = 'captured' and hold.closing_hash = hash then
    select * into earlier from ai_credit_usage where user_id = account.user_id and seq = hold.closing_seq;
  end if;
  if earlier.id is not null then
    answer.verdict := case when earlier.request_hash = hash then 'replayed' else 'conflict' end;
    answer.id := earlier.id;
    answer.total := earlier.total_after;
    answer.used := earlier.used_after;
    answer.held := earlier.held_after;
    answer.credits := earlier.credits_used;
    answer.uncollected := earlier.uncollected;
    return;
  end if;

  own := case hold.state when 'open' then least(required, hold.credits_left) else 0 end;
  extra := least(required - own, greatest(0, available + account.overdraft));
  answer.required := required;
  if hold.state not in ('open', 'lapsed') then
    answer.verdict := 'closed';
  elsif own + extra < required and p_shortfall = 'reject' then
    answer.verdict := 'insufficient';
  else
    answer.verdict := 'accepted';
    pinned := least(own, hold.pinned);
    account.allocated := account.allocated + pinned;
    account.held_credits := account.held_credits - own;
    account.used_credits := account.used_credits + own + extra;
    account.seq := account.seq + 1;
    if hold.state = 'open' then
      hold.credits_left := hold.credits_left - own;
      hold.pinned := hold.pinned - pinned;
    end if;
    if p_final or hold.state = 'lapsed' then -- one that has lapsed gave back what it held
      if hold.state = 'open' then
        account.held_credits := account.held_credits - hold.credits_left;
        account.total_credits := account.total_credits - hold.pinned;
      end if;
      hold.state := 'captured';
      hold.credits_left := 0;
      hold.pinned := 0;
      hold.closing_seq := account.seq;
      hold.closing_hash := hash;
    end if;
    record.id := nextval('ai_credit_usage_id_seq');
    record.user_id := account.user_id;
    record.seq := account.seq;
    record.kind := 'capture';
    record.credits_used := own + extra;
    record.operation := hold.operation;
    record.metadata := hold.metadata || coalesce(p_metadata, '{}');
    record.created_at := account.updated_at;
    record.total_after := account.total_credits;
    record.used_after := account.used_credits;
    record.held_after := account.held_credits;
    record.idempotency_key := p_idempotency_key;
    record.request_hash := hash;
    record.hold_id := hold.id;
    record.amount := account.total_credits - account.used_credits - account.held_credits - available;
    record.uncollected := required - own - extra;
    record.price_version := p_price_version;
    record.quantities := p_quantities;
    answer.id := record.id;
    answer.credits := record.credits_used;
    answer.uncollected := record.uncollected;
  end if;
  answer.total := account.total_credits;
  answer.used := account.used_credits;
  answer.held := account.held_credits;
end
$$;

-- As in 003, also by usage.
create function ai_credit_capture(
  p_hold_id bigint, p_user_id varchar, p_credits bigint, p_metadata jsonb, p_final boolean, p_shortfall varchar,
  p_idempotency_key varchar, p_operation varchar, p_price_version varchar, p_quantities jsonb,
  p_allowance jsonb, p_time_zone varchar, p_lock_timeout integer,
  out verdict varchar, out user_id varchar, out record_id bigint, out credits bigint, out uncollected bigint,
  out required bigint, out total bigint, out used bigint, out held bigint
)
language plpgsql set enable_seqscan = off as $$
declare
  account ai_credits;
  hold ai_credit_holds;
  decided record;
  answer ai_credit_answer;
begin
  user_id := ai_credit_hold_user(p_hold_id, p_user_id);
  if user_id is null then
    verdict := 'missing';
    return;
  end if;
  account := ai_credit_lock(user_id, p_allowance, p_lock_timeout);
  select * into hold from ai_credit_holds where id = p_hold_id;
  decided := ai_credit_decide_capture(account, hold, p_credits, p_metadata, p_final, p_shortfall, p_idempotency_key,
    p_operation, p_price_version, p_quantities);
  answer := decided.answer;
  if answer.verdict = 'accepted' then
    perform ai_credit_save_hold(decided.hold);
    perform ai_credit_post(decided.account, decided.record, p_time_zone);
  end if;
  verdict := answer.verdict;
  record_id := answer.id;
  credits := answer.credits;
  uncollected := answer.uncollected;
  required := answer.required;
  total := answer.total;
  used := answer.used;
  held := answer.held;
end
$$;

-- What processes of the versions before call.
create or replace function ai_credit_capture(
  p_hold_id bigint, p_user_id varchar, p_credits bigint, p_metadata jsonb, p_final boolean, p_shortfall varchar,
  p_idempotency_key varchar, p_allowance jsonb, p_time_zone varchar, p_lock_timeout integer,
  out verdict varchar, out user_id varchar, out record_id bigint, out credits bigint, out uncollected bigint,
  out required bigint, out total bigint, out used bigint, out held bigint
)
language sql
begin atomic
  select * from ai_credit_capture(p_hold_id, p_user_id, p_credits, p_metadata, p_final, p_shortfall, p_idempotency_key,
    null, null, null, p_allowance, p_time_zone, p_lock_timeout);
end;

----------------------------------------------------------------------------------------------------------------------
-- Group commit: the calls of one statement
----------------------------------------------------------------------------------------------------------------------

-- As in 003, with 7 operation.
create or replace function ai_credit_numbers(p_answer ai_credit_answer) returns bigint[]
language sql immutable
return array[
  case (p_answer).verdict when 'accepted' then 1 when 'replayed' then 2 when 'conflict' then 3 when 'insufficient' then 4
    when 'operation' then 7 else 6 end,
  coalesce((p_answer).id, 0), coalesce((p_answer).total, 0), coalesce((p_answer).used, 0), coalesce((p_answer).held, 0),
  coalesce((p_answer).credits, 0), coalesce((p_answer).uncollected, 0), coalesce((p_answer).required, 0)];

-- As in 003, with charges by usage:
--   [place, 'priced', key, credits, operation, metadata, null, version, quantities]
--   [place, 'capture', key, credits, operation, metadata, hold, final, shortfall, version, quantities]
-- of which the first is answered with credits besides.
create or replace function ai_credit_execute(p_user_ids varchar[], p_calls jsonb, p_allowance jsonb, p_time_zone varchar)
returns bigint[]
language plpgsql set plan_cache_mode = force_generic_plan set enable_seqscan = off as $$
declare
  user_id varchar;
  accounts ai_credits[] := '{}';
  account ai_credits;
  place integer := 0;
  call record;
  decided record;
  record ai_credit_usage;
  records ai_credit_usage[] := '{}';
  hold ai_credit_holds;
  holds ai_credit_holds[] := '{}';
  changed ai_credit_holds[] := '{}';
  number bigint;
  told bigint[];
  answers bigint[] := '{}';
begin
  foreach user_id in array p_user_ids loop
    accounts := array_append(accounts, ai_credit_lock(user_id, p_allowance, null));
  end loop;

  for call in
    select given.*,
      case when key is not null then ai_credit_hash(case kind
        when 'deduct' then jsonb_build_array(credits, operation, metadata)
        when 'priced' then jsonb_build_array(operation, c->8, metadata)
        when 'hold' then jsonb_build_array(credits, operation, metadata, detail) end) end as hash,
      -- what the key was used for before, and how that is answered
      case when key is null then null
        when kind = 'deduct' then (
          select array[case when request_hash = ai_credit_hash(
            jsonb_build_array(given.credits, given.operation, given.metadata)) then 2 else 3 end,
            id, total_after, used_after, held_after]
          from ai_credit_usage spent
          where spent.user_id = given.user_id and spent.kind = 'deduct' and idempotency_key = given.key)
        when kind = 'priced' then (
          select array[case when request_hash = ai_credit_hash(
            jsonb_build_array(given.operation, given.c->8, given.metadata)) then 2 else 3 end,
            id, total_after, used_after, held_after, credits_used]
          from ai_credit_usage spent
          where spent.user_id = given.user_id and spent.kind = 'deduct' and idempotency_key = given.key)
        when kind = 'hold' then (
          select array[case when request_hash = ai_credit_hash(
            jsonb_build_array(given.credits, given.operation, given.metadata, given.detail)) then 2 else 3 end,
            id, total_after, used_after, held_after, floor(extract(epoch from created_at) * 1000)::bigint + ttl]
          from ai_credit_holds made
          where made.user_id = given.user_id and idempotency_key = given.key) end as earlier,
      case when kind in ('capture', 'release') then (
        select made from ai_credit_holds made where id = given.detail) end as hold
    from (
      select (c->0)::integer as place, p_user_ids[(c->0)::integer] as user_id, c->>1 as kind, c->>2 as key,
        (c->>3)::bigint as credits, c->>4 as operation, c->5 as metadata, (c->>6)::bigint as detail, c
      from jsonb_array_elements(p_calls) c
      offset 0 -- so that the conditions above are plain: else they count as dear, and the wrong index seems cheaper
    ) given
  loop
    if place <> call.place then
      if place > 0 then
        accounts[place] := account;
      end if;
      place := call.place;
      account := accounts[place];
      record.user_id := account.user_id;
      record.created_at := account.updated_at;
    end if;

    if account.user_id is null then
      answers := array_append(answers, 0::bigint);
      continue;

    elsif call.kind = 'capture' or call.kind = 'release' then
      if (call.hold).user_id is distinct from account.user_id then
        told := array[5, 0, 0, 0, 0, 0, 0, 0];
      elsif call.kind = 'capture' then
        decided := ai_credit_decide_capture(account, call.hold, call.credits, nullif(call.metadata, 'null'),
          (call.c->>7)::boolean, call.c->>8, call.key, call.operation, call.c->>9, call.c->10);
        told := ai_credit_numbers(decided.answer);
        if told[1] = 1 then
          records := array_append(records, decided.record);
        end if;
      else
        decided := ai_credit_decide_release(account, call.hold);
        told := ai_credit_numbers(decided.answer);
      end if;
      if told[1] = 1 then
        account := decided.account;
        changed := array_append(changed, decided.hold);
      end if;
      foreach number in array told loop
        answers := array_append(answers, number);
      end loop;
      continue;

    elsif call.earlier is not null then
      foreach number in array call.earlier loop
        answers := array_append(answers, number);
      end loop;
      continue;

    elsif account.total_credits - account.used_credits - account.held_credits + account.overdraft < call.credits
      and call.credits > 0 then
      answers := array_append(answers, 4::bigint);
      answers := array_append(answers, 0::bigint);

    elsif call.kind = 'deduct' or call.kind = 'priced' then
      account.used_credits := account.used_credits + call.credits;
      account.seq := account.seq + 1;
      record.id := nextval('ai_credit_usage_id_seq');
      record.seq := account.seq;
      record.kind := 'deduct';
      record.credits_used := call.credits;
      record.operation := call.operation;
      record.metadata := call.metadata;
      record.total_after := account.total_credits;
      record.used_after := account.used_credits;
      record.held_after := account.held_credits;
      record.idempotency_key := call.key;
      record.request_hash := call.hash;
      record.price_version := call.c->>7;
      record.quantities := call.c->8;
      records := array_append(records, record);
      answers := array_append(answers, 1::bigint);
      answers := array_append(answers, record.id);

    else
      account.held_credits := account.held_credits + call.credits;
      account.seq := account.seq + 1;
      hold.id := nextval('ai_credit_holds_id_seq');
      hold.user_id := account.user_id;
      hold.seq := account.seq;
      hold.credits := call.credits;
      hold.operation := call.operation;
      hold.metadata := call.metadata;
      hold.ttl := call.detail;
      hold.created_at := account.updated_at;
      hold.expires_at := account.updated_at + call.detail * interval '1 millisecond';
      hold.total_after := account.total_credits;
      hold.used_after := account.used_credits;
      hold.held_after := account.held_credits;
      hold.idempotency_key := call.key;
      hold.request_hash := call.hash;
      account.due_at := least(account.due_at, hold.expires_at);
      holds := array_append(holds, hold);
      answers := array_append(answers, 1::bigint);
      answers := array_append(answers, hold.id);
    end if;

    answers := array_append(answers, account.total_credits);
    answers := array_append(answers, account.used_credits);
    answers := array_append(answers, account.held_credits);
    if call.kind = 'hold' then
      answers := array_append(answers, floor(extract(epoch from account.updated_at) * 1000)::bigint + call.detail);
    elsif call.kind = 'priced' then
      answers := array_append(answers, call.credits);
    end if;
  end loop;

  if place > 0 then
    accounts[place] := account;
  end if;
  perform ai_credit_post_all(accounts, records, holds, changed, p_time_zone);
  return answers;
end
$$;

----------------------------------------------------------------------------------------------------------------------
-- Statements
----------------------------------------------------------------------------------------------------------------------

-- As in 002, with the price's version and the quantities at the end.
create or replace view ai_credit_entries as
select user_id, 0::bigint as seq, 'opening'::varchar as kind, created_at, opening_total - opening_used as amount,
  null::bigint as id, null::varchar as operation, null::jsonb as metadata, null::varchar as reason,
  null::bigint as reference_id, null::jsonb as details,
  opening_total as total_after, opening_used as used_after, 0::bigint as held_after,
  null::varchar as price_version, null::jsonb as quantities
from ai_credits
union all
select user_id, seq, kind, created_at, coalesce(amount, -credits_used), id, operation, metadata, reason,
  coalesce(hold_id, refunded_id), null, total_after, used_after, held_after, price_version, quantities
from ai_credit_usage
union all
select user_id, seq, 'hold', created_at, -credits, id, operation, metadata, null, null, null,
  total_after, used_after, held_after, null, null
from ai_credit_holds
union all
select user_id, seq, 'grant', created_at, credits, id, null, null, reason, null, null,
  total_after, used_after, held_after, null, null
from ai_credit_grants where seq is not null
union all
select user_id, seq, kind, created_at, amount, null, null, null, null, reference_id, details,
  total_after, used_after, held_after, null, null
from ai_credit_events;

-- As in 002, with the same two at the end of each entry.
create or replace function ai_credit_statement(
  p_user_id varchar, p_from timestamptz, p_to timestamptz, p_after_seq bigint, p_limit integer,
  p_allowance jsonb, p_lock_timeout integer, out entries varchar
)
language plpgsql as $$
begin
  perform ai_credit_balance(p_user_id, p_allowance, p_lock_timeout);
  select coalesce(json_agg(json_build_array(seq, kind, ai_credit_iso(created_at), amount, total_after, used_after,
      held_after, id::varchar, reference_id::varchar, operation, metadata, reason, details, price_version, quantities)
      order by seq), '[]')::varchar
  into entries
  from (
    select * from ai_credit_entries
    where user_id = p_user_id and seq > p_after_seq
      and (p_from is null or created_at >= p_from) and (p_to is null or created_at < p_to)
    order by seq
    limit p_limit
  ) page;
end
$$;

commit;
-- fastify-ai-credits, migration 005: what a process tells its listeners, where an account was changed by time alone, and
-- what it has to know of a capture.
--
-- By hand: psql "$DATABASE_URL" -v ON_ERROR_STOP=1 -f 005_events.sql, after the migrations before it.
-- Functions keep their signatures, so that processes of the version before go on working.

begin;

select pg_advisory_xact_lock(hashtextextended('fastify-ai-credits', 0));
insert into ai_credit_migrations (id) values (5);

-- Leaves word of what time has done to a locked account, until the transaction ends: the last column of the statement
-- that is under way hands it over. One JSON array for each account, separated by commas:
--   [user, total, used, held, [[kind, at, amount, reference, details, total after, used after, held after], ...]]
create function ai_credit_report_settled(p_before ai_credits) returns void
language plpgsql set enable_seqscan = off as $$
declare
  changes json;
begin
  select json_agg(json_build_array(kind, ai_credit_iso(created_at), amount, reference_id::varchar, details,
    total_after, used_after, held_after) order by seq)
  into changes
  from ai_credit_events
  where user_id = p_before.user_id and seq > p_before.seq;

  if changes is not null then
    perform set_config('fastify_ai_credits.settled',
      concat_ws(',', nullif(current_setting('fastify_ai_credits.settled', true), ''),
        json_build_array(p_before.user_id, p_before.total_credits, p_before.used_credits, p_before.held_credits, changes)),
      true);
  end if;
end
$$;

-- As in 003, and leaves word of what was due.
create or replace function ai_credit_lock(p_user_id varchar, p_allowance jsonb, p_lock_timeout integer)
returns ai_credits
language plpgsql as $$
declare
  account ai_credits;
  before ai_credits;
begin
  select * into account from ai_credits where user_id = p_user_id for update skip locked;
  if not found then
    if p_lock_timeout is null then
      return null;
    end if;
    account := ai_credit_lock_waiting(p_user_id, p_allowance, p_lock_timeout);
  end if;
  account.updated_at := greatest(statement_timestamp(), account.updated_at);
  if account.due_at <= account.updated_at then
    before := account;
    account := ai_credit_settle(account, account.updated_at, p_allowance);
    perform ai_credit_report_settled(before);
  end if;
  return account;
end
$$;

-- What captures were for, each known by its hold, and by its usage record where it made one: a JSON array, in order, of
-- [operation, metadata, by how much it changed what is available].
create function ai_credit_captures(p_hold_ids bigint[], p_record_ids bigint[], out captures varchar)
language plpgsql stable set enable_seqscan = off as $$
begin
  select json_agg(json_build_array(
    (select operation from ai_credit_holds where id = hold_id),
    (select metadata from ai_credit_usage where id = record_id),
    (select amount from ai_credit_usage where id = record_id)) order by place)::varchar
  into captures
  from unnest(p_hold_ids, p_record_ids) with ordinality as asked(hold_id, record_id, place);
end
$$;

commit;
-- fastify-ai-credits, migration 006: usage records older than a given time can go.
--
-- By hand: psql "$DATABASE_URL" -v ON_ERROR_STOP=1 -f 006_prune.sql, after those before.
-- Functions keep their signatures, so that processes of the version before go on working.

begin;

select pg_advisory_xact_lock(hashtextextended('fastify-ai-credits', 0));
insert into ai_credit_migrations (id) values (6);

-- An account's books are closed up to one of its postings: with that one its statement opens, and of what is older only
-- that stays which something newer still needs. A table of its own, so that charges have no more of an account to write.
create table ai_credit_pruned (
  user_id varchar primary key,
  seq bigint not null,          -- the posting that the books are closed with
  created_at timestamptz not null,
  total_after bigint not null,  -- the balance after it
  used_after bigint not null,
  held_after bigint not null,
  credits bigint not null       -- what the usage records that are gone add up to
);

-- As in 004, but for the opening: it is the last posting that the books were closed with. And without a condition on
-- grants, for which PostgreSQL would sort all of them for one page: those that are no postings, as allowances, have no seq.
create or replace view ai_credit_entries as
select account.user_id, coalesce(pruned.seq, 0) as seq, 'opening'::varchar as kind,
  coalesce(pruned.created_at, account.created_at) as created_at,
  coalesce(pruned.total_after - pruned.used_after - pruned.held_after, opening_total - opening_used) as amount,
  null::bigint as id, null::varchar as operation, null::jsonb as metadata, null::varchar as reason,
  null::bigint as reference_id, null::jsonb as details,
  coalesce(pruned.total_after, opening_total) as total_after, coalesce(pruned.used_after, opening_used) as used_after,
  coalesce(pruned.held_after, 0) as held_after, null::varchar as price_version, null::jsonb as quantities
from ai_credits account left join ai_credit_pruned pruned using (user_id)
union all
select user_id, seq, kind, created_at, coalesce(amount, -credits_used), id, operation, metadata, reason,
  coalesce(hold_id, refunded_id), null, total_after, used_after, held_after, price_version, quantities
from ai_credit_usage
union all
select user_id, seq, 'hold', created_at, -credits, id, operation, metadata, null, null, null,
  total_after, used_after, held_after, null, null
from ai_credit_holds
union all
select user_id, seq, 'grant', created_at, credits, id, null, null, reason, null, null,
  total_after, used_after, held_after, null, null
from ai_credit_grants
union all
select user_id, seq, kind, created_at, amount, null, null, null, null, reference_id, details,
  total_after, used_after, held_after, null, null
from ai_credit_events;

-- As in 004; what was kept of closed books is not told.
create or replace function ai_credit_statement(
  p_user_id varchar, p_from timestamptz, p_to timestamptz, p_after_seq bigint, p_limit integer,
  p_allowance jsonb, p_lock_timeout integer, out entries varchar
)
language plpgsql as $$
declare
  opening_seq bigint;
begin
  perform ai_credit_balance(p_user_id, p_allowance, p_lock_timeout);
  opening_seq := coalesce((select seq from ai_credit_pruned where user_id = p_user_id), 0);
  select coalesce(json_agg(json_build_array(seq, kind, ai_credit_iso(created_at), amount, total_after, used_after,
      held_after, id::varchar, reference_id::varchar, operation, metadata, reason, details, price_version, quantities)
      order by seq), '[]')::varchar
  into entries
  from (
    select * from ai_credit_entries
    where user_id = p_user_id and seq > p_after_seq and seq >= opening_seq and (seq > opening_seq or kind = 'opening')
      and (p_from is null or created_at >= p_from) and (p_to is null or created_at < p_to)
    order by seq
    limit p_limit
  ) page;
end
$$;

-- As in 002, with what is gone: its credits count as recorded, and its postings as entries.
create or replace function ai_credit_reconcile(p_user_id varchar, p_after_user_id varchar, p_limit integer)
returns table (user_id varchar, total bigint, used bigint, held bigint,
  spent bigint, recorded bigint, summed bigint, holding bigint, granted bigint, covered bigint, entries bigint, seq bigint)
language sql stable
begin atomic
  select account.user_id, account.total_credits, account.used_credits, account.held_credits,
    account.spent_before + account.used_credits,
    (select coalesce(sum(credits_used), 0) from ai_credit_usage where user_id = account.user_id) + gone.credits,
    (select coalesce(sum(used_credits), 0) from ai_credit_daily_usage where user_id = account.user_id),
    hold.credits,
    account.total_credits - account.used_credits,
    case when living.grants = 0 then account.total_credits else living.credits + hold.pinned end
      - (account.spent_before + account.used_credits - account.allocated),
    (select count(distinct entry.seq) from ai_credit_entries entry
      where entry.user_id = account.user_id and entry.kind <> 'opening' and entry.seq > gone.seq) + gone.seq,
    account.seq
  from ai_credits account,
    lateral (
      select coalesce(sum(credits_left), 0)::bigint as credits, coalesce(sum(pinned), 0)::bigint as pinned
      from ai_credit_holds where user_id = account.user_id and state = 'open'
    ) hold,
    lateral (
      select count(*) as grants, coalesce(sum(credits_left) filter (where state = 'living'), 0)::bigint as credits
      from ai_credit_grants where user_id = account.user_id
    ) living,
    lateral (
      select coalesce(max(pruned.seq), 0) as seq, coalesce(max(pruned.credits), 0) as credits
      from ai_credit_pruned pruned where pruned.user_id = account.user_id
    ) gone
  where (p_user_id is null or account.user_id = p_user_id) and (p_after_user_id is null or account.user_id > p_after_user_id)
  order by account.user_id
  limit p_limit;
end;

----------------------------------------------------------------------------------------------------------------------
-- Pruning. It goes along each account's postings, by the indexes on (user_id, seq): no index on times has to be kept up
-- to date with every charge.
----------------------------------------------------------------------------------------------------------------------

-- Closes the books of a locked account with at most p_limit further postings, all of them older than p_before. Of these
-- stay: a usage record while one of its refunds is newer, with all its refunds, so that their limit is remembered; holds
-- that were open then, and captures of theirs that have a key; grants, which live on or have the key of a purchase, and
-- what their revoking was answered.
create function ai_credit_prune_account(
  p_user_id varchar, p_before timestamptz, p_limit integer, out entries integer, out records integer
)
language plpgsql set enable_seqscan = off as $$
declare
  pruned ai_credit_pruned;
  first_seq bigint := 0; -- after this one, up to and with the last
  last_seq bigint;
  opening ai_credit_entries;
  ended bigint[];
  going bigint[];
  oldest bigint; -- of those
  gone bigint := 0;
begin
  select * into pruned from ai_credit_pruned where user_id = p_user_id;
  first_seq := coalesce(pruned.seq, 0);
  select least(seq, first_seq + p_limit) into last_seq from ai_credits where user_id = p_user_id;
  last_seq := coalesce((
    select seq - 1 from ai_credit_entries
    where user_id = p_user_id and kind <> 'opening' and seq > first_seq and seq <= last_seq and created_at >= p_before
    order by seq limit 1), last_seq);
  entries := last_seq - first_seq;
  records := 0;
  if entries <= 0 then
    return;
  end if;
  select * into opening from ai_credit_entries
  where user_id = p_user_id and seq >= first_seq and seq <= last_seq
  order by seq desc, kind <> 'opening' limit 1;

  -- Here and below, || '' and + 0 and OFFSET 0: else PostgreSQL may look through all of the account for what has an index.
  with hold as (
    delete from ai_credit_holds
    where user_id || '' = p_user_id and state <> 'open' and closing_seq <= last_seq and id = any(array(
      select hold_id from ai_credit_usage
      where user_id = p_user_id and seq > first_seq and seq <= last_seq and kind = 'capture'
      union
      select reference_id from ai_credit_events
      where user_id = p_user_id and seq > first_seq and seq <= last_seq and kind in ('release', 'lapse')))
    returning id
  )
  select coalesce(array_agg(id), '{}') into ended from hold;

  -- Counted rather than asked for with EXISTS, which PostgreSQL may answer for all of the account at once.
  with old as (
    select id, seq, case when kind = 'capture' and idempotency_key is not null then hold_id end as hold_id
    from ai_credit_usage
    where user_id = p_user_id and seq > first_seq and seq <= last_seq and kind <> 'refund'
    union
    select refund.refunded_id, original.seq,
      case when original.kind = 'capture' and original.idempotency_key is not null then original.hold_id end
    from ai_credit_usage refund left join ai_credit_usage original on original.id = refund.refunded_id
    where refund.user_id = p_user_id and refund.seq > first_seq and refund.seq <= last_seq and refund.kind = 'refund'
    union
    select capture.id, capture.seq, null from unnest(ended) as hold (id),
      lateral (
        select id, seq from ai_credit_usage
        where user_id = p_user_id and hold_id = hold.id and kind = 'capture' and idempotency_key is not null offset 0
      ) capture
  ), unneeded as (
    select id, seq from old
    where (select count(*) from ai_credit_usage refund
        where refund.user_id = p_user_id and refund.refunded_id = old.id and refund.seq + 0 > last_seq) = 0
      and (select count(*) from ai_credit_holds hold where hold.id = old.hold_id and hold.user_id || '' = p_user_id) = 0
  )
  select array_agg(seq), min(seq) into going, oldest
  from (
    select seq from unneeded
    union
    select refund.seq from unneeded,
      lateral (select seq from ai_credit_usage where user_id = p_user_id and refunded_id = unneeded.id offset 0) refund
  ) going;

  -- The range for PostgreSQL before 17, which looks through all of the account for so many.
  with record as (
    delete from ai_credit_usage
    where user_id = p_user_id and seq >= oldest and seq <= last_seq and seq = any(going)
    returning credits_used
  )
  select count(*), coalesce(sum(credits_used), 0) into records, gone from record;

  delete from ai_credit_events
  where user_id = p_user_id and seq > first_seq and seq <= last_seq and kind <> 'revoke';

  gone := gone + coalesce(pruned.credits, 0);
  insert into ai_credit_pruned (user_id, seq, created_at, total_after, used_after, held_after, credits)
  values (p_user_id, last_seq, opening.created_at, opening.total_after, opening.used_after, opening.held_after, gone)
  on conflict (user_id) do update
  set seq = excluded.seq, created_at = excluded.created_at, total_after = excluded.total_after,
      used_after = excluded.used_after, held_after = excluded.held_after, credits = excluded.credits;
end
$$;

-- Looks at accounts from p_from on, at 1000 at most, and closes the books of those that have something older than
-- p_before, with p_batch postings at most. next: the account to go on with; null: there are no more. accounts: with how
-- many it is done. verdict: 'accepted', or 'future' (p_before is not in the past; nothing was done).
--
-- It waits for an account only while it holds none: one that is locked elsewhere later on is left for the next call.
create function ai_credit_prune(
  p_before timestamptz, p_from varchar, p_batch integer, p_lock_timeout integer,
  out verdict varchar, out next varchar, out accounts integer, out records integer
)
language plpgsql set lock_timeout = 0 set enable_seqscan = off as $$
declare
  account record;
  done record;
  room integer := p_batch;
  holding boolean := false;
begin
  accounts := 0;
  records := 0;
  if p_before > statement_timestamp() then
    verdict := 'future';
    return;
  end if;
  verdict := 'accepted';
  perform set_config('lock_timeout', p_lock_timeout::text, true);
  for account in
    select user_id, seq, coalesce((select pruned.seq from ai_credit_pruned pruned where pruned.user_id = found.user_id), 0)
      as pruned_seq
    from ai_credits found where user_id >= p_from order by user_id limit 1001
  loop
    next := account.user_id;
    exit when accounts = 1000;
    if account.seq > account.pruned_seq and not exists (
      select from ai_credit_entries
      where user_id = next and kind <> 'opening' and seq = account.pruned_seq + 1 and created_at >= p_before
    ) then
      if holding then
        perform from ai_credits where user_id = next for update skip locked;
        exit when not found;
      else
        perform from ai_credits where user_id = next for update;
        holding := true;
      end if;
      done := ai_credit_prune_account(next, p_before, room);
      records := records + done.records;
      room := room - done.entries;
      exit when room = 0; -- the account may have more
    end if;
    accounts := accounts + 1;
    next := null;
  end loop;
end
$$;

----------------------------------------------------------------------------------------------------------------------
-- What finds its row before it locks the account: the row may be gone by then. Else as in 002, 003 and 004.
----------------------------------------------------------------------------------------------------------------------

create or replace function ai_credit_refund(
  p_record_id bigint, p_user_id varchar, p_deduct_key varchar, p_credits bigint, p_reason varchar,
  p_idempotency_key varchar, p_allowance jsonb, p_time_zone varchar, p_lock_timeout integer,
  out verdict varchar, out user_id varchar, out usage_id bigint, out record_id bigint, out credits bigint,
  out total bigint, out used bigint, out held bigint
)
language plpgsql as $$
#variable_conflict use_column
declare
  account ai_credits;
  original ai_credit_usage;
  earlier ai_credit_usage;
  record ai_credit_usage;
  refundable bigint;
  debt bigint;
  in_period bigint; -- what was spent in this period is taken from used, the rest was spent before
begin
  if p_record_id is null then
    select * into original from ai_credit_usage
    where user_id = p_user_id and kind = 'deduct' and idempotency_key = p_deduct_key;
  else
    select * into original from ai_credit_usage
    where id = p_record_id and kind <> 'refund' and user_id = coalesce(p_user_id, user_id);
  end if;
  if not found then
    verdict := 'missing';
    return;
  end if;
  ai_credit_refund.user_id := original.user_id;
  usage_id := original.id;
  account := ai_credit_lock(original.user_id, p_allowance, p_lock_timeout);
  if not exists (select from ai_credit_usage where id = original.id) then
    verdict := 'missing';
    return;
  end if;

  record.request_hash := ai_credit_hash(jsonb_build_array(original.id, p_credits, p_reason));
  if p_idempotency_key is not null then
    select * into earlier from ai_credit_usage
    where user_id = account.user_id and kind = 'refund' and idempotency_key = p_idempotency_key;
    if found then
      verdict := case when earlier.request_hash = record.request_hash then 'replayed' else 'conflict' end;
      record_id := earlier.id;
      credits := -earlier.credits_used;
      total := earlier.total_after;
      used := earlier.used_after;
      held := earlier.held_after;
      return;
    end if;
  end if;

  select original.credits_used + coalesce(sum(credits_used), 0) into refundable
  from ai_credit_usage where user_id = account.user_id and refunded_id = original.id;
  credits := coalesce(p_credits, refundable);
  in_period := least(credits, greatest(0, account.used_credits));
  if credits > refundable or credits = 0 then
    verdict := 'exceeds';
  elsif account.total_credits > ai_credit_max() - (credits - in_period) then
    verdict := 'overflow';
  else
    verdict := 'accepted';
    account := ai_credit_allocate(account);
    debt := account.spent_before + account.used_credits - account.allocated;
    account.used_credits := account.used_credits - in_period;
    account.spent_before := account.spent_before - (credits - in_period);
    account.total_credits := account.total_credits + (credits - in_period);
    if credits > debt then
      account := ai_credit_give_back(account, credits - debt);
    end if;
    account.seq := account.seq + 1;
    record.kind := 'refund';
    record.credits_used := -credits;
    record.operation := original.operation;
    record.metadata := original.metadata;
    record.idempotency_key := p_idempotency_key;
    record.refunded_id := original.id;
    record.reason := p_reason;
    record_id := ai_credit_post(account, record, p_time_zone);
  end if;
  total := account.total_credits;
  used := account.used_credits;
  held := account.held_credits;
end
$$;

create or replace function ai_credit_capture(
  p_hold_id bigint, p_user_id varchar, p_credits bigint, p_metadata jsonb, p_final boolean, p_shortfall varchar,
  p_idempotency_key varchar, p_operation varchar, p_price_version varchar, p_quantities jsonb,
  p_allowance jsonb, p_time_zone varchar, p_lock_timeout integer,
  out verdict varchar, out user_id varchar, out record_id bigint, out credits bigint, out uncollected bigint,
  out required bigint, out total bigint, out used bigint, out held bigint
)
language plpgsql set enable_seqscan = off as $$
declare
  account ai_credits;
  hold ai_credit_holds;
  decided record;
  answer ai_credit_answer;
begin
  user_id := ai_credit_hold_user(p_hold_id, p_user_id);
  if user_id is null then
    verdict := 'missing';
    return;
  end if;
  account := ai_credit_lock(user_id, p_allowance, p_lock_timeout);
  select * into hold from ai_credit_holds where id = p_hold_id;
  if not found then
    verdict := 'missing';
    return;
  end if;
  decided := ai_credit_decide_capture(account, hold, p_credits, p_metadata, p_final, p_shortfall, p_idempotency_key,
    p_operation, p_price_version, p_quantities);
  answer := decided.answer;
  if answer.verdict = 'accepted' then
    perform ai_credit_save_hold(decided.hold);
    perform ai_credit_post(decided.account, decided.record, p_time_zone);
  end if;
  verdict := answer.verdict;
  record_id := answer.id;
  credits := answer.credits;
  uncollected := answer.uncollected;
  required := answer.required;
  total := answer.total;
  used := answer.used;
  held := answer.held;
end
$$;

create or replace function ai_credit_release(
  p_hold_id bigint, p_user_id varchar, p_allowance jsonb, p_lock_timeout integer,
  out verdict varchar, out user_id varchar, out credits bigint, out total bigint, out used bigint, out held bigint
)
language plpgsql as $$
declare
  account ai_credits;
  hold ai_credit_holds;
  decided record;
  answer ai_credit_answer;
begin
  user_id := ai_credit_hold_user(p_hold_id, p_user_id);
  if user_id is null then
    verdict := 'missing';
    return;
  end if;
  account := ai_credit_lock(user_id, p_allowance, p_lock_timeout);
  select * into hold from ai_credit_holds where id = p_hold_id;
  if not found then
    verdict := 'missing';
    return;
  end if;
  decided := ai_credit_decide_release(account, hold);
  answer := decided.answer;
  if answer.verdict = 'accepted' then
    perform ai_credit_save_hold(decided.hold);
    perform ai_credit_save(decided.account);
  end if;
  verdict := answer.verdict;
  credits := answer.credits;
  total := answer.total;
  used := answer.used;
  held := answer.held;
end
$$;

alter function ai_credit_refund set enable_seqscan = off;
alter function ai_credit_release set enable_seqscan = off;

commit;
