-- Reconciliation: what every account's rows must add up to.

-- For each account what its row says, and what its records, daily usage (with the records that it does not have yet), holds,
-- grants and entries add up to. What is pruned counts as it did: its credits as recorded, and its postings as entries.
create or replace function :"schema".ai_credit_identities(p_user_id varchar, p_after_user_id varchar, p_limit integer)
returns table (user_id varchar, total bigint, used bigint, held bigint,
  spent bigint, recorded bigint, summed bigint, holding bigint, granted bigint, covered bigint, entries bigint, seq bigint,
  budgets json) -- what of these does not add up: [identity, expected, actual]
language sql stable
begin atomic
  select account.user_id, account.total_credits, account.used_credits, account.held_credits,
    account.spent_before + account.used_credits,
    (select coalesce(sum(credits_used), 0) from :"schema".ai_credit_usage where user_id = account.user_id) + gone.credits,
    (select coalesce(sum(used_credits), 0) from :"schema".ai_credit_daily_usage where user_id = account.user_id)
      + (select coalesce(sum(credits_used), 0) from :"schema".ai_credit_usage
        where user_id = account.user_id and seq > account.summed_seq),
    hold.credits,
    account.total_credits - account.used_credits,
    case when living.grants = 0 then account.total_credits else living.credits + hold.pinned end
      - (account.spent_before + account.used_credits - account.allocated),
    (select count(distinct entry.seq) from :"schema".ai_credit_entries entry
      where entry.user_id = account.user_id and entry.kind <> 'opening' and entry.seq > gone.seq) + gone.seq,
    account.seq,
    (select coalesce(json_agg(json_build_array(identity, expected, actual) order by identity), '[]')
      from :"schema".ai_credit_budget_differences(account.user_id, account.summed_seq))
  from :"schema".ai_credits account,
    lateral (
      select coalesce(sum(credits_left), 0)::bigint as credits, coalesce(sum(pinned), 0)::bigint as pinned
      from :"schema".ai_credit_holds where user_id = account.user_id and state = 'open'
    ) hold,
    lateral (
      select count(*) as grants, coalesce(sum(credits_left) filter (where state = 'living'), 0)::bigint as credits
      from :"schema".ai_credit_grants where user_id = account.user_id
    ) living,
    lateral (
      select coalesce(max(pruned.seq), 0) as seq, coalesce(max(pruned.credits), 0) as credits
      from :"schema".ai_credit_pruned pruned where pruned.user_id = account.user_id
    ) gone
  where (p_user_id is null or account.user_id = p_user_id) and (p_after_user_id is null or account.user_id > p_after_user_id)
  order by account.user_id
  limit p_limit;
end;

-- The same as a JSON array, in one snapshot: of the account p_user_id, or of p_limit accounts after p_after_user_id.
create or replace function :"schema".ai_credit_reconcile(
  p_caller integer, p_user_id varchar, p_after_user_id varchar, p_limit integer, out accounts varchar
)
security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off
language plpgsql stable as $$
begin
  accounts := (select coalesce(json_agg(account order by user_id), '[]')
    from :"schema".ai_credit_identities(p_user_id, p_after_user_id, p_limit) account);
end
$$;
comment on function :"schema".ai_credit_reconcile(integer, varchar, varchar, integer)
is 'Returns what accounts say and what their rows add up to.';
