-- Grants: credits given. Spending is laid on them lazily, before the set of grants changes. What no grant can cover stays
-- pending: it is debt, and the next grant pays it.
--
-- Grants are read in portions, by index and in their order: only those that something is laid on, whatever else there is.

-- The priority of a grant that names none: those with a lower one burn before it.
create or replace function :"schema".ai_credit_usual_priority() returns integer
language sql immutable as $$
  select 50
$$;

-- The priority of a one-off allowance, which burns after all grants: these have 100 at most.
create or replace function :"schema".ai_credit_last_priority() returns integer
language sql immutable as $$
  select 101
$$;

create or replace function :"schema".ai_credit_open_grant(
  p_account :"schema".ai_credit_account, p_kind text, p_credits bigint, p_priority integer, p_expires_at timestamptz
) returns bigint
language plpgsql as $$
declare
  grant_id bigint;
begin
  insert into :"schema".ai_credit_grants (user_id, kind, credits, credits_left, priority, expires_at, created_at)
  values (p_account.user_id, p_kind, p_credits, p_credits, p_priority, p_expires_at, p_account.updated_at)
  returning id into grant_id;
  return grant_id;
end
$$;

-- Lays pending spending on the living grants, in burn order. An account's first grant is the allowance that it already
-- has: its total, which nothing else has added to (one below zero, in an adopted account, is debt).
create or replace function :"schema".ai_credit_allocate(inout account :"schema".ai_credit_account)
language plpgsql as $$
declare
  pending bigint;
  portion record;
begin
  if not exists (select from :"schema".ai_credit_grants where user_id = account.user_id) then
    perform :"schema".ai_credit_open_allowance(account, greatest(account.total_credits, 0));
    account.allocated := account.allocated + least(account.total_credits, 0);
  end if;
  loop
    pending := account.spent_before + account.used_credits - account.allocated;
    exit when pending <= 0;
    with front as materialized (
      select user_id, id, credits_left from :"schema".ai_credit_grants
      where user_id = account.user_id and state = 'living' and credits_left > 0
        and (credits_left > 0 or :"schema".ai_credit_dear(state))
      order by priority, expires_at, id
      limit 100
    ), burn as materialized (
      select user_id, id, least(credits_left, pending - (sum(credits_left) over burn_order - credits_left)) as credits
      from front window burn_order as (rows unbounded preceding)
    ), burnt as (
      update :"schema".ai_credit_grants living
      set credits_left = living.credits_left - burn.credits
      from burn
      where living.user_id = burn.user_id and living.id = burn.id and burn.credits > 0 and living.user_id || '' = account.user_id
      returning burn.credits
    )
    select coalesce(sum(credits), 0) as laid, (select count(*) from front) as grants into portion from burnt;
    account.allocated := account.allocated + portion.laid;
    exit when portion.grants < 100;
  end loop;
end
$$;

-- Gives credits back to the living grants, the last to burn first, each at most what it gave; what fits in none becomes a
-- grant of its own.
create or replace function :"schema".ai_credit_give_back(inout account :"schema".ai_credit_account, p_credits bigint)
language plpgsql as $$
declare
  rest bigint := p_credits;
  portion record;
begin
  while rest > 0 loop
    with front as materialized (
      select user_id, id, credits - credits_left as given from :"schema".ai_credit_grants
      where user_id = account.user_id and state = 'living' and credits_left < credits
        and (credits_left < credits or :"schema".ai_credit_dear(state))
      order by priority desc, expires_at desc, id desc
      limit 100
    ), burn as materialized (
      select user_id, id, least(given, rest - (sum(given) over back_order - given)) as credits
      from front window back_order as (rows unbounded preceding)
    ), back as (
      update :"schema".ai_credit_grants living
      set credits_left = living.credits_left + burn.credits
      from burn
      where living.user_id = burn.user_id and living.id = burn.id and burn.credits > 0 and living.user_id || '' = account.user_id
      returning burn.credits
    )
    select coalesce(sum(credits), 0) as credits, (select count(*) from front) as grants into portion from back;
    rest := rest - portion.credits;
    exit when portion.grants < 100;
  end loop;
  account.allocated := account.allocated - p_credits;
  if rest > 0 then
    perform :"schema".ai_credit_open_grant(account, 'refund'::text, rest, :"schema".ai_credit_usual_priority(),
      'infinity'::timestamptz);
  end if;
