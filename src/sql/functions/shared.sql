-- Calls that share a statement (group commit).

-- The number that stands for a verdict in what ai_credit_execute returns; the library has the same list. Where the verdict is
-- a literal, PostgreSQL works the number out when it plans.
create or replace function :"schema".ai_credit_number(p_verdict text) returns bigint
language sql immutable as $$
  select case p_verdict when 'busy' then 0 when 'accepted' then 1 when 'replayed' then 2 when 'conflict' then 3
    when 'insufficient' then 4 when 'missing' then 5 when 'closed' then 6 when 'operation' then 7 when 'new' then 8
    when 'settling' then 9 when 'budget' then 10 end
$$;

-- What a capture or a release is told, in numbers: the verdict and the rest in their order.
create or replace function :"schema".ai_credit_numbers(p_answer :"schema".ai_credit_answer) returns bigint[]
language sql immutable as $$
  select array[:"schema".ai_credit_number((p_answer).verdict),
    coalesce((p_answer).id, 0), coalesce((p_answer).total, 0), coalesce((p_answer).used, 0), coalesce((p_answer).held, 0),
    coalesce((p_answer).credits, 0), coalesce((p_answer).uncollected, 0), coalesce((p_answer).required, 0)]
$$;

-- Locks those accounts that are free, and returns each at its place; null: it is locked elsewhere, or missing. See ai_credit_lock.
create or replace function :"schema".ai_credit_lock_free(p_user_ids varchar[]) returns :"schema".ai_credit_account[]
language plpgsql as $$
declare
  free record;
  accounts :"schema".ai_credit_account[] := array_fill(cast(null as :"schema".ai_credit_account), array[cardinality(p_user_ids)]);
begin
  for free in
    select given.place, cast(row(locked.*, null::text, null::text) as :"schema".ai_credit_account) as account
    from unnest(p_user_ids) with ordinality as given (user_id, place),
      lateral (
        select user_id, total_credits, used_credits, held_credits, spent_before, allocated, overdraft, seq,
          coalesce(summed_seq, seq), due_at, created_at, greatest(:"schema".ai_credit_now(), updated_at), plan, plan_own, next_plan, renews_at
        from :"schema".ai_credits where user_id = given.user_id for no key update skip locked
      ) locked
  loop
    accounts[free.place] := free.account;
  end loop;
  return accounts;
end
$$;

-- How a call is answered whose key was used before.
create or replace function :"schema".ai_credit_earlier_answer(
  p_is_same boolean, p_id bigint, p_total bigint, p_used bigint, p_held bigint, p_more bigint[]
) returns bigint[]
language sql immutable as $$
  select array[case when p_is_same then :"schema".ai_credit_number('replayed'::text) else :"schema".ai_credit_number('conflict'::text) end,
    p_id, p_total, p_used, p_held] || p_more
$$;

-- What the key of a deduct was used for before, as a call of a shared statement is answered.
create or replace function :"schema".ai_credit_answered_deduct(p_user_id varchar, p_key text, p_hash bytea, p_is_priced boolean)
returns table (numbers bigint[])
language sql stable as $$
  select :"schema".ai_credit_earlier_answer(request_hash = p_hash, id, total_after, used_after, held_after,
    case when p_is_priced then array[credits_used] end)
  from :"schema".ai_credit_usage
  where user_id = p_user_id and kind = 'deduct' and idempotency_key = p_key
    and (idempotency_key is not null or :"schema".ai_credit_dear(idempotency_key::text))
$$;

-- The same of a hold.
create or replace function :"schema".ai_credit_answered_hold(p_user_id varchar, p_key text, p_hash bytea)
returns table (numbers bigint[])
language sql stable as $$
  select :"schema".ai_credit_earlier_answer(request_hash = p_hash, id, total_after, used_after, held_after,
    array[floor(extract(epoch from created_at) * 1000)::bigint + ttl])
  from :"schema".ai_credit_holds
  where user_id = p_user_id and idempotency_key = p_key
    and (idempotency_key is not null or :"schema".ai_credit_dear(idempotency_key))
$$;

-- The calls of a shared statement, each with the hash of its request, and with what is known of it: earlier, how it is answered if
-- its key was used before; hold, the hold of a capture or a release. The loop that reads them needs one plan for all.
create or replace function :"schema".ai_credit_read_calls(p_user_ids varchar[], p_calls jsonb)
returns table (place integer, kind text, key text, credits bigint, operation varchar, metadata jsonb, detail bigint, quantities jsonb,
  budget varchar, c jsonb, hash bytea, earlier bigint[], hold :"schema".ai_credit_hold_state)
