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
