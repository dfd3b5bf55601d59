-- Holds: credits set aside, then captured or released.

-- What an idempotency key of a hold stands for.
create or replace function :"schema".ai_credit_hold_hash(p_credits bigint, p_operation varchar, p_metadata jsonb, p_ttl bigint)
returns bytea
language sql immutable
return :"schema".ai_credit_hash(jsonb_build_array(p_credits, p_operation, p_metadata, p_ttl));

-- Sets credits aside. Verdicts as those of a deduct.
create or replace function :"schema".ai_credit_hold(
  p_caller integer, p_user_id varchar, p_credits bigint, p_operation varchar, p_metadata jsonb, p_ttl integer,
  p_idempotency_key varchar, p_allowance jsonb, p_lock_timeout integer,
  out verdict varchar, out id bigint, out expires_at varchar, out total bigint, out used bigint, out held bigint
)
security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off
language plpgsql as $$
#variable_conflict use_column
declare
  account :"schema".ai_credits := :"schema".ai_credit_lock(p_user_id, p_allowance, p_lock_timeout);
  hold :"schema".ai_credit_holds;
  hash bytea;
begin
  if account.user_id is null or account.due_at <= account.updated_at then
    verdict := :"schema".ai_credit_obstacle(account, p_user_id);
    return;
  end if;
  if p_idempotency_key is not null then
    hash := :"schema".ai_credit_hold_hash(p_credits, p_operation, p_metadata, p_ttl::bigint);
    select * into hold from :"schema".ai_credit_holds where user_id = p_user_id and idempotency_key = p_idempotency_key;
    if found then
      verdict := case when hold.request_hash = hash then 'replayed' else 'conflict' end;
      ai_credit_hold.id := hold.id;
      ai_credit_hold.expires_at := :"schema".ai_credit_iso(hold.created_at + hold.ttl * interval '1 millisecond');
      total := hold.total_after;
      used := hold.used_after;
      held := hold.held_after;
      return;
    end if;
  end if;

  if :"schema".ai_credit_fits(account, p_credits) then
    verdict := 'accepted';
    account.held_credits := account.held_credits + p_credits;
    account.seq := account.seq + 1;
    insert into :"schema".ai_credit_holds (user_id, seq, credits, credits_left, operation, metadata, ttl, created_at, expires_at,
      total_after, used_after, held_after, idempotency_key, request_hash)
    values (p_user_id, account.seq, p_credits, p_credits, p_operation, p_metadata, p_ttl, account.updated_at,
      account.updated_at + p_ttl * interval '1 millisecond',
      account.total_credits, account.used_credits, account.held_credits, p_idempotency_key, hash)
    returning * into hold;
    account.due_at := least(account.due_at, hold.expires_at);
    perform :"schema".ai_credit_save(account);
    ai_credit_hold.id := hold.id;
    ai_credit_hold.expires_at := :"schema".ai_credit_iso(hold.expires_at);
  else
    verdict := 'insufficient';
  end if;
  total := account.total_credits;
  used := account.used_credits;
  held := account.held_credits;
end
$$;

-- The account of a hold, and nobody's where the caller names another one.
create or replace function :"schema".ai_credit_hold_user(p_hold_id bigint, p_user_id varchar) returns varchar
language sql stable
return (select user_id from :"schema".ai_credit_holds where id = p_hold_id and user_id = coalesce(p_user_id, user_id));

-- The accounts of holds, in their order, as a JSON array; null for a hold that there is not.
create or replace function :"schema".ai_credit_hold_users(p_caller integer, p_hold_ids bigint[], out accounts varchar)
security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off
language plpgsql stable as $$
begin
  accounts := (select json_agg(:"schema".ai_credit_hold_user(id, null::varchar) order by place)
    from unnest(p_hold_ids) with ordinality as hold(id, place));
end
$$;

-- Captures and releases, for a call that goes alone and for one that shares its statement: each function is handed a
-- locked account and the hold as it is, and returns both as they will be, and what the caller is told.