language sql stable as $$
  select place, kind, key, credits, operation, metadata, detail, quantities, budget, c, hash,
    case when key is null then null
      when kind in ('deduct', 'priced') then (
        select numbers from :"schema".ai_credit_answered_deduct(user_id, key, hash, kind = 'priced'))
      when kind = 'hold' then (select numbers from :"schema".ai_credit_answered_hold(user_id, key, hash)) end,
    case when kind in ('capture', 'release') then (
      select found from :"schema".ai_credit_hold_with_id(user_id, detail) found) end
  from (
    select given.*, case when key is not null then case
      when kind in ('deduct', 'priced') then :"schema".ai_credit_deduct_hash(credits, operation, metadata, quantities, budget)
      when kind = 'hold' then :"schema".ai_credit_hold_hash(credits, operation, metadata, detail, budget) end end as hash
    from (
      select (c->0)::integer as place, p_user_ids[(c->0)::integer] as user_id, c->>1 as kind,
        c->>2 as key, (c->>3)::bigint as credits, (c->>4)::varchar as operation, c->5 as metadata,
        (c->>6)::bigint as detail, nullif(c->8, 'null') as quantities, (c->>11)::varchar as budget, c, nth
      from jsonb_array_elements(p_calls) with ordinality as call (c, nth)
      offset 0 -- see 'For the planner' in README.md
    ) given
    offset 0
  ) hashed
$$;

-- Runs calls on the accounts p_user_ids, of which p_user_id is one, those on one account side by side and in order. Each is a JSON
-- array that begins with the account's place in p_user_ids:
--   [place, 'deduct', key, credits, operation, metadata]
--   [place, 'priced', key, credits, operation, metadata, null, price version, quantities]
--   [place, 'hold', key, credits, operation, metadata, milliseconds to live]
--   [place, 'capture', key, credits, operation, metadata, hold, final, shortfall, price version, quantities]
--   [place, 'release', null, null, null, null, hold]
-- A deduct or a hold that counts in a budget has the budget's name as its element 11, after nulls.
-- No two calls on one account may have the same key or the same hold.
--
-- All accounts are locked first, and one with an obstacle is left out. It waits for none of them if p_lock_timeout is null.
-- Otherwise it waits for so many milliseconds. With p_create it creates the accounts that are missing, and waits for others that
-- are creating them. Without, it is about one account, and waits for that: two statements that wait for several accounts could
-- wait for each other.
--
-- answers are numbers: for each call
-- that of the verdict (see ai_credit_number; where the account is left out, that of its obstacle, and nothing more), then id,
-- total, used and held, then of a hold when it expires (in milliseconds), of a deduct by prices the credits, of a capture or
-- a release credits, uncollected and required. 0 stands for none. refusals: of each call with the verdict 'budget', in order, the
-- limit for which it was refused, as a JSON array of texts: see ai_credit_refusal. counted: with p_tell, the limits that have less left
-- after all calls than before them: see ai_credit_count.
--
-- Long and flat for a reason: a call of another function costs a tenth of a deduct. One plan serves all calls: see 'For the
-- planner' in README.md.
create or replace function :"schema".ai_credit_execute(
  p_caller integer, p_user_id varchar, p_user_ids varchar[], p_calls jsonb, p_allowance jsonb, p_create boolean,
  p_lock_timeout integer, p_tell boolean default false,
  out answers varchar, out refusals varchar, out counted varchar, out settled varchar
)
security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off set plan_cache_mode = force_generic_plan
language plpgsql as $$
declare
  accounts :"schema".ai_credit_account[] := array_fill(cast(null as :"schema".ai_credit_account), array[cardinality(p_user_ids)]);
  account :"schema".ai_credit_account;
  seqs bigint[]; -- of the accounts, before the calls
  place integer := 0;
  call record;
  decided record;
  record :"schema".ai_credit_record;
  records :"schema".ai_credit_record[] := '{}';
  hold :"schema".ai_credit_new_hold;
  holds :"schema".ai_credit_new_hold[] := '{}';
  changed :"schema".ai_credit_hold_state[] := '{}';
  number bigint;
  told bigint[];
  numbers bigint[] := '{}';
  counting :"schema".ai_credit_counting[]; -- what counts in budgets, by places; null: no call has a budget yet
  own :"schema".ai_credit_counting; -- that of the present account, without these three; more_used null: it has none yet
  more_used bigint[];
  more_held bigint[];
  begun_seqs bigint[];       -- of new budgets alone
  are_new boolean := false;  -- whether any budget is yet to be made
  wanted varchar[];          -- the budgets that a call counts in, from its own upwards
  path integer[];            -- their positions, without those that are gone; null: there are none
  parents integer[];         -- by positions, that of the budget above, once it is known
  level integer;
  position integer;
  parent integer;
  below integer;
  kept record;
  exceeds boolean := false;  -- whether a budget on the path has less left
  refused text[] := '{}';
