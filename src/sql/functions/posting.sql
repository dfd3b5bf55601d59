-- Writing what a call came to: usage records with their daily usage, and the events that have no row elsewhere.

-- Takes the account's next seq for an event at p_at.
create or replace function :"schema".ai_credit_note(
  inout account :"schema".ai_credit_account, p_kind text, p_at timestamptz, p_amount bigint, p_reference_id bigint, p_details jsonb
)
language plpgsql as $$
begin
  account.seq := account.seq + 1;
  insert into :"schema".ai_credit_events
    (user_id, seq, kind, created_at, amount, reference_id, details, total_after, used_after, held_after)
  values (account.user_id, account.seq, p_kind, p_at, p_amount, p_reference_id, p_details,
    account.total_credits, account.used_credits, account.held_credits);
end
$$;

-- Writes a change of a locked account: the account as given, one usage record (its seq, time and balance are the
-- account's), and the record's share of daily usage. Returns the record's id.
--
-- ai_credit_post_all writes the same of many. It is not called with one record, for which its queries are too dear: it takes a
-- fifth more of PostgreSQL's time for a deduct that goes alone. A test holds the two together.
create or replace function :"schema".ai_credit_post(
  p_account :"schema".ai_credit_account, p_record :"schema".ai_credit_record
) returns bigint
language plpgsql as $$
declare
  record_id bigint := coalesce(p_record.id, nextval(':"schema".ai_credit_usage_id_seq'));
begin
  -- What spending changes, and no more: this is every deduct's path.
  update :"schema".ai_credits
  set total_credits = p_account.total_credits, used_credits = p_account.used_credits,
      held_credits = p_account.held_credits, spent_before = p_account.spent_before, allocated = p_account.allocated,
      seq = p_account.seq, summed_seq = :"schema".ai_credit_next_summed(p_account, p_account.seq - 1),
      updated_at = p_account.updated_at
  where user_id = p_account.user_id;

  insert into :"schema".ai_credit_usage (id, user_id, seq, kind, credits_used, operation, metadata, created_at,
    total_after, used_after, held_after, idempotency_key, request_hash, hold_id, amount, uncollected, refunded_id, reason,
    price_version, quantities, budgets)
  values (record_id, p_account.user_id, p_account.seq, p_record.kind, p_record.credits_used, p_record.operation,
    p_record.metadata, p_account.updated_at, p_account.total_credits, p_account.used_credits, p_account.held_credits,
    p_record.idempotency_key, p_record.request_hash, p_record.hold_id, p_record.amount, p_record.uncollected,
    p_record.refunded_id, p_record.reason, p_record.price_version, p_record.quantities, p_record.budgets);

  if :"schema".ai_credit_is_to_sum(p_account, p_account.seq - 1) then
    perform :"schema".ai_credit_sum_up(array[p_account.user_id], array[p_account.summed_seq]);
  end if;
  return record_id;
end
$$;

-- Writes the accounts to which calls were posted; p_seqs: of each the last posting before them. Returns those whose records are to be added to daily usage, with the summed_seq
-- that they had: also one whose calls were all refused, as otherwise the next statement would do it again.
create or replace function :"schema".ai_credit_save_all(
  p_accounts :"schema".ai_credit_account[], p_seqs bigint[], out user_ids varchar[], out summed_seqs bigint[]
)
language plpgsql as $$
begin
  with written as (
    update :"schema".ai_credits account
    set total_credits = posted.total_credits, used_credits = posted.used_credits, held_credits = posted.held_credits,
        allocated = posted.allocated, seq = posted.seq,
        summed_seq = :"schema".ai_credit_next_summed(posted, account.seq), due_at = posted.due_at, updated_at = posted.updated_at
    from unnest(p_accounts) posted
    where account.user_id = posted.user_id and (account.seq < posted.seq or :"schema".ai_credit_is_to_sum(posted, account.seq))
    returning account.user_id, posted.summed_seq as before, account.summed_seq as after
  )
  select array_agg(user_id), array_agg(before) into user_ids, summed_seqs from written where before < after;
end
$$;

-- Writes holds that calls have changed, and returns how many.
create or replace function :"schema".ai_credit_save_holds(p_changed :"schema".ai_credit_hold_state[]) returns bigint
language plpgsql as $$
declare
  written bigint;
begin
  update :"schema".ai_credit_holds hold
  set state = changed.state, credits_left = changed.credits_left, pinned = changed.pinned,
      closing_seq = changed.closing_seq, closing_hash = changed.closing_hash
  from unnest(p_changed) changed
  where hold.user_id = changed.user_id and hold.seq = changed.seq;
  get diagnostics written = row_count;
  return written;
end
$$;

-- Writes what several calls have come to: accounts, usage records with their daily usage, new holds, and holds that
-- changed.
create or replace function :"schema".ai_credit_post_all(
  p_accounts :"schema".ai_credit_account[], p_seqs bigint[], p_records :"schema".ai_credit_record[], p_holds :"schema".ai_credit_new_hold[],
  p_changed :"schema".ai_credit_hold_state[]
) returns void
language plpgsql as $$
declare
  to_sum record := :"schema".ai_credit_save_all(p_accounts, p_seqs);
begin
  if cardinality(p_records) > 0 then
    insert into :"schema".ai_credit_usage (id, user_id, seq, kind, credits_used, operation, metadata, created_at,
      total_after, used_after, held_after, idempotency_key, request_hash, hold_id, amount, uncollected,
      price_version, quantities, budgets)
    select id, user_id, seq, kind, credits_used, operation, metadata, created_at,
      total_after, used_after, held_after, idempotency_key, request_hash, hold_id, amount, uncollected,
      price_version, quantities, budgets
    from unnest(p_records);
  end if;

  if to_sum.user_ids is not null then
    perform :"schema".ai_credit_sum_up(to_sum.user_ids, to_sum.summed_seqs);
  end if;

  if cardinality(p_holds) > 0 then
    insert into :"schema".ai_credit_holds (id, user_id, seq, credits, credits_left, operation, metadata, ttl, created_at,
      expires_at, total_after, used_after, held_after, idempotency_key, request_hash, budgets)
    select id, user_id, seq, credits, credits, operation, metadata, ttl, created_at,
      expires_at, total_after, used_after, held_after, idempotency_key, request_hash, budgets
    from unnest(p_holds);
  end if;

  if cardinality(p_changed) > 0 and :"schema".ai_credit_save_holds(p_changed) <> cardinality(p_changed) then
    raise cardinality_violation using -- otherwise a hold would be spent twice
      message = 'calls of one statement are about the same hold';
  end if;
end
$$;
