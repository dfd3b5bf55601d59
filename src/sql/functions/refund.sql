-- Refunds: spent credits given back.

-- Gives back the credits of the record p_record_id, or of the deduct with the key p_deduct_key. p_credits null: all that
-- was not given back before. Debt is paid first. Verdicts: 'accepted', 'replayed', 'conflict', 'missing' (there is no such
-- record), 'exceeds' (more than the record has left to give back), 'overflow' (the total would pass 2^53 - 1), and the
-- obstacles.
create or replace function :"schema".ai_credit_refund(
  p_caller integer, p_record_id bigint, p_user_id varchar, p_deduct_key varchar, p_credits bigint, p_reason varchar,
  p_idempotency_key varchar, p_allowance jsonb, p_time_zone varchar, p_lock_timeout integer,
  out verdict varchar, out user_id varchar, out usage_id bigint, out record_id bigint, out credits bigint,
  out total bigint, out used bigint, out held bigint
)
security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off
language plpgsql as $$
#variable_conflict use_column
declare
  account :"schema".ai_credits;
  original :"schema".ai_credit_usage;
  earlier :"schema".ai_credit_usage;
  record :"schema".ai_credit_usage;
  refundable bigint;
  debt bigint;
  in_period bigint; -- what was spent in this period is taken from used, the rest was spent before
begin
  if p_record_id is null then
    select * into original from :"schema".ai_credit_usage
    where user_id = p_user_id and kind = 'deduct' and idempotency_key = p_deduct_key;
  else
    select * into original from :"schema".ai_credit_usage
    where id = p_record_id and kind <> 'refund' and user_id = coalesce(p_user_id, user_id);
  end if;
  if not found then
    verdict := 'missing';
    return;
  end if;
  ai_credit_refund.user_id := original.user_id;
  usage_id := original.id;
  account := :"schema".ai_credit_lock(original.user_id, p_allowance, p_lock_timeout);
  if account.user_id is null or account.due_at <= account.updated_at then
    verdict := :"schema".ai_credit_obstacle(account, original.user_id);
    return;
  end if;
  if not exists (select from :"schema".ai_credit_usage where id = original.id) then -- pruned meanwhile
    verdict := 'missing';
    return;
  end if;

  record.request_hash := :"schema".ai_credit_hash(jsonb_build_array(original.id, p_credits, p_reason));
  if p_idempotency_key is not null then
    select * into earlier from :"schema".ai_credit_usage
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
    account.seq := account.seq + 1;
    record.kind := 'refund';
    record.credits_used := -credits;
    record.operation := original.operation;
    record.metadata := original.metadata;
    record.idempotency_key := p_idempotency_key;
    record.refunded_id := original.id;
    record.reason := p_reason;
    record_id := :"schema".ai_credit_post(account, record, p_time_zone);
  end if;
  total := account.total_credits;
  used := account.used_credits;
  held := account.held_credits;
end
$$;
