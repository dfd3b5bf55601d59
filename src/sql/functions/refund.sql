-- Refunds: spent credits given back.

-- Gives back the credits of the record p_record_id, or of the deduct with the key p_deduct_key. p_credits null: all that
-- was not given back before. Debt is paid first. Verdicts: 'accepted', 'replayed', 'conflict', 'missing' (there is no such
-- record), 'exceeds' (more than the record has left to give back), 'overflow' (the total would pass 2^53 - 1), and the
-- obstacles.
create or replace function :"schema".ai_credit_refund(
  p_caller integer, p_record_id bigint, p_user_id varchar, p_deduct_key varchar, p_credits bigint, p_reason varchar,
  p_idempotency_key varchar, p_allowance jsonb, p_lock_timeout integer,
  out verdict varchar, out user_id varchar, out usage_id bigint, out record_id bigint, out credits bigint,
  out total bigint, out used bigint, out held bigint, out settled varchar
)
security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off
language plpgsql as $$
#variable_conflict use_column
declare
  account :"schema".ai_credit_account;
  original record;
  record :"schema".ai_credit_record;
  refundable bigint;
  debt bigint;
  in_period bigint; -- what was spent in this period is taken from used, the rest was spent before
begin
  if p_record_id is null then
    select id, user_id, seq, credits_used, operation, metadata, budgets into original from :"schema".ai_credit_usage
    where user_id = p_user_id and kind = 'deduct' and idempotency_key = p_deduct_key
      and (idempotency_key is not null or :"schema".ai_credit_dear(idempotency_key::text));
  else
    select id, user_id, seq, credits_used, operation, metadata, budgets into original from :"schema".ai_credit_usage
    where id = p_record_id and kind <> 'refund' and user_id = coalesce(p_user_id, user_id);
  end if;
  if not found then
    verdict := 'missing';
    return;
  end if;
  ai_credit_refund.user_id := original.user_id;
  usage_id := original.id;
  account := :"schema".ai_credit_lock(original.user_id, p_allowance, p_lock_timeout);
  settled := account.settled;
  verdict := account.obstacle;
  if verdict is not null then
    return;
  end if;
  if not exists (select from :"schema".ai_credit_usage where id = original.id and user_id || '' = original.user_id) then -- pruned meanwhile
    verdict := 'missing';
    return;
  end if;

  record.request_hash := :"schema".ai_credit_hash(jsonb_build_array(original.id, p_credits, p_reason));
  if p_idempotency_key is not null then
    select case when request_hash = record.request_hash then 'replayed' else 'conflict' end,
      id, -credits_used, total_after, used_after, held_after
    into verdict, record_id, credits, total, used, held
    from :"schema".ai_credit_usage
    where user_id = account.user_id and kind = 'refund' and idempotency_key = p_idempotency_key
      and (idempotency_key is not null or :"schema".ai_credit_dear(idempotency_key::text));
    if found then
      return;
    end if;
  end if;

  select original.credits_used + coalesce(sum(credits_used), 0) into refundable
  from :"schema".ai_credit_usage where user_id = account.user_id and refunded_id = original.id;
  credits := coalesce(p_credits, refundable);
  in_period := least(credits, greatest(0, account.used_credits));
  if credits > refundable or credits = 0 then
    verdict := 'exceeds';
  elsif credits - in_period > :"schema".ai_credit_room(account) then
    verdict := 'overflow';
  else
    verdict := 'accepted';
    account := :"schema".ai_credit_allocate(account);
    debt := account.spent_before + account.used_credits - account.allocated;
    account.used_credits := account.used_credits - in_period;
    account.spent_before := account.spent_before - (credits - in_period);
    account.total_credits := account.total_credits + (credits - in_period);
    if credits > debt then
      account := :"schema".ai_credit_give_back(account, credits - debt);
    end if;
    if original.budgets is not null then
      perform :"schema".ai_credit_count_along(account, original.budgets, false, -credits, original.seq, 0::bigint, 0::bigint,
        false);
    end if;
    account.seq := account.seq + 1;
    record.kind := 'refund';
    record.credits_used := -credits;
    record.operation := original.operation;
    record.metadata := original.metadata;
    record.idempotency_key := p_idempotency_key;
    record.refunded_id := original.id;
    record.reason := p_reason;
    record.budgets := original.budgets;
    record_id := :"schema".ai_credit_post(account, record);
  end if;
  total := account.total_credits;
  used := account.used_credits;
  held := account.held_credits;
end
$$;
comment on function :"schema".ai_credit_refund(
  integer, bigint, varchar, varchar, bigint, varchar, varchar, jsonb, integer
) is 'Gives back credits of a usage record.';