end
$$;

-- Ends a grant. Pending spending is laid first, then open holds, by id, in burn order: where a hold lies on this grant,
-- that part is pinned to the hold and outlives the grant. Returns the rest, which the caller takes from the total.
create or replace function :"schema".ai_credit_end_grant(
  inout account :"schema".ai_credit_account, p_grant_id bigint, p_state text, out rest bigint
)
language plpgsql as $$
declare
  ending record;
  lies_from bigint;
  kept bigint := 0;
begin
  account := :"schema".ai_credit_allocate(account);
  select id, priority, expires_at, credits_left into strict ending from :"schema".ai_credit_grants
  where user_id = account.user_id and id = p_grant_id;
  if account.held_credits > 0 and ending.credits_left > 0 then
    select coalesce(sum(credits_left), 0) into lies_from from :"schema".ai_credit_grants
    where user_id = account.user_id and state = 'living' and credits_left > 0
      and (credits_left > 0 or :"schema".ai_credit_dear(state))
      and (priority, expires_at, id) < (ending.priority, ending.expires_at, ending.id);

    -- What is to change is materialized, with the account in each row: see 'For the planner' in README.md.
    with hold as (
      select user_id, seq, credits_left - pinned as credits, sum(credits_left - pinned) over (order by id) as lies_to
      from :"schema".ai_credit_holds
      where user_id = account.user_id and state = 'open'
        and (state = 'open' or :"schema".ai_credit_dear(state))
    ), overlap as materialized (
      select user_id, seq,
        least(lies_to, lies_from + ending.credits_left) - greatest(lies_to - credits, lies_from) as credits
      from hold
    ), pin as (
      update :"schema".ai_credit_holds hold
      set pinned = hold.pinned + overlap.credits
      from overlap
      where hold.user_id = overlap.user_id and hold.seq = overlap.seq and overlap.credits > 0 and hold.user_id || '' = account.user_id
      returning overlap.credits
    )
    select coalesce(sum(credits), 0) into kept from pin;
  end if;

  update :"schema".ai_credit_grants set state = p_state, credits_left = 0 where user_id = account.user_id and id = p_grant_id;
  rest := ending.credits_left - kept;
end
$$;

-- Adds credits. Verdicts: 'accepted'; 'replayed' (the key was used for the same grant: as it was answered then); 'conflict'
-- (the key was used for another one); 'past' (it would have expired already); 'overflow' (the total would pass 2^53 - 1);
-- and the obstacles.
--
-- The key stands for the credits, the reason and the priority. The time of expiry is no part of it: a caller works it out
-- from the time at which it calls, so that it is another one in every repetition.
create or replace function :"schema".ai_credit_grant(
  p_caller integer, p_user_id varchar, p_credits bigint, p_reason varchar, p_expires_at timestamptz, p_priority integer,
  p_idempotency_key varchar, p_allowance jsonb, p_lock_timeout integer,
  out verdict varchar, out id bigint, out expires_at varchar, out total bigint, out used bigint, out held bigint,
  out settled varchar
)
security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off
language plpgsql as $$
#variable_conflict use_column
declare
  account :"schema".ai_credit_account := :"schema".ai_credit_lock(p_user_id, p_allowance, p_lock_timeout);
