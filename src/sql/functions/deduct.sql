-- Deducts: credits spent now.

-- What an idempotency key of a deduct stands for: the credits, or where they were computed from quantities, those.
create or replace function :"schema".ai_credit_deduct_hash(p_credits bigint, p_operation varchar, p_metadata jsonb, p_quantities jsonb)
returns bytea
language sql immutable
return :"schema".ai_credit_hash(case when p_quantities is null
  then jsonb_build_array(p_credits, p_operation, p_metadata)
  else jsonb_build_array(p_operation, p_quantities, p_metadata) end);

-- Whether an account can pay so many credits. What costs nothing is never refused.
create or replace function :"schema".ai_credit_fits(p_account :"schema".ai_credits, p_credits bigint) returns boolean
language sql immutable
return p_credits = 0 or p_credits <=
  p_account.total_credits - p_account.used_credits - p_account.held_credits + p_account.overdraft;

-- Spends credits; p_quantities: what they were computed from, by the prices p_price_version. Verdicts: 'accepted';
-- 'replayed' (the key was used for the same request: its record, and the credits and the balance of then); 'conflict' (the
-- key was used for another request); 'insufficient' (nothing is written but the account); and the obstacles.
create or replace function :"schema".ai_credit_deduct(
  p_caller integer, p_user_id varchar, p_credits bigint, p_operation varchar, p_metadata jsonb, p_idempotency_key varchar,
  p_price_version varchar, p_quantities jsonb, p_allowance jsonb, p_time_zone varchar, p_lock_timeout integer,
  out verdict varchar, out id bigint, out credits bigint, out total bigint, out used bigint, out held bigint
)
security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off
language plpgsql as $$
#variable_conflict use_column
declare
  account :"schema".ai_credits := :"schema".ai_credit_lock(p_user_id, p_allowance, p_lock_timeout);
  record :"schema".ai_credit_usage;
  earlier :"schema".ai_credit_usage;
begin
  if account.user_id is null or account.due_at <= account.updated_at then
    verdict := :"schema".ai_credit_obstacle(account, p_user_id);
    return;
  end if;
  record.kind := 'deduct';
  record.credits_used := p_credits;
  record.operation := p_operation;
  record.metadata := p_metadata;
  record.price_version := p_price_version;
  record.quantities := p_quantities;
  if p_idempotency_key is not null then
    record.idempotency_key := p_idempotency_key;
    record.request_hash := :"schema".ai_credit_deduct_hash(p_credits, p_operation, p_metadata, p_quantities);
    select * into earlier from :"schema".ai_credit_usage
    where user_id = p_user_id and kind = 'deduct' and idempotency_key = p_idempotency_key;
    if found then
      verdict := case when earlier.request_hash = record.request_hash then 'replayed' else 'conflict' end;
      id := earlier.id;
      credits := earlier.credits_used;
      total := earlier.total_after;
      used := earlier.used_after;
      held := earlier.held_after;
      return;
    end if;
  end if;

  if :"schema".ai_credit_fits(account, p_credits) then
    verdict := 'accepted';
    account.used_credits := account.used_credits + p_credits;
    account.seq := account.seq + 1;
    id := :"schema".ai_credit_post(account, record, p_time_zone);
    credits := p_credits;
  else
    verdict := 'insufficient';
  end if;
  total := account.total_credits;
  used := account.used_credits;
  held := account.held_credits;
end
$$;
