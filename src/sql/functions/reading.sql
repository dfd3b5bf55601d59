-- Reading: balances, daily usage, statements.

-- The balance of an account as it is, which no charge in flight is waited for. It is locked only where it is missing, or
-- something is due, and may have an obstacle then, as what ai_credit_lock returns.
create or replace function :"schema".ai_credit_current(p_user_id varchar, p_allowance jsonb, p_lock_timeout integer)
returns :"schema".ai_credit_account
language plpgsql as $$
declare
  account :"schema".ai_credit_account;
begin
  select total_credits, used_credits, held_credits, due_at, updated_at
  into account.total_credits, account.used_credits, account.held_credits, account.due_at, account.updated_at
  from :"schema".ai_credits where user_id = p_user_id;
  if not found or account.due_at <= greatest(:"schema".ai_credit_now(), account.updated_at) then
    account := :"schema".ai_credit_lock(p_user_id, p_allowance, p_lock_timeout);
  end if;
  return account;
end
$$;

-- The committed balance. Creates the account where it is missing. Verdicts: 'accepted', and the obstacles.
create or replace function :"schema".ai_credit_balance(
  p_caller integer, p_user_id varchar, p_allowance jsonb, p_lock_timeout integer,
  out verdict varchar, out total bigint, out used bigint, out held bigint, out settled varchar
)
security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off
language plpgsql as $$
declare
  account :"schema".ai_credit_account := :"schema".ai_credit_current(p_user_id, p_allowance, p_lock_timeout);
begin
  settled := account.settled;
  verdict := account.obstacle;
  if verdict is not null then
    return;
  end if;
  verdict := 'accepted';
  total := account.total_credits;
  used := account.used_credits;
  held := account.held_credits;
end
$$;
comment on function :"schema".ai_credit_balance(integer, varchar, jsonb, integer)
is 'Returns the balance of an account.';

-- The balance and a page of daily usage, of an account or of one of its budgets. It is stable, so that all it reads is of one snapshot,
-- and agrees. entries is a JSON array of [day, used, operation, metadata, hash]; p_after: see ai_credit_days.
create or replace function :"schema".ai_credit_told_history(
  p_user_id varchar, p_days integer, p_limit integer, p_after jsonb, p_budget varchar,
  out total bigint, out used bigint, out held bigint, out entries varchar
)
language plpgsql stable as $$
declare
  account record;
begin
  select total_credits, used_credits, held_credits, coalesce(summed_seq, seq) as summed_seq, updated_at into account
  from :"schema".ai_credits where user_id = p_user_id;
  total := account.total_credits;
  used := account.used_credits;
  held := account.held_credits;
  select coalesce(json_agg(json_build_array(day, used_credits, operation, metadata, encode(metadata_hash, 'hex')) order by place), '[]')
  into entries
  from :"schema".ai_credit_days(p_user_id, p_budget, account.summed_seq,
    (greatest(:"schema".ai_credit_now(), account.updated_at) at time zone :"schema".ai_credit_time_zone())::date - p_days,
    p_limit::bigint, p_after)
    with ordinality as entry (day, used_credits, operation, metadata, metadata_hash, place);
end
$$;

-- The same at this moment. Creates the account where it is missing. Verdicts: 'accepted', and the obstacles.
create or replace function :"schema".ai_credit_history(
  p_caller integer, p_user_id varchar, p_allowance jsonb, p_lock_timeout integer, p_days integer, p_limit integer, p_after jsonb,
  p_budget varchar,
  out verdict varchar, out total bigint, out used bigint, out held bigint, out entries varchar,
  out settled varchar
)
security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off set plan_cache_mode = force_generic_plan
language plpgsql as $$
declare
  current :"schema".ai_credit_account := :"schema".ai_credit_current(p_user_id, p_allowance, p_lock_timeout);
begin
  settled := current.settled;
  verdict := current.obstacle;
  if verdict is not null then
    return;
  end if;
  verdict := 'accepted';
  select told.total, told.used, told.held, told.entries into total, used, held, entries
  from :"schema".ai_credit_told_history(p_user_id, p_days, p_limit, p_after, p_budget) told;
end
$$;
comment on function :"schema".ai_credit_history(
  integer, varchar, jsonb, integer, integer, integer, jsonb, varchar
) is 'Returns the balance of an account and a page of its daily usage.';

-- The names of accounts after p_after (null: from the first on), at most p_limit, in order, as a JSON array.
create or replace function :"schema".ai_credit_accounts(p_caller integer, p_after varchar, p_limit integer, out accounts varchar)
security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off
language plpgsql stable as $$
begin
  accounts := (
    select coalesce(json_agg(user_id order by user_id), '[]')
    from (
      select user_id from :"schema".ai_credits where p_after is null or user_id > p_after order by user_id limit p_limit
    ) page);
end
$$;
comment on function :"schema".ai_credit_accounts(integer, varchar, integer)
is 'Returns a page of the names of accounts.';

-- The accounts of holds, grants or usage records (p_of: 'hold', 'grant', 'usage record'), in the order of their ids, as a JSON array;
-- null for an id that there is not.
create or replace function :"schema".ai_credit_owners(p_caller integer, p_of varchar, p_ids bigint[], out accounts varchar)
security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off
language plpgsql stable as $$
declare
  owners jsonb;
begin
  if p_of = 'hold' then
    owners := (select jsonb_object_agg(id, user_id) from :"schema".ai_credit_holds where id = any(p_ids));
  elsif p_of = 'grant' then
    owners := (select jsonb_object_agg(id, user_id) from :"schema".ai_credit_grants where id = any(p_ids) and kind = 'grant');
  else
    owners := (select jsonb_object_agg(id, user_id) from :"schema".ai_credit_usage where id = any(p_ids) and kind <> 'refund');
  end if;
  accounts := (select json_agg(owners->(id::text) order by place) from unnest(p_ids) with ordinality as asked (id, place));
