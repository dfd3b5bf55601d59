-- Calls that share a statement (group commit).

-- What a capture or a release is told, in numbers: the verdict (see ai_credit_execute) and the rest in their order.
create or replace function :"schema".ai_credit_numbers(p_answer :"schema".ai_credit_answer) returns bigint[]
language sql immutable
return array[
  case (p_answer).verdict when 'accepted' then 1 when 'replayed' then 2 when 'conflict' then 3 when 'insufficient' then 4
    when 'operation' then 7 else 6 end,
  coalesce((p_answer).id, 0), coalesce((p_answer).total, 0), coalesce((p_answer).used, 0), coalesce((p_answer).held, 0),
  coalesce((p_answer).credits, 0), coalesce((p_answer).uncollected, 0), coalesce((p_answer).required, 0)];

-- Runs calls on the accounts p_user_ids, those on one account side by side and in order. Each is a JSON array that begins
-- with the account's place in p_user_ids:
--   [place, 'deduct', key, credits, operation, metadata]
--   [place, 'priced', key, credits, operation, metadata, null, price version, quantities]
--   [place, 'hold', key, credits, operation, metadata, milliseconds to live]
--   [place, 'capture', key, credits, operation, metadata, hold, final, shortfall, price version, quantities]
--   [place, 'release', null, null, null, null, hold]
-- No two calls on one account may have the same key or the same hold.
--
-- It waits for no account: all are locked first, and one with an obstacle is left out. Returned are numbers: for each call
-- the verdict (1 accepted, 2 replayed, 3 conflict, 4 insufficient, 5 missing, 6 closed, 7 operation; or where the account
-- is left out 0 busy, 8 new, 9 settling, and nothing more), then id, total, used and held, then of a hold when it expires
-- (in milliseconds), of a deduct by prices the credits, of a capture or a release credits, uncollected and required. 0
-- stands for none.
--
-- Long and flat for a reason: a call of another function costs a tenth of a deduct. One plan serves all calls, as
-- PostgreSQL would plan anew for each array.
create or replace function :"schema".ai_credit_execute(
  p_caller integer, p_user_ids varchar[], p_calls jsonb, p_allowance jsonb, p_time_zone varchar, out answers varchar
)
security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off set plan_cache_mode = force_generic_plan
language plpgsql as $$
declare
  user_id varchar;
  accounts :"schema".ai_credits[] := '{}';
  obstacles bigint[]; -- by place, as verdicts
  account :"schema".ai_credits;
  place integer := 0;
  call record;
  decided record;
  record :"schema".ai_credit_usage;
  records :"schema".ai_credit_usage[] := '{}';
  hold :"schema".ai_credit_holds;
  holds :"schema".ai_credit_holds[] := '{}';
  changed :"schema".ai_credit_holds[] := '{}';
  number bigint;
  told bigint[];
  numbers bigint[] := '{}';
begin
  foreach user_id in array p_user_ids loop
    account := :"schema".ai_credit_lock(user_id, p_allowance, null::integer);
    accounts := array_append(accounts, account);
    if account.user_id is null or account.due_at <= account.updated_at then
      obstacles[cardinality(accounts)] := case :"schema".ai_credit_obstacle(account, user_id)
        when 'new' then 8 when 'settling' then 9 else 0 end;
    end if;
  end loop;

  for call in
    select given.*,
      case when key is not null then case
        when kind in ('deduct', 'priced') then :"schema".ai_credit_deduct_hash(credits, operation, metadata, quantities)
        when kind = 'hold' then :"schema".ai_credit_hold_hash(credits, operation, metadata, detail) end end as hash,
      -- what the key was used for before, and how that is answered
      case when key is null then null
        when kind in ('deduct', 'priced') then (
          select array[case when request_hash = :"schema".ai_credit_deduct_hash(
            given.credits, given.operation, given.metadata, given.quantities) then 2 else 3 end,
            id, total_after, used_after, held_after] || case given.kind when 'priced' then array[credits_used] end
          from :"schema".ai_credit_usage spent
          where spent.user_id = given.user_id and spent.kind = 'deduct' and idempotency_key = given.key)
        when kind = 'hold' then (
          select array[case when request_hash = :"schema".ai_credit_hold_hash(
            given.credits, given.operation, given.metadata, given.detail) then 2 else 3 end,
            id, total_after, used_after, held_after, floor(extract(epoch from created_at) * 1000)::bigint + ttl]
          from :"schema".ai_credit_holds made
          where made.user_id = given.user_id and idempotency_key = given.key) end as earlier,
      case when kind in ('capture', 'release') then (
        select made from :"schema".ai_credit_holds made where id = given.detail) end as hold
    from (
      select (c->0)::integer as place, p_user_ids[(c->0)::integer] as user_id, (c->>1)::varchar as kind,
        (c->>2)::varchar as key, (c->>3)::bigint as credits, (c->>4)::varchar as operation, c->5 as metadata,
        (c->>6)::bigint as detail, c->8 as quantities, c
      from jsonb_array_elements(p_calls) c
      offset 0 -- so that the conditions above are plain: otherwise they count as dear, and the wrong index seems cheaper
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

    if account.user_id is null or account.due_at <= account.updated_at then
      numbers := array_append(numbers, obstacles[place]);
      continue;

    elsif call.kind = 'capture' or call.kind = 'release' then
      if (call.hold).user_id is distinct from account.user_id then
        told := array[5, 0, 0, 0, 0, 0, 0, 0];
      elsif call.kind = 'capture' then
        decided := :"schema".ai_credit_decide_capture(account, call.hold, call.credits, nullif(call.metadata, 'null'),
          (call.c->>7)::boolean, (call.c->>8)::varchar, call.key, call.operation, (call.c->>9)::varchar, call.c->10);
        told := :"schema".ai_credit_numbers(decided.answer);
        if told[1] = 1 then
          records := array_append(records, decided.record);
        end if;
      else
        decided := :"schema".ai_credit_decide_release(account, call.hold);
        told := :"schema".ai_credit_numbers(decided.answer);
      end if;
      if told[1] = 1 then
        account := decided.account;
        changed := array_append(changed, decided.hold);
      end if;
      foreach number in array told loop
        numbers := array_append(numbers, number);
      end loop;
      continue;

    elsif call.earlier is not null then
      foreach number in array call.earlier loop
        numbers := array_append(numbers, number);
      end loop;
      continue;

    elsif not :"schema".ai_credit_fits(account, call.credits) then
      numbers := array_append(numbers, 4::bigint);
      numbers := array_append(numbers, 0::bigint);

    elsif call.kind = 'deduct' or call.kind = 'priced' then
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
      numbers := array_append(numbers, 1::bigint);
      numbers := array_append(numbers, record.id);

    else
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
      account.due_at := least(account.due_at, hold.expires_at);
      holds := array_append(holds, hold);
      numbers := array_append(numbers, 1::bigint);
      numbers := array_append(numbers, hold.id);
    end if;

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
  end if;
  perform :"schema".ai_credit_post_all(accounts, records, holds, changed, p_time_zone);
  answers := numbers::varchar;
end
$$;
