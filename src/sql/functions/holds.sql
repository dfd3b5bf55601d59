-- Holds: credits set aside, then captured or released.

-- What an idempotency key of a hold stands for.
create or replace function :"schema".ai_credit_hold_hash(
  p_credits bigint, p_operation varchar, p_metadata jsonb, p_ttl bigint, p_budget varchar
) returns bytea
language sql immutable as $$
  select :"schema".ai_credit_hash(case
    when p_budget is null then jsonb_build_array(p_credits, p_operation, p_metadata, p_ttl)
    else jsonb_build_array(p_credits, p_operation, p_metadata, p_ttl, p_budget) end)
$$;

-- Sets credits aside. Verdicts, and counted, as those of a deduct.
create or replace function :"schema".ai_credit_hold(
  p_caller integer, p_user_id varchar, p_credits bigint, p_operation varchar, p_metadata jsonb, p_ttl integer,
  p_idempotency_key varchar, p_budget varchar, p_allowance jsonb, p_lock_timeout integer, p_tell boolean default false,
  out verdict varchar, out id bigint, out expires_at varchar, out total bigint, out used bigint, out held bigint,
  out refusal varchar, out counted varchar, out settled varchar
)
security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off
language plpgsql as $$
#variable_conflict use_column
declare
  account :"schema".ai_credit_account := :"schema".ai_credit_lock(p_user_id, p_allowance, p_lock_timeout);
  expires timestamptz := account.updated_at + p_ttl * interval '1 millisecond';
  hash bytea;
  path varchar[];
begin
  settled := account.settled;
  verdict := account.obstacle;
  if verdict is not null then
    return;
  end if;
  if p_idempotency_key is not null then
    hash := :"schema".ai_credit_hold_hash(p_credits, p_operation, p_metadata, p_ttl::bigint, p_budget);
    select case when request_hash = hash then 'replayed' else 'conflict' end,
      id, :"schema".ai_credit_iso(created_at + ttl * interval '1 millisecond'), total_after, used_after, held_after
    into verdict, ai_credit_hold.id, ai_credit_hold.expires_at, total, used, held
    from :"schema".ai_credit_holds where user_id = p_user_id and idempotency_key = p_idempotency_key
      and (idempotency_key is not null or :"schema".ai_credit_dear(idempotency_key));
    if found then
      return;
    end if;
  end if;

  if p_budget is not null then
    path := :"schema".ai_credit_path(p_user_id, p_budget);
    refusal := :"schema".ai_credit_refusal(account, path, p_credits, '{}'::bigint[], '{}'::bigint[]);
  end if;
  verdict := :"schema".ai_credit_verdict(account, p_credits, p_budget, path, refusal::text);
  if verdict = 'accepted' then
    if p_budget is not null then
      counted := :"schema".ai_credit_count_along(account, path, true, 0::bigint, 0::bigint, p_credits, account.seq + 1, p_tell);
    end if;
    account.held_credits := account.held_credits + p_credits;
    account.seq := account.seq + 1;
    insert into :"schema".ai_credit_holds (user_id, seq, credits, credits_left, operation, metadata, ttl, created_at, expires_at,
      total_after, used_after, held_after, idempotency_key, request_hash, budgets)
    values (p_user_id, account.seq, p_credits, p_credits, p_operation, p_metadata, p_ttl, account.updated_at, expires,
      account.total_credits, account.used_credits, account.held_credits, p_idempotency_key, hash, path)
    returning id into ai_credit_hold.id;
    account.due_at := least(account.due_at, expires);
    perform :"schema".ai_credit_save(account);
    ai_credit_hold.expires_at := :"schema".ai_credit_iso(expires);
  end if;
  total := account.total_credits;
  used := account.used_credits;
  held := account.held_credits;
end
$$;
comment on function :"schema".ai_credit_hold(
  integer, varchar, bigint, varchar, jsonb, integer, varchar, varchar, jsonb, integer, boolean
) is 'Sets credits of an account aside until they are captured or released, or the hold lapses.';

-- The account of a hold, and nobody's where the caller names another one.
create or replace function :"schema".ai_credit_hold_user(p_hold_id bigint, p_user_id varchar) returns varchar
language sql stable as $$
  select user_id from :"schema".ai_credit_holds where id = p_hold_id and user_id = coalesce(p_user_id, user_id)
$$;

-- Captures and releases, for a call that goes alone and for one that shares its statement: each function is handed a
-- locked account and the hold as it is, and returns both as they will be, and what the caller is told.