end
$$;
comment on function :"schema".ai_credit_owners(integer, varchar, bigint[])
is 'Returns the accounts of holds, grants or usage records.';

-- Every posting of an account, each from the one table that it is written in. The opening is the last posting that the
-- account's books were closed with. There is no condition on grants, for which PostgreSQL would sort all of them for one
-- page: those that are no postings, as allowances, have no seq. See 'For the planner' in README.md: each column has the same type
-- in all branches.
create or replace view :"schema".ai_credit_entries as
select account.user_id, coalesce(pruned.seq, 0) as seq, 'opening'::text as kind,
  coalesce(pruned.created_at, account.created_at) as created_at,
  coalesce(pruned.total_after - pruned.used_after - pruned.held_after, opening_total - opening_used) as amount,
  null::bigint as id, null::varchar as operation, null::jsonb as metadata, null::text as reason,
  null::bigint as reference_id, null::jsonb as details,
  coalesce(pruned.total_after, opening_total) as total_after, coalesce(pruned.used_after, opening_used) as used_after,
  coalesce(pruned.held_after, 0) as held_after, null::text as price_version, null::jsonb as quantities,
  null::varchar as budget
from :"schema".ai_credits account left join :"schema".ai_credit_pruned pruned using (user_id)
union all
select user_id, seq, kind::text, created_at, coalesce(amount, -credits_used), id, operation, metadata, reason,
  coalesce(hold_id, refunded_id), null, total_after, used_after, held_after, price_version, quantities, budgets[1]
from :"schema".ai_credit_usage
union all
select user_id, seq, 'hold', created_at, -credits, id, operation, metadata, null, null, null,
  total_after, used_after, held_after, null, null, budgets[1]
from :"schema".ai_credit_holds
union all
select user_id, seq, 'grant', created_at, credits, id, null, null, reason, null, null,
  total_after, used_after, held_after, null, null, null
from :"schema".ai_credit_grants
union all
select user_id, seq, kind, created_at, amount, null, null, null, null, reference_id, details,
  total_after, used_after, held_after, null, null, null
from :"schema".ai_credit_events;
comment on view :"schema".ai_credit_entries is 'Every posting of every account, in one form.';

-- The last of an account's postings before an instant. Postings are in the order of time, so it is found by halving.
create or replace function :"schema".ai_credit_seq_before(p_user_id varchar, p_opening_seq bigint, p_instant timestamptz)
returns bigint
language plpgsql stable as $$
declare
  lower bigint := p_opening_seq - 1; -- before the instant, as is all that comes before it
  upper bigint := (select seq from :"schema".ai_credits where user_id = p_user_id) + 1; -- not before it, or past the last
  middle bigint;
  found_at record;
begin
  while upper - lower > 1 loop
    middle := (lower + upper) / 2;
    select seq, created_at into found_at from :"schema".ai_credit_entries
    where user_id = p_user_id and seq >= middle and seq >= p_opening_seq and (seq > p_opening_seq or kind = 'opening')
    order by seq limit 1;
    if found and found_at.created_at < p_instant then
      lower := found_at.seq;
    else
      upper := middle;
    end if;
  end loop;
  return lower;
end
$$;

-- A page of an account's entries after p_after_seq, as a JSON array. Entries from before the opening are left out, of which
-- pruning keeps some (those of living grants and open holds). Verdicts: 'accepted', and the obstacles.
create or replace function :"schema".ai_credit_statement(
  p_caller integer, p_user_id varchar, p_from timestamptz, p_to timestamptz, p_after_seq bigint, p_limit integer,
  p_allowance jsonb, p_lock_timeout integer, out verdict varchar, out entries varchar, out settled varchar
)
security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off
language plpgsql as $$
declare
  account :"schema".ai_credit_account := :"schema".ai_credit_current(p_user_id, p_allowance, p_lock_timeout);
  opening_seq bigint;
  after_seq bigint;
  last_seq bigint := 9223372036854775807;
begin
  settled := account.settled;
  verdict := account.obstacle;
  if verdict is not null then
    return;
  end if;
  verdict := 'accepted';
  opening_seq := coalesce((select seq from :"schema".ai_credit_pruned where user_id = p_user_id), 0);
  after_seq := p_after_seq;
  if p_from is not null then
    after_seq := greatest(after_seq, :"schema".ai_credit_seq_before(p_user_id, opening_seq, p_from));
  end if;
  if p_to is not null then
    last_seq := :"schema".ai_credit_seq_before(p_user_id, opening_seq, p_to);
  end if;
  select coalesce(json_agg(json_build_array(seq, kind, :"schema".ai_credit_iso(created_at), amount, total_after, used_after,
      held_after, id::varchar, reference_id::varchar, operation, metadata, reason, details, price_version, quantities, budget)
      order by seq), '[]')::varchar
  into entries
  from (
    select seq, kind, created_at, amount, total_after, used_after, held_after, id, reference_id, operation, metadata, reason,
      details, price_version, quantities, budget
    from :"schema".ai_credit_entries
    where user_id = p_user_id and seq > after_seq and seq <= last_seq and seq >= opening_seq and (seq > opening_seq or kind = 'opening')
      and (p_from is null or created_at >= p_from) and (p_to is null or created_at < p_to)
    order by seq
    limit p_limit
  ) page;
end
$$;
comment on function :"schema".ai_credit_statement(integer, varchar, timestamptz, timestamptz, bigint, integer, jsonb, integer)
is 'Returns a page of the postings of an account.';