begin
  settled := account.settled;
  verdict := account.obstacle;
  if verdict is not null then
    return;
  end if;
  if p_idempotency_key is not null then
    select case when (credits, priority) = (p_credits, p_priority) and reason is not distinct from p_reason
        then 'replayed' else 'conflict' end,
      id, :"schema".ai_credit_iso(expires_at), total_after, used_after, held_after
    into verdict, ai_credit_grant.id, ai_credit_grant.expires_at, total, used, held
    from :"schema".ai_credit_grants where user_id = p_user_id and idempotency_key = p_idempotency_key
      and (idempotency_key is not null or :"schema".ai_credit_dear(idempotency_key));
    if found then
      return;
    end if;
  end if;

  if p_expires_at <= account.updated_at then
    verdict := 'past';
  elsif p_credits > :"schema".ai_credit_room(account) then
    verdict := 'overflow';
  else
    verdict := 'accepted';
    account := :"schema".ai_credit_allocate(account);
    account.total_credits := account.total_credits + p_credits;
    account.seq := account.seq + 1;
    insert into :"schema".ai_credit_grants (user_id, kind, credits, credits_left, priority, expires_at, reason, created_at, seq,
      total_after, used_after, held_after, idempotency_key)
    values (p_user_id, 'grant', p_credits, p_credits, p_priority, p_expires_at, p_reason, account.updated_at,
      account.seq, account.total_credits, account.used_credits, account.held_credits, p_idempotency_key)
    returning ai_credit_grants.id into ai_credit_grant.id;
    ai_credit_grant.expires_at := :"schema".ai_credit_iso(p_expires_at);
    account := :"schema".ai_credit_allocate(account);
    account.due_at := least(account.due_at, p_expires_at);
    perform :"schema".ai_credit_save(account);
  end if;
  total := account.total_credits;
  used := account.used_credits;
  held := account.held_credits;
end
$$;
comment on function :"schema".ai_credit_grant(
  integer, varchar, bigint, varchar, timestamptz, integer, varchar, jsonb, integer
) is 'Adds credits to an account.';

-- Takes back what is unspent of a grant. Verdicts: 'accepted', 'replayed', 'missing', 'closed' (it has expired), and the
-- obstacles.
create or replace function :"schema".ai_credit_revoke(
  p_caller integer, p_grant_id bigint, p_user_id varchar, p_allowance jsonb, p_lock_timeout integer,
  out verdict varchar, out user_id varchar, out credits bigint, out total bigint, out used bigint, out held bigint,
  out settled varchar
)
security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off
language plpgsql as $$
#variable_conflict use_column
declare
  account :"schema".ai_credit_account;
  revoked record;
  ended record;
begin
  select user_id into ai_credit_revoke.user_id from :"schema".ai_credit_grants
  where id = p_grant_id and kind = 'grant' and user_id = coalesce(p_user_id, user_id);
  if not found then
    verdict := 'missing';
    return;
  end if;
  account := :"schema".ai_credit_lock(ai_credit_revoke.user_id, p_allowance, p_lock_timeout);
  settled := account.settled;
  verdict := account.obstacle;
  if verdict is not null then
    return;
  end if;
  select state, closing_seq into revoked from :"schema".ai_credit_grants where user_id = account.user_id and id = p_grant_id;
  if revoked.state = 'expired' then
    verdict := 'closed';
    return;
  end if;
  if revoked.state = 'living' then
    verdict := 'accepted';
    ended := :"schema".ai_credit_end_grant(account, p_grant_id, 'revoked'::text);
    account := ended.account;
    account.total_credits := account.total_credits - ended.rest;
    account := :"schema".ai_credit_note(account, 'revoke'::text, account.updated_at, -ended.rest, p_grant_id, null::jsonb);
    update :"schema".ai_credit_grants set closing_seq = account.seq where user_id = account.user_id and id = p_grant_id;
    perform :"schema".ai_credit_save(account);
    revoked.closing_seq := account.seq;
  else
    verdict := 'replayed';
  end if;
  select -amount, total_after, used_after, held_after into credits, total, used, held
  from :"schema".ai_credit_events where user_id = account.user_id and seq = revoked.closing_seq;
end
$$;
comment on function :"schema".ai_credit_revoke(integer, bigint, varchar, jsonb, integer)
is 'Takes back what is unspent of a grant.';