-- To close a hold is to take it from its account, and to say so in the hold. Both are expressions, which PostgreSQL writes into
-- those that name them: a function that is called would cost a shared statement of captures a twentieth.

-- An account without one of its holds. Of a hold that is open, what it has left is held no longer, and what is pinned to it,
-- which belongs to no living grant, leaves the total.
create or replace function :"schema".ai_credit_without_hold(
  p_account :"schema".ai_credit_account, p_hold :"schema".ai_credit_hold_state
) returns :"schema".ai_credit_account
language sql immutable as $$
  select row(p_account.user_id, p_account.total_credits - p_hold.pinned, p_account.used_credits,
    p_account.held_credits - case p_hold.state when 'open' then p_hold.credits_left else 0 end,
    p_account.spent_before, p_account.allocated, p_account.overdraft, p_account.seq, p_account.summed_seq, p_account.due_at,
    p_account.created_at,  p_account.updated_at, p_account.plan, p_account.plan_own, p_account.next_plan, p_account.renews_at, p_account.obstacle,
    p_account.settled)
$$;

-- A hold that the posting p_seq has closed.
create or replace function :"schema".ai_credit_closed_hold(
  p_hold :"schema".ai_credit_hold_state, p_state text, p_seq bigint, p_hash bytea
) returns :"schema".ai_credit_hold_state
language sql immutable as $$
  select row(p_hold.id, p_hold.user_id, p_hold.seq, p_state, 0::bigint, 0::bigint, p_hold.operation, p_hold.metadata, p_seq, p_hash,
    p_hold.budgets)
$$;

-- Turns a hold, or a part of it, into spending. p_credits null: all that is left. Beyond what the hold has it draws on
-- what is available; where that is short, p_shortfall 'partial' takes what is there, 'reject' refuses. A hold that has
-- lapsed gave back what it held, and is captured from what is available: the work was done. By usage, p_operation is what
-- the price was of.
--
-- Verdicts: as those of a deduct; 'closed' (another call has closed the hold); 'operation' (the hold has another one).
create or replace function :"schema".ai_credit_decide_capture(
  inout account :"schema".ai_credit_account, inout hold :"schema".ai_credit_hold_state, p_credits bigint, p_metadata jsonb,
  p_final boolean, p_shortfall text, p_idempotency_key text, p_operation varchar, p_price_version text, p_quantities jsonb,
  out record :"schema".ai_credit_record, out answer :"schema".ai_credit_answer
)
language plpgsql as $$
declare
  hash bytea := :"schema".ai_credit_hash(case when p_quantities is null
    then jsonb_build_array(p_credits, p_metadata, p_final, p_shortfall)
    else jsonb_build_array(p_operation, p_quantities, p_metadata, p_final, p_shortfall) end);
  available bigint := :"schema".ai_credit_available(account);
  required bigint := coalesce(p_credits, hold.credits_left);
  own bigint;     -- of those required, what the hold covers
  extra bigint;   -- and what it does not, so far as it can be spent
  pinned bigint;  -- of the own, what was kept from grants that have ended
  earlier bigint; -- the posting of a capture that was the same request, or had the same key
begin
  if p_operation <> hold.operation then
    answer.verdict := 'operation';
    return;
  end if;
  if p_idempotency_key is not null then
    select seq into earlier from :"schema".ai_credit_usage
    where user_id = account.user_id and kind = 'capture' and hold_id = hold.id and idempotency_key = p_idempotency_key
      and (idempotency_key is not null or :"schema".ai_credit_dear(idempotency_key::text));
  elsif hold.state = 'captured' and hold.closing_hash = hash then
    earlier := hold.closing_seq;
  end if;
  if earlier is not null then
    select case when request_hash = hash then 'replayed' else 'conflict' end,
      id, total_after, used_after, held_after, credits_used, uncollected, null::bigint
    into answer
    from :"schema".ai_credit_usage where user_id = account.user_id and seq = earlier;
    if found then
      return;
    end if;
  end if;

  own := case hold.state when 'open' then least(required, hold.credits_left) else 0 end;
  extra := least(required - own, greatest(0, :"schema".ai_credit_spendable(account)));
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
    if hold.state = 'open' then
      hold.credits_left := hold.credits_left - own;
      hold.pinned := hold.pinned - pinned;
    end if;
    if p_final or hold.state = 'lapsed' then
      account := :"schema".ai_credit_without_hold(account, hold);
      hold := :"schema".ai_credit_closed_hold(hold, 'captured'::text, account.seq + 1, hash);
    end if;
    account.seq := account.seq + 1;
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
    record.amount := :"schema".ai_credit_available(account) - available;
    record.uncollected := required - own - extra;
    record.price_version := p_price_version;
    record.quantities := p_quantities;
    record.budgets := hold.budgets;
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
  inout account :"schema".ai_credit_account, inout hold :"schema".ai_credit_hold_state, out answer :"schema".ai_credit_answer
)
language plpgsql as $$
declare
  available bigint := :"schema".ai_credit_available(account);
