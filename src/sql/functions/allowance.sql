-- Allowances: the grant that an account begins with, the plans by which one renews, and an account's own terms.

-- How much of an ending period's allowance a plan carries into the next.
create or replace function :"schema".ai_credit_rollover(p_plan jsonb) returns bigint
language sql immutable as $$
  select case
    when p_plan->>'rollover' = 'all' then :"schema".ai_credit_max()
    else coalesce((p_plan#>>'{rollover,max}')::bigint, 0)
  end
$$;

-- Makes the grant of an account's allowance: one that renews ends with its period and ranks as any grant; a one-off one
-- burns last.
create or replace function :"schema".ai_credit_open_allowance(p_account :"schema".ai_credit_account, p_credits bigint) returns bigint
language sql as $$
  select :"schema".ai_credit_open_grant(p_account, 'allowance'::text, p_credits,
    case when p_account.renews_at = 'infinity' then :"schema".ai_credit_last_priority() else :"schema".ai_credit_usual_priority() end,
    p_account.renews_at)
$$;

-- Begins a period: gives the plan's allowance beside what is carried into it, both of which are for a grant that ends at
-- renews_at. The total never passes 2^53 - 1.
create or replace function :"schema".ai_credit_begin_period(
  inout account :"schema".ai_credit_account, p_carried bigint, p_at timestamptz, out allowance_left bigint
)
language plpgsql as $$
declare
  given bigint := coalesce((account.plan->>'credits')::bigint, 0);
begin
  given := greatest(0, least(given, :"schema".ai_credit_room(account)));
  account.total_credits := account.total_credits + given;
  account.renews_at := case when account.plan is null then 'infinity'
    else :"schema".ai_credit_next_renewal(account.plan, account.created_at, p_at) end;
  allowance_left := given + p_carried;
end
$$;

-- Ends the running period's allowance. Returns what was left of it; the account's total has it still.
create or replace function :"schema".ai_credit_end_allowance(inout account :"schema".ai_credit_account, out allowance_left bigint)
language plpgsql as $$
declare
  ended record;
  allowance_id bigint;
begin
  account := :"schema".ai_credit_allocate(account);
  select id into strict allowance_id from :"schema".ai_credit_grants
  where user_id = account.user_id and state = 'living' and kind = 'allowance' and expires_at = account.renews_at;
  ended := :"schema".ai_credit_end_grant(account, allowance_id, 'expired'::text);
  account := ended.account;
  allowance_left := ended.rest;
  delete from :"schema".ai_credit_grants where user_id = account.user_id and id = allowance_id; -- nothing refers to it
end
$$;

-- Ends the period at renews_at and begins the next: the allowance's rest expires but for what is carried, and used
-- starts again at 0.
create or replace function :"schema".ai_credit_renew(
  inout account :"schema".ai_credit_account, p_allowance jsonb, inout allowance_left bigint, out expired bigint
)
language plpgsql as $$
declare
  boundary timestamptz := account.renews_at;
  carried bigint := least(allowance_left, :"schema".ai_credit_rollover(account.plan));
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
  begun := :"schema".ai_credit_begin_period(account, carried, boundary);
  account := begun.account;
  allowance_left := begun.allowance_left;
end
$$;

-- Renews as often as periods have ended by p_now with nothing else between, as one event. An allowance that nothing
-- but debt has drawn on is not written: ten idle years of days are settled at once. p_next_end: when the next hold
-- lapses or the next grant expires.
create or replace function :"schema".ai_credit_renew_until(
  inout account :"schema".ai_credit_account, p_now timestamptz, p_next_end timestamptz, p_allowance jsonb
)
language plpgsql as $$
declare
  available bigint := :"schema".ai_credit_available(account);
  period record;
  renewed_at timestamptz;
  paid bigint;
  periods integer := 0;
  expired bigint := 0;
begin
  period := :"schema".ai_credit_end_allowance(account);
  loop
    account := period.account;
    renewed_at := account.renews_at;
    period := :"schema".ai_credit_renew(account, p_allowance, period.allowance_left);
    account := period.account;
    expired := expired + period.expired;
    periods := periods + 1;
    exit when account.renews_at > p_now or account.renews_at >= p_next_end or periods = 10000;
    if account.held_credits > 0 then
      perform :"schema".ai_credit_open_allowance(account, period.allowance_left);
      period := :"schema".ai_credit_end_allowance(account);
    else
      paid := least(period.allowance_left, account.spent_before - account.allocated);
      account.allocated := account.allocated + paid;
      select account, period.allowance_left - paid as allowance_left into period;
    end if;
  end loop;
  perform :"schema".ai_credit_open_allowance(account, period.allowance_left);
  account := :"schema".ai_credit_note(account, 'renewal'::text, renewed_at, :"schema".ai_credit_available(account) - available,
    null::bigint, jsonb_build_object('periods', periods, 'expired', expired, 'allowance', account.plan));
end
$$;

-- Gives an account a plan of its own: from its next renewal, or at once if none is running. p_plan null: none. Verdicts:
-- 'accepted', and the obstacles.
create or replace function :"schema".ai_credit_set_allowance(
  p_caller integer, p_user_id varchar, p_plan jsonb, p_allowance jsonb, p_lock_timeout integer,
  out verdict varchar, out renews_at varchar, out total bigint, out used bigint, out held bigint, out settled varchar
)
security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off
language plpgsql as $$
declare
  account :"schema".ai_credit_account := :"schema".ai_credit_lock(p_user_id, p_allowance, p_lock_timeout);
  available bigint := :"schema".ai_credit_available(account);
  begun record;
begin
  settled := account.settled;
  verdict := account.obstacle;
  if verdict is not null then
    return;
  end if;
  verdict := 'accepted';
  account.plan_own := true;
  if account.renews_at < 'infinity' then
    account.next_plan := coalesce(p_plan, 'null');
  elsif p_plan is not null then
    account := :"schema".ai_credit_allocate(account);
    account.plan := p_plan;
    begun := :"schema".ai_credit_begin_period(account, 0::bigint, account.updated_at);
    account := begun.account;
    perform :"schema".ai_credit_open_allowance(account, begun.allowance_left);
    account.due_at := least(account.due_at, account.renews_at);
    account := :"schema".ai_credit_note(account, 'renewal'::text, account.updated_at,
      :"schema".ai_credit_available(account) - available, null::bigint,
      jsonb_build_object('periods', 0, 'expired', 0, 'allowance', account.plan));
  end if;
  perform :"schema".ai_credit_save(account);
  renews_at := :"schema".ai_credit_iso(account.renews_at);
  total := account.total_credits;
  used := account.used_credits;
  held := account.held_credits;
end
$$;
comment on function :"schema".ai_credit_set_allowance(integer, varchar, jsonb, jsonb, integer)
is 'Gives an account an allowance of its own.';

-- Lets an account go below zero by p_credits. Verdicts: 'accepted'; 'overflow' (what it could spend would pass 2^53 - 1);
-- and the obstacles.
create or replace function :"schema".ai_credit_set_overdraft(
  p_caller integer, p_user_id varchar, p_credits bigint, p_allowance jsonb, p_lock_timeout integer,
  out verdict varchar, out total bigint, out used bigint, out held bigint, out settled varchar
)
security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off
language plpgsql as $$
declare
  account :"schema".ai_credit_account := :"schema".ai_credit_lock(p_user_id, p_allowance, p_lock_timeout);
begin
  settled := account.settled;
  verdict := account.obstacle;
  if verdict is not null then
    return;
  end if;
  if p_credits > account.overdraft + :"schema".ai_credit_room(account) then
    verdict := 'overflow';
  else
    verdict := 'accepted';
    account.overdraft := p_credits;
    perform :"schema".ai_credit_save(account);
  end if;
  total := account.total_credits;
  used := account.used_credits;
  held := account.held_credits;
end
$$;
comment on function :"schema".ai_credit_set_overdraft(integer, varchar, bigint, jsonb, integer)
is 'Lets an account go below zero by so many credits.';
