-- Deducts: credits spent now.

-- What an idempotency key of a deduct stands for: the credits, or where they were computed from quantities, those;
-- and the budget, where there is one.
create or replace function :"schema".ai_credit_deduct_hash(
  p_credits bigint, p_operation varchar, p_metadata jsonb, p_quantities jsonb, p_budget varchar
) returns bytea
language sql immutable as $$
  select :"schema".ai_credit_hash(case
    when p_quantities is null and p_budget is null then jsonb_build_array(p_credits, p_operation, p_metadata)
    when p_quantities is null then jsonb_build_array(p_credits, p_operation, p_metadata, p_budget)
    when p_budget is null then jsonb_build_array(p_operation, p_quantities, p_metadata)
    else jsonb_build_array(p_operation, p_quantities, p_metadata, p_budget) end)
$$;

-- What the key of a deduct was used for before: the verdict 'replayed' for the same request, 'conflict' for another one, with its
-- record, and the credits and the balance of then. No row: it was not used. PostgreSQL writes this query into those that name it.
create or replace function :"schema".ai_credit_earlier_deduct(p_user_id varchar, p_idempotency_key varchar, p_hash bytea)
returns table (verdict text, id bigint, credits bigint, total bigint, used bigint, held bigint)
language sql stable as $$
  select case when request_hash = p_hash then 'replayed' else 'conflict' end, id, credits_used, total_after, used_after, held_after
  from :"schema".ai_credit_usage
  where user_id = p_user_id and kind = 'deduct' and idempotency_key = p_idempotency_key
    and (idempotency_key is not null or :"schema".ai_credit_dear(idempotency_key::text))
$$;

-- What a charge comes to that has no earlier one with its key: 'missing' (there is no budget of this name, and no template for it),
-- 'insufficient', 'budget' (p_refusal says for which limit: see ai_credit_refusal) or 'accepted'. p_path: where it counts; null:
-- nowhere.
create or replace function :"schema".ai_credit_verdict(
  p_account :"schema".ai_credit_account, p_credits bigint, p_budget varchar, p_path varchar[], p_refusal text
) returns text
language sql immutable as $$
  select case
    when p_budget is not null and p_path is null then 'missing'
    when not :"schema".ai_credit_fits(p_account, p_credits) then 'insufficient'
    when p_refusal is not null then 'budget'
    else 'accepted' end
$$;

-- Spends credits; p_quantities: what they were computed from, by the prices p_price_version; p_budget: what they count in, null:
-- none. Verdicts: those of ai_credit_earlier_deduct; otherwise those of ai_credit_verdict, of which all but 'accepted' write nothing
-- but the account; and the obstacles. counted: with p_tell, the limits that have less left, see ai_credit_count.
create or replace function :"schema".ai_credit_deduct(
  p_caller integer, p_user_id varchar, p_credits bigint, p_operation varchar, p_metadata jsonb, p_idempotency_key varchar,
  p_price_version varchar, p_quantities jsonb, p_budget varchar, p_allowance jsonb, p_lock_timeout integer,
  p_tell boolean default false,
  out verdict varchar, out id bigint, out credits bigint, out total bigint, out used bigint, out held bigint,
  out refusal varchar, out counted varchar, out settled varchar
)
security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off
language plpgsql as $$
declare
  account :"schema".ai_credit_account := :"schema".ai_credit_lock(p_user_id, p_allowance, p_lock_timeout);
  record :"schema".ai_credit_record;
begin
  settled := account.settled;
  verdict := account.obstacle;
  if verdict is not null then
    return;
  end if;
  if p_idempotency_key is not null then
    record.request_hash := :"schema".ai_credit_deduct_hash(p_credits, p_operation, p_metadata, p_quantities, p_budget);
    select earlier.* into verdict, id, credits, total, used, held
    from :"schema".ai_credit_earlier_deduct(p_user_id, p_idempotency_key, record.request_hash) earlier;
    if found then
      return;
    end if;
  end if;

  if p_budget is not null then
    record.budgets := :"schema".ai_credit_path(p_user_id, p_budget);
    refusal := :"schema".ai_credit_refusal(account, record.budgets, p_credits, '{}'::bigint[], '{}'::bigint[]);
  end if;
  verdict := :"schema".ai_credit_verdict(account, p_credits, p_budget, record.budgets, refusal::text);
  if verdict = 'accepted' then
    if p_budget is not null then
      counted := :"schema".ai_credit_count_along(account, record.budgets, true, p_credits, account.seq + 1, 0::bigint, 0::bigint,
        p_tell);
    end if;
    account.used_credits := account.used_credits + p_credits;
    account.seq := account.seq + 1;
    record.kind := 'deduct';
    record.credits_used := p_credits;
    record.operation := p_operation;
    record.metadata := p_metadata;
    record.idempotency_key := p_idempotency_key;
    record.price_version := p_price_version;
    record.quantities := p_quantities;
    id := :"schema".ai_credit_post(account, record);
    credits := p_credits;
  end if;
  total := account.total_credits;
  used := account.used_credits;
  held := account.held_credits;