begin
  if hold.state = 'captured' then
    answer.verdict := 'closed';
    return;
  end if;
  answer.verdict := 'replayed';
  if hold.state = 'open' then
    answer.verdict := 'accepted';
    account := :"schema".ai_credit_without_hold(account, hold);
    hold := :"schema".ai_credit_closed_hold(hold, 'released'::text, account.seq + 1, null::bytea);
    account := :"schema".ai_credit_note(account, 'release'::text, account.updated_at,
      :"schema".ai_credit_available(account) - available, hold.id, null::jsonb);
  end if;
  select total_after, used_after, held_after, amount into answer.total, answer.used, answer.held, answer.credits
  from :"schema".ai_credit_events where user_id = account.user_id and seq = hold.closing_seq;
end
$$;

-- A hold of an account, as captures and releases are handed it.
create or replace function :"schema".ai_credit_hold_with_id(p_user_id varchar, p_hold_id bigint)
returns setof :"schema".ai_credit_hold_state
language sql stable as $$
  select id, user_id, seq, state, credits_left, pinned, operation, metadata, closing_seq, closing_hash, budgets
  from :"schema".ai_credit_holds where id = p_hold_id and user_id || '' = p_user_id
$$;

create or replace function :"schema".ai_credit_save_hold(p_hold :"schema".ai_credit_hold_state) returns void
language plpgsql as $$
begin
  update :"schema".ai_credit_holds
  set state = p_hold.state, credits_left = p_hold.credits_left, pinned = p_hold.pinned,
      closing_seq = p_hold.closing_seq, closing_hash = p_hold.closing_hash
  where user_id = p_hold.user_id and seq = p_hold.seq;
end
$$;

-- A capture that goes alone: see ai_credit_decide_capture. Verdicts besides: 'missing' (there is no such hold, or pruning
-- took it meanwhile), and the obstacles. counted as of a deduct.
create or replace function :"schema".ai_credit_capture(
  p_caller integer, p_hold_id bigint, p_user_id varchar, p_credits bigint, p_metadata jsonb, p_final boolean, p_shortfall varchar,
  p_idempotency_key varchar, p_operation varchar, p_price_version varchar, p_quantities jsonb,
  p_allowance jsonb, p_lock_timeout integer, p_tell boolean default false,
  out verdict varchar, out user_id varchar, out id bigint, out credits bigint, out uncollected bigint,
  out required bigint, out total bigint, out used bigint, out held bigint, out counted varchar, out settled varchar
)
security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off
language plpgsql as $$
#variable_conflict use_column
declare
  account :"schema".ai_credit_account;
  hold :"schema".ai_credit_hold_state;
  decided record;
  answer :"schema".ai_credit_answer;
begin
  ai_credit_capture.user_id := :"schema".ai_credit_hold_user(p_hold_id, p_user_id);
  if ai_credit_capture.user_id is null then
    verdict := 'missing';
    return;
  end if;
  account := :"schema".ai_credit_lock(ai_credit_capture.user_id, p_allowance, p_lock_timeout);
  settled := account.settled;
  verdict := account.obstacle;
  if verdict is not null then
    return;
  end if;
  select * into hold from :"schema".ai_credit_hold_with_id(account.user_id, p_hold_id);
  if hold.id is null then
    verdict := 'missing';
    return;
  end if;
  decided := :"schema".ai_credit_decide_capture(account, hold, p_credits, p_metadata, p_final, p_shortfall::text,
    p_idempotency_key::text, p_operation, p_price_version::text, p_quantities);
  answer := decided.answer;
  if answer.verdict = 'accepted' then
    if hold.budgets is not null then
      counted := :"schema".ai_credit_count_along(account, hold.budgets, false, answer.credits, account.seq + 1,
        :"schema".ai_credit_holding(decided.hold) - :"schema".ai_credit_holding(hold), hold.seq, p_tell);
    end if;
    perform :"schema".ai_credit_save_hold(decided.hold);
    perform :"schema".ai_credit_post(decided.account, decided.record);
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
comment on function :"schema".ai_credit_capture(
  integer, bigint, varchar, bigint, jsonb, boolean, varchar, varchar, varchar, varchar, jsonb, jsonb, integer, boolean
) is 'Turns a hold, or a part of it, into spending.';

