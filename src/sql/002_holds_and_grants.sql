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