end
$$;
comment on function :"schema".ai_credit_deduct(
  integer, varchar, bigint, varchar, jsonb, varchar, varchar, jsonb, varchar, jsonb, integer, boolean
) is 'Spends credits of an account now.';

-- What ai_credit_deduct would say to a charge of an account at this moment. It is stable, so that all it reads is of one snapshot. It
-- names the functions by which a deduct decides, in the same order: a function of PL/pgSQL for both would take a thirtieth more of
-- PostgreSQL's time for a deduct that goes alone. A test holds the two together.
create or replace function :"schema".ai_credit_foresee_deduct(
  p_user_id varchar, p_credits bigint, p_operation varchar, p_metadata jsonb, p_idempotency_key varchar, p_quantities jsonb,
  p_budget varchar,
  out verdict varchar, out credits bigint, out total bigint, out used bigint, out held bigint, out refusal varchar
)
language plpgsql stable as $$
declare
  account :"schema".ai_credit_account;
  path varchar[];
begin
  if p_idempotency_key is not null then
    select earlier.verdict, earlier.credits, earlier.total, earlier.used, earlier.held into verdict, credits, total, used, held
    from :"schema".ai_credit_earlier_deduct(p_user_id, p_idempotency_key,
      :"schema".ai_credit_deduct_hash(p_credits, p_operation, p_metadata, p_quantities, p_budget)) earlier;
    if found then
      return;
    end if;
  end if;

  select user_id, total_credits, used_credits, held_credits, overdraft, seq, greatest(:"schema".ai_credit_now(), updated_at)
  into account.user_id, account.total_credits, account.used_credits, account.held_credits, account.overdraft, account.seq,
    account.updated_at
  from :"schema".ai_credits where user_id = p_user_id;
  if p_budget is not null then
    path := :"schema".ai_credit_path(p_user_id, p_budget);
    refusal := :"schema".ai_credit_refusal(account, path, p_credits, '{}'::bigint[], '{}'::bigint[]);
  end if;
  verdict := :"schema".ai_credit_verdict(account, p_credits, p_budget, path, refusal::text);
  credits := p_credits;
  total := account.total_credits;
  used := account.used_credits;
  held := account.held_credits;
end
$$;

-- Whether an account can pay a deduct. It waits for no charge in flight, and spends, counts and makes nothing: see
-- ai_credit_current. Verdicts: those of ai_credit_deduct, with the balance as it is, and in a replay the credits and the balance of
-- the record.
create or replace function :"schema".ai_credit_can_afford(
  p_caller integer, p_user_id varchar, p_credits bigint, p_operation varchar, p_metadata jsonb, p_idempotency_key varchar,
  p_quantities jsonb, p_budget varchar, p_allowance jsonb, p_lock_timeout integer,
  out verdict varchar, out credits bigint, out total bigint, out used bigint, out held bigint, out refusal varchar,
  out settled varchar
)
security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off
language plpgsql as $$
declare
  current :"schema".ai_credit_account := :"schema".ai_credit_current(p_user_id, p_allowance, p_lock_timeout);
begin
  settled := current.settled;
  verdict := current.obstacle;
  if verdict is not null then
    return;
  end if;
  select foreseen.verdict, foreseen.credits, foreseen.total, foreseen.used, foreseen.held, foreseen.refusal
  into verdict, credits, total, used, held, refusal
  from :"schema".ai_credit_foresee_deduct(
    p_user_id, p_credits, p_operation, p_metadata, p_idempotency_key, p_quantities, p_budget) foreseen;
end
$$;
comment on function :"schema".ai_credit_can_afford(
  integer, varchar, bigint, varchar, jsonb, varchar, jsonb, varchar, jsonb, integer
) is 'Says whether an account can pay a deduct, and spends nothing.';
