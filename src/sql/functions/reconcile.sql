-- Reconciliation: what every account's rows must add up to.

-- What the row of an account says, and what its records, daily usage (with the records that it does not have yet), holds,
-- grants and entries add up to. What is pruned counts as it did: its credits as recorded, and its postings as entries.
create or replace function :"schema".ai_credit_identities(p_user_id varchar)
returns table (user_id varchar, total bigint, used bigint, held bigint,
  spent bigint, recorded bigint, summed bigint, holding bigint, granted bigint, covered bigint, entries bigint, seq bigint,
  summed_seq bigint)
language sql stable as $$
  select account.user_id, account.total_credits, account.used_credits, account.held_credits,
    account.spent_before + account.used_credits,
    ((select coalesce(sum(credits_used), 0) from :"schema".ai_credit_usage where user_id = p_user_id) + gone.credits)::bigint,
    ((select coalesce(sum(used_credits), 0) from :"schema".ai_credit_daily_usage where user_id = p_user_id)
      + (select coalesce(sum(credits_used), 0) from :"schema".ai_credit_usage
        where user_id = p_user_id and seq > account.summed_seq))::bigint,
    hold.credits,
    account.total_credits - account.used_credits,
    case when living.grants = 0 then account.total_credits else living.credits + hold.pinned end
      - (account.spent_before + account.used_credits - account.allocated),
    (select count(distinct entry.seq) from :"schema".ai_credit_entries entry
      where entry.user_id = p_user_id and entry.kind <> 'opening' and entry.seq > gone.seq) + gone.seq,
    account.seq, account.summed_seq
  from :"schema".ai_credits account,
    lateral (
      select coalesce(sum(credits_left), 0)::bigint as credits, coalesce(sum(pinned), 0)::bigint as pinned
      from :"schema".ai_credit_holds where user_id = p_user_id and state = 'open'
    ) hold,
    lateral (
      select count(*) as grants, coalesce(sum(credits_left) filter (where state = 'living'), 0)::bigint as credits
      from :"schema".ai_credit_grants where user_id = p_user_id
    ) living,
    lateral (
      select coalesce(max(pruned.seq), 0) as seq, coalesce(max(pruned.credits), 0) as credits
      from :"schema".ai_credit_pruned pruned where pruned.user_id = p_user_id
    ) gone
  where account.user_id = p_user_id
$$;

-- The same of the accounts p_user_ids, of which p_user_id is one, in one snapshot, as a JSON array. budgets: what of the account's
-- budgets does not add up, each as [identity, expected, actual].
create or replace function :"schema".ai_credit_reconcile(
  p_caller integer, p_user_id varchar, p_user_ids varchar[], out accounts varchar
)
security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off
language plpgsql stable as $$
begin
  accounts := (
    select coalesce(json_agg(account order by place), '[]')
    from (
      select identities.*, place, (
        select coalesce(json_agg(json_build_array(identity, expected, actual) order by identity), '[]')
        from :"schema".ai_credit_budget_differences(given.user_id, identities.summed_seq)) as budgets
      from unnest(p_user_ids) with ordinality as given (user_id, place), :"schema".ai_credit_identities(given.user_id) identities
    ) account);
end
$$;
comment on function :"schema".ai_credit_reconcile(integer, varchar, varchar[])
is 'Returns what accounts say and what their rows add up to.';