begin
  if p_create then
    perform :"schema".ai_credit_create_accounts(p_user_ids, p_allowance, p_lock_timeout);
  end if;
  if cardinality(p_user_ids) > 1 then
    accounts := :"schema".ai_credit_lock_free(p_user_ids); -- the others one by one
  end if;
  for place in 1..cardinality(p_user_ids) loop
    account := accounts[place];
    if account.user_id is null then
      account := :"schema".ai_credit_lock(p_user_ids[place], p_allowance, case when not p_create then p_lock_timeout end);
      accounts[place] := account;
    elsif account.due_at <= account.updated_at then
      account := :"schema".ai_credit_do_due(account, p_allowance, p_lock_timeout);
      accounts[place] := account;
    end if;
    seqs[place] := account.seq;
    if account.settled is not null then
      settled := concat_ws(',', settled, account.settled);
    end if;
  end loop;

  for call in
    select * from :"schema".ai_credit_read_calls(p_user_ids, p_calls)
  loop
    if place <> call.place then
      if place > 0 then
        accounts[place] := account;
        if more_used is not null then
          counting[place] := :"schema".ai_credit_with_counts(own, more_used, more_held, begun_seqs);
        end if;
      end if;
      place := call.place;
      account := accounts[place];
      record.user_id := account.user_id;
      record.created_at := account.updated_at;
      more_used := null;
    end if;

    if account.obstacle is not null then
      numbers := array_append(numbers, :"schema".ai_credit_number(account.obstacle));
      continue;
    end if;

    if counting is not null then
      path := null;
      exceeds := false;
      record.budgets := null;
    end if;
    if call.budget is not null or (call.hold).budgets is not null then
      if counting is null then
        counting := :"schema".ai_credit_read_budgets(accounts, p_calls);
      end if;
      if more_used is null then
        own := counting[place];
        more_used := array_fill(0::bigint, array[coalesce(cardinality(own.budgets), 0)]);
        more_held := more_used;
        begun_seqs := '{}';
        parents := '{}';
      end if;

      -- Of a call on a hold, those that the hold counts in; of a charge, its own and those above it. What is not read yet is read here.
      wanted := coalesce((call.hold).budgets, array[call.budget]);
      parent := null;
      below := null;
      level := 0;
      while level < cardinality(wanted) loop
        level := level + 1;
        position := coalesce(parent, array_position(own.budgets, wanted[level]));
        if position is null then
          select * into kept
          from :"schema".ai_credit_find_budget(account.user_id, wanted[level], call.budget is not null);
          continue when not found;
          are_new := are_new or kept.is_new;
          own.budgets := array_append(own.budgets, wanted[level]);
          own.withins := array_append(own.withins, kept.within);
          own.made_seqs := array_append(own.made_seqs, case when not kept.is_new then kept.made_seq end);
          own.room := array_append(own.room,
            :"schema".ai_credit_budget_room(kept.held, kept.day, kept.week, kept.month, kept.total, account.updated_at));
          more_used := array_append(more_used, 0::bigint);
          more_held := array_append(more_held, 0::bigint);
          position := cardinality(own.budgets);
        end if;
        if parent is null and below is not null then
          parents[below] := position;
        end if;
        path := array_append(path, position);
        exceeds := exceeds
          or :"schema".ai_credit_exceeds(call.credits, own.room[position] - more_used[position] - more_held[position]);
        if call.budget is not null and own.withins[position] is not null then
          wanted := array_append(wanted, own.withins[position]);
          below := position;
          parent := parents[position];
        end if;
      end loop;
      if call.budget is not null then
        record.budgets := wanted;
      end if;
    end if;

    if call.kind = 'capture' or call.kind = 'release' then
      if (call.hold).user_id is distinct from account.user_id then
        told := array[:"schema".ai_credit_number('missing'::text), 0, 0, 0, 0, 0, 0, 0];
      elsif call.kind = 'capture' then
        decided := :"schema".ai_credit_decide_capture(account, call.hold, call.credits, nullif(call.metadata, 'null'),
          (call.c->>7)::boolean, call.c->>8, call.key, call.operation, call.c->>9, call.c->10);
        told := :"schema".ai_credit_numbers(decided.answer);
        if told[1] = :"schema".ai_credit_number('accepted'::text) then
          records := array_append(records, decided.record);
        end if;
      else
        decided := :"schema".ai_credit_decide_release(account, call.hold);
        told := :"schema".ai_credit_numbers(decided.answer);
      end if;
      if told[1] = :"schema".ai_credit_number('accepted'::text) then
        foreach position in array coalesce(path, '{}') loop
          if begun_seqs[position] is not null or own.made_seqs[position] is not null then
            more_used[position] := more_used[position] + case call.kind when 'capture' then (decided.answer).credits else 0 end;
            if (call.hold).seq > own.made_seqs[position] then
              more_held[position] := more_held[position]
                + :"schema".ai_credit_holding(decided.hold) - :"schema".ai_credit_holding(call.hold);
            end if;
          end if;
        end loop;
        account := decided.account;
        changed := array_append(changed, decided.hold);
      end if;
      foreach number in array told loop
        numbers := array_append(numbers, number);
      end loop;

    elsif call.earlier is not null then
      foreach number in array call.earlier loop
        numbers := array_append(numbers, number);
      end loop;
      continue;

    elsif call.budget is not null and path is null then
      numbers := array_append(numbers, :"schema".ai_credit_number('missing'::text));
      numbers := array_append(numbers, 0::bigint);

    elsif not :"schema".ai_credit_fits(account, call.credits) then
      numbers := array_append(numbers, :"schema".ai_credit_number('insufficient'::text));
      numbers := array_append(numbers, 0::bigint);

    elsif exceeds then
      refused := array_append(refused, :"schema".ai_credit_refusal(account, record.budgets, call.credits,
        array(select more_used[step] from unnest(path) step), array(select more_held[step] from unnest(path) step)));
      numbers := array_append(numbers, :"schema".ai_credit_number('budget'::text));
      numbers := array_append(numbers, 0::bigint);

    elsif call.kind = 'deduct' or call.kind = 'priced' then
      if path is not null then
        foreach position in array path loop
          more_used[position] := more_used[position] + call.credits;
        end loop;
        if own.made_seqs[path[1]] is null and begun_seqs[path[1]] is null then
          begun_seqs[path[1]] := account.seq;
        end if;
      end if;
      account.used_credits := account.used_credits + call.credits;
      account.seq := account.seq + 1;
      record.id := nextval(':"schema".ai_credit_usage_id_seq');
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
      record.quantities := call.quantities;
      records := array_append(records, record);
      numbers := array_append(numbers, :"schema".ai_credit_number('accepted'::text));
      numbers := array_append(numbers, record.id);

    else
      if path is not null then
        foreach position in array path loop
          more_held[position] := more_held[position] + call.credits;
        end loop;
        if own.made_seqs[path[1]] is null and begun_seqs[path[1]] is null then
          begun_seqs[path[1]] := account.seq;
        end if;
      end if;
      account.held_credits := account.held_credits + call.credits;
      account.seq := account.seq + 1;
      hold.id := nextval(':"schema".ai_credit_holds_id_seq');
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
      hold.budgets := record.budgets;
      account.due_at := least(account.due_at, hold.expires_at);
      holds := array_append(holds, hold);
      numbers := array_append(numbers, :"schema".ai_credit_number('accepted'::text));
      numbers := array_append(numbers, hold.id);
    end if;

    continue when call.kind = 'capture' or call.kind = 'release';

    numbers := array_append(numbers, account.total_credits);
    numbers := array_append(numbers, account.used_credits);
    numbers := array_append(numbers, account.held_credits);
    if call.kind = 'hold' then
      numbers := array_append(numbers, floor(extract(epoch from account.updated_at) * 1000)::bigint + call.detail);
    elsif call.kind = 'priced' then
      numbers := array_append(numbers, call.credits);
    end if;
  end loop;

  if place > 0 then
    accounts[place] := account;
    if more_used is not null then
      counting[place] := :"schema".ai_credit_with_counts(own, more_used, more_held, begun_seqs);
    end if;
  end if;
  perform :"schema".ai_credit_post_all(accounts, seqs, records, holds, changed);
  if counting is not null then
    counted := :"schema".ai_credit_count_all(counting, are_new, p_tell);
    refusals := to_json(refused);
  end if;
  answers := numbers::varchar;
end
$$;
comment on function :"schema".ai_credit_execute(integer, varchar, varchar[], jsonb, jsonb, boolean, integer, boolean)
is 'Runs deducts, holds, captures and releases on several accounts as one statement.';