-- Turns a hold, or a part of it, into spending. p_credits null: all that is left. Beyond what the hold has it draws on
-- what is available; where that is short, p_shortfall 'partial' takes what is there, 'reject' refuses. A hold that has
-- lapsed gave back what it held, and is captured from what is available: the work was done. By usage, p_operation is what
-- the price was of.
--
-- Verdicts: as those of a deduct; 'closed' (another call has closed the hold); 'operation' (the hold has another one).
create or replace function :"schema".ai_credit_decide_capture(
  inout account :"schema".ai_credits, inout hold :"schema".ai_credit_holds, p_credits bigint, p_metadata jsonb, p_final boolean,
  p_shortfall varchar, p_idempotency_key varchar, p_operation varchar, p_price_version varchar, p_quantities jsonb,
  out record :"schema".ai_credit_usage, out answer :"schema".ai_credit_answer
)
language plpgsql as $$
declare
  earlier :"schema".ai_credit_usage;
  hash bytea := :"schema".ai_credit_hash(case when p_quantities is null
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
    select * into earlier from :"schema".ai_credit_usage
    where user_id = account.user_id and kind = 'capture' and hold_id = hold.id and idempotency_key = p_idempotency_key;
  elsif hold.state = 'captured' and hold.closing_hash = hash then
    select * into earlier from :"schema".ai_credit_usage where user_id = account.user_id and seq = hold.closing_seq;
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
    if p_final or hold.state = 'lapsed' then
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
    record.id := nextval(':"schema".ai_credit_usage_id_seq');
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

-- Gives back what a hold has left; its event is written at once. One that has lapsed gave it back already: it stays as it
-- is, and may still be captured.
create or replace function :"schema".ai_credit_decide_release(
  inout account :"schema".ai_credits, inout hold :"schema".ai_credit_holds, out answer :"schema".ai_credit_answer
)
language plpgsql as $$
declare
  event :"schema".ai_credit_events;
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
    account := :"schema".ai_credit_note(account, 'release'::varchar, account.updated_at, hold.credits_left - hold.pinned, hold.id,
      null::jsonb);
    hold.state := 'released';
    hold.credits_left := 0;
    hold.pinned := 0;
    hold.closing_seq := account.seq;
  end if;
  select * into event from :"schema".ai_credit_events where user_id = account.user_id and seq = hold.closing_seq;
  answer.total := event.total_after;
  answer.used := event.used_after;
  answer.held := event.held_after;
  answer.credits := event.amount;
end
$$;

create or replace function :"schema".ai_credit_save_hold(p_hold :"schema".ai_credit_holds) returns void
language plpgsql as $$
begin
  update :"schema".ai_credit_holds
  set state = p_hold.state, credits_left = p_hold.credits_left, pinned = p_hold.pinned,
      closing_seq = p_hold.closing_seq, closing_hash = p_hold.closing_hash
  where user_id = p_hold.user_id and seq = p_hold.seq;
end
$$;

-- A capture that goes alone: see ai_credit_decide_capture. Verdicts besides: 'missing' (there is no such hold, or pruning
-- took it meanwhile), and the obstacles.
create or replace function :"schema".ai_credit_capture(
  p_caller integer, p_hold_id bigint, p_user_id varchar, p_credits bigint, p_metadata jsonb, p_final boolean, p_shortfall varchar,
  p_idempotency_key varchar, p_operation varchar, p_price_version varchar, p_quantities jsonb,
  p_allowance jsonb, p_time_zone varchar, p_lock_timeout integer,
  out verdict varchar, out user_id varchar, out id bigint, out credits bigint, out uncollected bigint,
  out required bigint, out total bigint, out used bigint, out held bigint
)
security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off
language plpgsql as $$
#variable_conflict use_column
declare
  account :"schema".ai_credits;
  hold :"schema".ai_credit_holds;
  decided record;
  answer :"schema".ai_credit_answer;
begin
  ai_credit_capture.user_id := :"schema".ai_credit_hold_user(p_hold_id, p_user_id);
  if ai_credit_capture.user_id is null then
    verdict := 'missing';
    return;
  end if;
  account := :"schema".ai_credit_lock(ai_credit_capture.user_id, p_allowance, p_lock_timeout);
  if account.user_id is null or account.due_at <= account.updated_at then
    verdict := :"schema".ai_credit_obstacle(account, ai_credit_capture.user_id);
    return;
  end if;
  select * into hold from :"schema".ai_credit_holds where id = p_hold_id;
  if not found then
    verdict := 'missing';
    return;
  end if;
  decided := :"schema".ai_credit_decide_capture(account, hold, p_credits, p_metadata, p_final, p_shortfall, p_idempotency_key,
    p_operation, p_price_version, p_quantities);
  answer := decided.answer;
  if answer.verdict = 'accepted' then
    perform :"schema".ai_credit_save_hold(decided.hold);
    perform :"schema".ai_credit_post(decided.account, decided.record, p_time_zone);
  end if;
  verdict := answer.verdict;
  id := answer.id;
  credits := answer.credits;
  uncollected := answer.uncollected;
  required := answer.required;
  total := answer.total;
  used := answer.used;
  held := answer.held;
end
$$;

-- A release that goes alone: see ai_credit_decide_release.
create or replace function :"schema".ai_credit_release(
  p_caller integer, p_hold_id bigint, p_user_id varchar, p_allowance jsonb, p_lock_timeout integer,
  out verdict varchar, out user_id varchar, out credits bigint, out total bigint, out used bigint, out held bigint
)
security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off
language plpgsql as $$
declare
  account :"schema".ai_credits;
  hold :"schema".ai_credit_holds;
  decided record;
  answer :"schema".ai_credit_answer;
begin
  user_id := :"schema".ai_credit_hold_user(p_hold_id, p_user_id);
  if user_id is null then
    verdict := 'missing';
    return;
  end if;
  account := :"schema".ai_credit_lock(user_id, p_allowance, p_lock_timeout);
  if account.user_id is null or account.due_at <= account.updated_at then
    verdict := :"schema".ai_credit_obstacle(account, user_id);
    return;
  end if;
  select * into hold from :"schema".ai_credit_holds where id = p_hold_id;
  if not found then
    verdict := 'missing';
    return;
  end if;
  decided := :"schema".ai_credit_decide_release(account, hold);
  answer := decided.answer;
  if answer.verdict = 'accepted' then
    perform :"schema".ai_credit_save_hold(decided.hold);
    perform :"schema".ai_credit_save(decided.account);
  end if;
  verdict := answer.verdict;
  credits := answer.credits;
  total := answer.total;
  used := answer.used;
  held := answer.held;
end
$$;

-- Lets an open hold live for p_ttl milliseconds from now, and no shorter than before. Verdicts: 'accepted', 'missing',
-- 'closed', and the obstacles.
create or replace function :"schema".ai_credit_extend(
  p_caller integer, p_hold_id bigint, p_user_id varchar, p_ttl integer, p_allowance jsonb, p_lock_timeout integer,
  out verdict varchar, out user_id varchar, out credits bigint, out expires_at varchar,
  out total bigint, out used bigint, out held bigint
)
security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off
language plpgsql as $$
#variable_conflict use_column
declare
  account :"schema".ai_credits;
  hold :"schema".ai_credit_holds;
begin
  ai_credit_extend.user_id := :"schema".ai_credit_hold_user(p_hold_id, p_user_id);
  if ai_credit_extend.user_id is null then
    verdict := 'missing';
    return;
  end if;
  account := :"schema".ai_credit_lock(ai_credit_extend.user_id, p_allowance, p_lock_timeout);
  if account.user_id is null or account.due_at <= account.updated_at then
    verdict := :"schema".ai_credit_obstacle(account, ai_credit_extend.user_id);
    return;
  end if;
  update :"schema".ai_credit_holds
  set expires_at = greatest(expires_at, account.updated_at + p_ttl * interval '1 millisecond')
  where user_id = account.user_id and id = p_hold_id and state = 'open'
  returning * into hold;
  verdict := case when found then 'accepted' else 'closed' end;
  credits := hold.credits_left;
  ai_credit_extend.expires_at := :"schema".ai_credit_iso(hold.expires_at);
  total := account.total_credits;
  used := account.used_credits;
  held := account.held_credits;
end
$$;

-- What captures were for, each known by its hold, and by its usage record where it made one: a JSON array, in order, of
-- [operation, metadata, by how much it changed what is available].
create or replace function :"schema".ai_credit_captures(
  p_caller integer, p_hold_ids bigint[], p_record_ids bigint[], out captures varchar
)
security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off
language plpgsql stable as $$
begin
  select json_agg(json_build_array(
    (select operation from :"schema".ai_credit_holds where id = hold_id),
    (select metadata from :"schema".ai_credit_usage where id = record_id),
    (select amount from :"schema".ai_credit_usage where id = record_id)) order by place)::varchar
  into captures
  from unnest(p_hold_ids, p_record_ids) with ordinality as asked(hold_id, record_id, place);
end
$$;