-- A release that goes alone: see ai_credit_decide_release.
create or replace function :"schema".ai_credit_release(
  p_caller integer, p_hold_id bigint, p_user_id varchar, p_allowance jsonb, p_lock_timeout integer,
  out verdict varchar, out user_id varchar, out credits bigint, out total bigint, out used bigint, out held bigint,
  out settled varchar
)
security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off
language plpgsql as $$
declare
  account :"schema".ai_credit_account;
  hold :"schema".ai_credit_hold_state;
  decided record;
  answer :"schema".ai_credit_answer;
begin
  user_id := :"schema".ai_credit_hold_user(p_hold_id, p_user_id);
  if user_id is null then
    verdict := 'missing';
    return;
  end if;
  account := :"schema".ai_credit_lock(user_id, p_allowance, p_lock_timeout);
  settled := account.settled;
  verdict := account.obstacle;
  if verdict is not null then
    return;
  end if;
  select * into hold from :"schema".ai_credit_hold_with_id(account.user_id, p_hold_id);
  if hold.id is null then
    verdict := 'missing';
    return;
  end if;
  decided := :"schema".ai_credit_decide_release(account, hold);
  answer := decided.answer;
  if answer.verdict = 'accepted' then
    if hold.budgets is not null then
      perform :"schema".ai_credit_count_along(account, hold.budgets, false, 0::bigint, 0::bigint,
        - :"schema".ai_credit_holding(hold), hold.seq, false);
    end if;
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
comment on function :"schema".ai_credit_release(integer, bigint, varchar, jsonb, integer)
is 'Gives back what a hold has left.';

-- Lets an open hold live for p_ttl milliseconds from now, and no shorter than before. Verdicts: 'accepted', 'missing',
-- 'closed', and the obstacles.
create or replace function :"schema".ai_credit_extend(
  p_caller integer, p_hold_id bigint, p_user_id varchar, p_ttl integer, p_allowance jsonb, p_lock_timeout integer,
  out verdict varchar, out user_id varchar, out credits bigint, out expires_at varchar,
  out total bigint, out used bigint, out held bigint, out settled varchar
)
security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off
language plpgsql as $$
#variable_conflict use_column
declare
  account :"schema".ai_credit_account;
  hold record;
begin
  ai_credit_extend.user_id := :"schema".ai_credit_hold_user(p_hold_id, p_user_id);
  if ai_credit_extend.user_id is null then
    verdict := 'missing';
    return;
  end if;
  account := :"schema".ai_credit_lock(ai_credit_extend.user_id, p_allowance, p_lock_timeout);
  settled := account.settled;
  verdict := account.obstacle;
  if verdict is not null then
    return;
  end if;
  update :"schema".ai_credit_holds
  set expires_at = greatest(expires_at, account.updated_at + p_ttl * interval '1 millisecond')
  where user_id = account.user_id and id = p_hold_id and state = 'open'
  returning credits_left, expires_at into hold;
  verdict := case when found then 'accepted' else 'closed' end;
  credits := hold.credits_left;
  ai_credit_extend.expires_at := :"schema".ai_credit_iso(hold.expires_at);
  total := account.total_credits;
  used := account.used_credits;
  held := account.held_credits;
end
$$;
comment on function :"schema".ai_credit_extend(integer, bigint, varchar, integer, jsonb, integer)
is 'Lets an open hold live longer.';

-- What captures were for, each known by its hold, and by its usage record where it made one: a JSON array, in order, of
-- [operation, metadata, by how much it changed what is available].
create or replace function :"schema".ai_credit_captures(
  p_caller integer, p_hold_ids bigint[], p_record_ids bigint[], out captures varchar
)
security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off
language plpgsql stable as $$
declare
  operations jsonb := (select jsonb_object_agg(id, operation) from :"schema".ai_credit_holds where id = any(p_hold_ids));
  records jsonb := (
    select jsonb_object_agg(id, jsonb_build_array(metadata, amount)) from :"schema".ai_credit_usage where id = any(p_record_ids));
begin
  captures := (
    select json_agg(json_build_array(operations->(hold_id::text), records->(record_id::text)->0, records->(record_id::text)->1)
      order by place)
    from unnest(p_hold_ids, p_record_ids) with ordinality as asked (hold_id, record_id, place));
end
$$;
comment on function :"schema".ai_credit_captures(integer, bigint[], bigint[])
is 'Returns what captures were for, as listeners are told of it.';
