-- Budgets: limits on parts of an account's spending. The account's lock covers them all.
--
-- A charge counts in its budget and in all above it. That path is kept with its usage record or hold, and decides where
-- captures, releases, lapses and refunds count: moving or removing a budget changes what new charges count in, and nothing else.

-- The template of a name: kind:* for kind:anything. null: the name has no kind.
create or replace function :"schema".ai_credit_template(p_budget varchar) returns varchar
language sql immutable as $$
  select case when strpos(p_budget, ':') > 1 then split_part(p_budget, ':', 1) || ':*' end
$$;

-- A budget as it is kept, or where there is none with this name, with p_or_template the template that would make it (is_new).
create or replace function :"schema".ai_credit_find_budget(p_user_id varchar, p_budget varchar, p_or_template boolean)
returns table (is_new boolean, within varchar, made_seq bigint, held bigint, day :"schema".ai_credit_limit,
  week :"schema".ai_credit_limit, month :"schema".ai_credit_limit, total :"schema".ai_credit_limit)
language sql stable as $$
  select false, within, made_seq, held, day, week, month, total from :"schema".ai_credit_budgets
  where user_id = p_user_id and budget = p_budget
  union all
  select true, within, made_seq, held, day, week, month, total from :"schema".ai_credit_budgets
  where user_id = p_user_id and budget = case when p_or_template then :"schema".ai_credit_template(p_budget) end
    and not exists (select from :"schema".ai_credit_budgets where user_id = p_user_id and budget = p_budget)
  limit 1 -- so the template is looked up only if it is needed
$$;

-- The path of a budget: its name, then those of the budgets above it. A name that has no budget has the path that its template gives
-- it, and without a template none: null.
create or replace function :"schema".ai_credit_path(p_user_id varchar, p_budget varchar) returns varchar[]
language plpgsql stable set plan_cache_mode = force_generic_plan as $$
begin
  return (
    with recursive step as (
      select p_budget collate "C" as budget, kept.within, 1 as level
      from :"schema".ai_credit_find_budget(p_user_id, p_budget, true) kept
      union all
      select step.within, kept.within, step.level + 1
      from step, lateral :"schema".ai_credit_find_budget(p_user_id, step.within, false) kept
    )
    select array_agg(budget order by level) from step
  );
end
$$;

-- Whether the period of a limit is over, or has not begun, as the limit is new.
create or replace function :"schema".ai_credit_is_over(p_limit :"schema".ai_credit_limit, p_instant timestamptz) returns boolean
language sql immutable as $$
  select (p_limit).resets_at is null or (p_limit).resets_at <= p_instant
$$;

-- A limit of p_amount at an instant, after p_used was spent by the posting p_used_seq; p_seq is the posting before the instant. A
-- limit that is new, or whose period is over, begins a period. Of a refund, p_used_seq is the posting that it refunds, which may
-- be of an earlier period: then it does not count.
create or replace function :"schema".ai_credit_limit_at(
  p_limit :"schema".ai_credit_limit, p_amount bigint, p_period text, p_seq bigint, p_instant timestamptz,
  p_used bigint, p_used_seq bigint
) returns :"schema".ai_credit_limit
language sql stable as $$
  select case when p_amount is null then null
    when :"schema".ai_credit_is_over(p_limit, p_instant) then cast(row(
      p_amount, case when p_used_seq > p_seq then p_used else 0 end, p_seq,
      case p_period when 'total' then 'infinity'
        else :"schema".ai_credit_next_renewal(jsonb_build_object('every', p_period), p_instant, p_instant) end,
      0::bigint) as :"schema".ai_credit_limit)
    else cast(row(
      p_amount, (p_limit).used + case when p_used_seq > (p_limit).since_seq then p_used else 0 end, (p_limit).since_seq,
      (p_limit).resets_at, (p_limit).gone) as :"schema".ai_credit_limit) end
$$;

-- What a limit has left.
create or replace function :"schema".ai_credit_left(p_amount bigint, p_used bigint, p_held bigint) returns bigint
language sql immutable as $$
  select p_amount - p_used - p_held
$$;

-- The same at an instant, at which its period may be over. null: there is no limit.
create or replace function :"schema".ai_credit_left_at(p_limit :"schema".ai_credit_limit, p_held bigint, p_instant timestamptz)
returns bigint
language sql immutable as $$
  select :"schema".ai_credit_left((p_limit).amount,
    case when :"schema".ai_credit_is_over(p_limit, p_instant) then 0 else (p_limit).used end, p_held)
$$;

-- Whether a charge is more than a limit has left. What costs nothing is never refused; p_left null: there is no limit.
create or replace function :"schema".ai_credit_exceeds(p_credits bigint, p_left bigint) returns boolean
language sql immutable as $$
  select p_credits > 0 and p_credits > coalesce(p_left, p_credits)
$$;

-- A budget at an instant, of which p_seq is the posting before. Where there is none with this name, with p_or_template the one
-- that its template would make.
create or replace function :"schema".ai_credit_budget_at(
  p_user_id varchar, p_budget varchar, p_or_template boolean, p_seq bigint, p_instant timestamptz
) returns table (budget varchar, is_new boolean, within varchar, made_seq bigint, held bigint, day :"schema".ai_credit_limit,
  week :"schema".ai_credit_limit, month :"schema".ai_credit_limit, total :"schema".ai_credit_limit)
language sql stable as $$
  select p_budget, kept.is_new, kept.within, case when kept.is_new then p_seq else kept.made_seq end, kept.held,
    :"schema".ai_credit_limit_at(case when not kept.is_new then kept.day end, (kept.day).amount, 'day'::text,
      p_seq, p_instant, 0::bigint, 0::bigint),
    :"schema".ai_credit_limit_at(case when not kept.is_new then kept.week end, (kept.week).amount, 'week'::text,
      p_seq, p_instant, 0::bigint, 0::bigint),
    :"schema".ai_credit_limit_at(case when not kept.is_new then kept.month end, (kept.month).amount, 'month'::text,
      p_seq, p_instant, 0::bigint, 0::bigint),
    :"schema".ai_credit_limit_at(case when not kept.is_new then kept.total end, (kept.total).amount, 'total'::text,
      p_seq, p_instant, 0::bigint, 0::bigint)
  from :"schema".ai_credit_find_budget(p_user_id, p_budget, p_or_template) kept
$$;

-- The limit for which a charge is refused, as JSON: of those along its path that have less left, the one that resets last. null:
-- the charge fits. p_more_used, p_more_held: what the same statement has spent and held before, in each budget of the path.
create or replace function :"schema".ai_credit_refusal(
  p_account :"schema".ai_credit_account, p_path varchar[], p_credits bigint, p_more_used bigint[], p_more_held bigint[]
) returns text
language plpgsql stable set plan_cache_mode = force_generic_plan as $$
begin
  return (
    select json_build_object('budget', step.budget, 'period', period, 'limit', told.amount, 'used', told.used, 'held', told.held,
      'resetsAt', :"schema".ai_credit_iso(told.resets_at))::text
    from unnest(p_path, p_more_used, p_more_held) with ordinality as step (budget, more_used, more_held, place),
      lateral :"schema".ai_credit_budget_at(p_account.user_id, step.budget, step.place = 1, p_account.seq, p_account.updated_at) kept,
      lateral (values (1, 'total', kept.total), (2, 'month', kept.month), (3, 'week', kept.week), (4, 'day', kept.day))
        as of_period (rank, period, counted),
      lateral (select (counted).amount, (counted).used + coalesce(step.more_used, 0) as used,
        kept.held + coalesce(step.more_held, 0) as held, (counted).resets_at) told
    where :"schema".ai_credit_exceeds(p_credits, :"schema".ai_credit_left(told.amount, told.used, told.held))
    order by told.resets_at desc, step.place, rank limit 1
  );
end
$$;

-- Makes by their templates the budgets that are new and named by a charge.
create or replace function :"schema".ai_credit_make_budgets(p_counting :"schema".ai_credit_counting[]) returns void
language plpgsql set plan_cache_mode = force_generic_plan as $$
begin
  insert into :"schema".ai_credit_budgets (user_id, budget, within, made_seq, day, week, month, total)
  select counting.user_id, made.budget, made.within, made.made_seq, made.day, made.week, made.month, made.total
  from unnest(p_counting) as counting, generate_subscripts(counting.budgets, 1) as position,
    lateral :"schema".ai_credit_budget_at(
      counting.user_id, counting.budgets[position], true, counting.begun_seqs[position], counting.instant) made
  where counting.made_seqs[position] is null and counting.begun_seqs[position] is not null and made.is_new;
end
$$;

-- Counts in budgets of the account p_user_id, or with null of any, each of which is given once, what more was spent and is held.
-- p_used_seq: the posting by which it counts, in the periods that began before it; p_held_seq: that of the hold, which counts in
-- budgets that were made before it. Budgets that are gone count nothing.
--
-- With p_tell, where all of it is of charges, it returns as JSON each limit that has less left than before, as listeners are told:
--   [user, budget, period, limit, used, held, what used and held were together, when it resets]
-- A limit whose period begins has used nothing before. null: no limit has less left.
create or replace function :"schema".ai_credit_count(
  p_user_id varchar, p_counting :"schema".ai_credit_counting[], p_used_seq bigint, p_held_seq bigint, p_tell boolean
) returns text
language plpgsql set plan_cache_mode = force_generic_plan set enable_hashjoin = off set enable_mergejoin = off as $$
begin
  update :"schema".ai_credit_budgets kept
  set held = kept.held + case when p_held_seq > kept.made_seq then more.held else 0 end,
      day = :"schema".ai_credit_limit_at(kept.day, (kept.day).amount, 'day'::text, more.seq, more.instant, more.used, p_used_seq),
      week = :"schema".ai_credit_limit_at(kept.week, (kept.week).amount, 'week'::text, more.seq, more.instant, more.used, p_used_seq),
      month = :"schema".ai_credit_limit_at(kept.month, (kept.month).amount, 'month'::text,
        more.seq, more.instant, more.used, p_used_seq),
      total = :"schema".ai_credit_limit_at(kept.total, (kept.total).amount, 'total'::text,
        more.seq, more.instant, more.used, p_used_seq)
  from (
    select user_id, seq, instant, budgets[position] as budget, used[position] as used, held[position] as held
    from unnest(p_counting), generate_subscripts(budgets, 1) as position
    where used[position] <> 0 or held[position] <> 0
    offset 0 -- see 'For the planner' in README.md
  ) more
  where kept.user_id = more.user_id and kept.budget = more.budget and kept.user_id = coalesce(p_user_id, kept.user_id);

  if p_tell then -- read again: what the update returns would cost every charge
    return (
      select json_agg(json_build_array(more.user_id, more.budget, period, (counted).amount, (counted).used, kept.held,
        (counted).used + kept.held - taken, :"schema".ai_credit_iso((counted).resets_at)))
      from (
          select user_id, budgets[position] as budget, used[position] as used, held[position] as held
          from unnest(p_counting), generate_subscripts(budgets, 1) as position
          where used[position] <> 0 or held[position] <> 0
        ) more,
        lateral :"schema".ai_credit_find_budget(more.user_id, more.budget, false) kept,
        lateral (select more.used + case when p_held_seq > kept.made_seq then more.held else 0 end as taken) fall,
        lateral (values ('day', kept.day), ('week', kept.week), ('month', kept.month), ('total', kept.total)) as of_period (period, counted)
      where taken > 0 and (counted).amount is not null
    );
  end if;
  return null;
end
$$;

-- The same for one posting, which is yet to take its seq, of a locked account: along a path. With p_make its first budget is made, if
-- it is new.
create or replace function :"schema".ai_credit_count_along(
  p_account :"schema".ai_credit_account, p_path varchar[], p_make boolean, p_used bigint, p_used_seq bigint, p_held bigint,
  p_held_seq bigint, p_tell boolean
) returns text
language plpgsql as $$
declare
  levels integer[] := array[cardinality(p_path)];
  counting :"schema".ai_credit_counting[] := array[cast(row(
    p_account.user_id, p_account.seq, p_account.updated_at, p_path, null, null, null,
    array[p_account.seq], array_fill(p_used, levels), array_fill(p_held, levels)) as :"schema".ai_credit_counting)];
begin
  if p_make then
    perform :"schema".ai_credit_make_budgets(counting);
  end if;
  return :"schema".ai_credit_count(p_account.user_id, counting, p_used_seq, p_held_seq, p_tell);
end
$$;

-- The same for what the calls of a shared statement have spent and held, on several accounts. p_make: there are budgets to be made.
create or replace function :"schema".ai_credit_count_all(
  p_counting :"schema".ai_credit_counting[], p_make boolean, p_tell boolean
) returns text
language plpgsql as $$
begin
  if p_make then
    perform :"schema".ai_credit_make_budgets(p_counting);
  end if;
  return :"schema".ai_credit_count(null::varchar, p_counting, :"schema".ai_credit_max(), :"schema".ai_credit_max(), p_tell);
end
$$;

-- What a hold sets aside.
create or replace function :"schema".ai_credit_holding(p_hold :"schema".ai_credit_hold_state) returns bigint
language sql immutable as $$
  select case (p_hold).state when 'open' then (p_hold).credits_left else 0 end
$$;

-- Gives back what holds that have lapsed held, each known by its posting. Of most accounts none has a budget.
create or replace function :"schema".ai_credit_count_lapsed(p_user_id varchar, p_seqs bigint[]) returns void
language plpgsql as $$
begin
  update :"schema".ai_credit_budgets kept
  set held = kept.held - lapsed.credits
  from (
    select counted.budget, sum(hold.credits_left) as credits
    from unnest(p_seqs) as given (seq),
      lateral (
        select seq, credits_left, budgets from :"schema".ai_credit_holds
        where user_id = p_user_id and seq = given.seq and budgets is not null limit 1
      ) hold,
      unnest(hold.budgets) as step (budget),
      lateral (
        select budget from :"schema".ai_credit_budgets
        where user_id = p_user_id and budget = step.budget and made_seq < hold.seq limit 1
      ) counted
    group by counted.budget
  ) lapsed
  where kept.user_id = p_user_id and kept.budget = lapsed.budget;
end
$$;

-- What all limits of a budget have left at an instant. null: it has no limits.
create or replace function :"schema".ai_credit_budget_room(p_held bigint, p_day :"schema".ai_credit_limit, p_week :"schema".ai_credit_limit,
  p_month :"schema".ai_credit_limit, p_total :"schema".ai_credit_limit, p_instant timestamptz) returns bigint
language sql immutable as $$
  select least(
    :"schema".ai_credit_left_at(p_day, p_held, p_instant), :"schema".ai_credit_left_at(p_week, p_held, p_instant),
    :"schema".ai_credit_left_at(p_month, p_held, p_instant), :"schema".ai_credit_left_at(p_total, p_held, p_instant))
$$;

-- Budgets with what calls have counted in them.
create or replace function :"schema".ai_credit_with_counts(
  p_counting :"schema".ai_credit_counting, p_used bigint[], p_held bigint[], p_begun_seqs bigint[]
) returns :"schema".ai_credit_counting
language sql immutable as $$
  select cast(row((p_counting).user_id, (p_counting).seq, (p_counting).instant, (p_counting).budgets, (p_counting).withins,
    (p_counting).made_seqs, (p_counting).room, p_begun_seqs, p_used, p_held) as :"schema".ai_credit_counting)
$$;

-- A few budgets of an account, no matter which.
create or replace function :"schema".ai_credit_some_budgets(p_user_id varchar, p_limit bigint)
returns table (budget varchar, within varchar, made_seq bigint, held bigint, day :"schema".ai_credit_limit,
  week :"schema".ai_credit_limit, month :"schema".ai_credit_limit, total :"schema".ai_credit_limit)
language sql stable as $$
  select budget, within, made_seq, held, day, week, month, total from :"schema".ai_credit_budgets where user_id = p_user_id limit p_limit
$$;

-- Budgets for the calls of a shared statement, by the places of their accounts. null: the account needs none.
--
-- Of each account that has calls with a budget, or on a hold, it reads a few: all that most accounts have. One query for all accounts
-- costs less than a look-up for each budget. ai_credit_execute looks up what a call needs beside them.
create or replace function :"schema".ai_credit_read_budgets(p_accounts :"schema".ai_credit_account[], p_calls jsonb)
returns :"schema".ai_credit_counting[]
language plpgsql set enable_bitmapscan = off as $$
begin
  return (
    select array_agg(case when charged.calls is not null and account.obstacle is null then (
      select cast(row(account.user_id, account.seq, account.updated_at, array_agg(budget), array_agg(within), array_agg(made_seq),
        array_agg(:"schema".ai_credit_budget_room(held, day, week, month, total, account.updated_at)),
        null, null, null) as :"schema".ai_credit_counting)
      from :"schema".ai_credit_some_budgets(account.user_id, 4 + 2 * charged.calls)
    ) end order by account.ordinality)
    from unnest(p_accounts) with ordinality as account left join (
      select (c->0)::integer as place, count(*) as calls from jsonb_array_elements(p_calls) as call (c)
      where c->>11 is not null or c->>1 in ('capture', 'release') group by 1
    ) charged on charged.place = account.ordinality
  );
end
$$;

-- A limit of which so many credits were counted by records that are pruned now.
create or replace function :"schema".ai_credit_forget(p_limit :"schema".ai_credit_limit, p_credits bigint)
returns :"schema".ai_credit_limit
language sql immutable as $$
  select case when (p_limit).amount is null then null else cast(row((p_limit).amount, (p_limit).used, (p_limit).since_seq,
    (p_limit).resets_at, (p_limit).gone + coalesce(p_credits, 0)) as :"schema".ai_credit_limit) end
$$;

-- What records come to in each budget of an account: by limit, of those that count in its period.
create or replace function :"schema".ai_credit_sums(p_user_id varchar, p_counted :"schema".ai_credit_counted[])
returns table (budget varchar, day bigint, week bigint, month bigint, total bigint)
language sql stable as $$
  select kept.budget,
    sum(counted.credits) filter (where counted.seq > (kept.day).since_seq)::bigint,
    sum(counted.credits) filter (where counted.seq > (kept.week).since_seq)::bigint,
    sum(counted.credits) filter (where counted.seq > (kept.month).since_seq)::bigint,
    sum(counted.credits) filter (where counted.seq > (kept.total).since_seq)::bigint
  from unnest(p_counted) counted, unnest(counted.budgets) as step (budget), :"schema".ai_credit_budgets kept
  where kept.user_id = p_user_id and kept.budget = step.budget
  group by kept.budget
$$;

-- Keeps in the budgets of an account what records have counted that are pruned now.
create or replace function :"schema".ai_credit_prune_budgets(p_user_id varchar, p_counted :"schema".ai_credit_counted[]) returns void
language plpgsql as $$
declare
  gone record;
begin
  for gone in
    select * from :"schema".ai_credit_sums(p_user_id, p_counted)
  loop
    update :"schema".ai_credit_budgets
    set day = :"schema".ai_credit_forget(day, gone.day), week = :"schema".ai_credit_forget(week, gone.week),
        month = :"schema".ai_credit_forget(month, gone.month), total = :"schema".ai_credit_forget(total, gone.total)
    where user_id = p_user_id and budget = gone.budget;
  end loop;

  update :"schema".ai_credit_budget_usage daily
  set gone = daily.gone + pruned.credits
  from (
    select step.budget, day, operation, metadata_hash, sum(credits)::bigint as credits
    from unnest(p_counted) counted, unnest(counted.budgets) as step (budget)
    group by step.budget, day, operation, metadata_hash
  ) pruned
  where daily.user_id = p_user_id and daily.budget = pruned.budget and daily.day = pruned.day
    and daily.operation = pruned.operation and daily.metadata_hash = pruned.metadata_hash;
end
$$;

-- What of an account's budgets does not add up: what the budget says, and what its records (with those that were pruned) and open
-- holds come to. Of daily usage, also of budgets that were removed: what the records say, and what daily usage has, with the records
-- after p_summed_seq. Its rows are those of a query that PL/pgSQL plans, so that the table of usage records can be made anew.
create or replace function :"schema".ai_credit_budget_differences(p_user_id varchar, p_summed_seq bigint)
returns table (identity text, expected bigint, actual bigint)
language plpgsql stable as $$
declare
  counted :"schema".ai_credit_counted[];
  sums jsonb;    -- what they come to, by budget
  holding jsonb; -- what open holds come to, by budget
begin
  if not exists (select from :"schema".ai_credit_budgets where user_id = p_user_id)
    and not exists (select from :"schema".ai_credit_budget_usage where user_id = p_user_id) then
    return;
  end if;
  select array_agg(cast(row(coalesce(original.seq, record.seq), record.credits_used, record.budgets, null, null, null)
    as :"schema".ai_credit_counted))
  into counted -- an assignment of a type of ours cannot be sent to another node of Citus
  from :"schema".ai_credit_usage record
    left join :"schema".ai_credit_usage original on original.id = record.refunded_id and original.user_id || '' = p_user_id
  where record.user_id = p_user_id and record.budgets is not null;
  sums := (select jsonb_object_agg(of_budget.budget, to_jsonb(of_budget)) from :"schema".ai_credit_sums(p_user_id, counted) of_budget);
  holding := (
    select jsonb_object_agg(held.budget, held.credits)
    from (
      select kept.budget, sum(hold.credits_left)::bigint as credits
      from :"schema".ai_credit_holds hold, unnest(hold.budgets) as step (budget), :"schema".ai_credit_budgets kept
      where hold.user_id = p_user_id and hold.state = 'open'
        and kept.user_id = p_user_id and kept.budget = step.budget and hold.seq > kept.made_seq
      group by kept.budget
    ) held);
  return query
    select 'budget ' || kept.budget || ' ' || checked.what, checked.says, checked.adds_up_to
    from :"schema".ai_credit_budgets kept,
      lateral (select sums->kept.budget as spent, holding->kept.budget as held) adding,
      lateral (values
        ('day used', (kept.day).used, coalesce((spent->>'day')::bigint, 0) + (kept.day).gone),
        ('week used', (kept.week).used, coalesce((spent->>'week')::bigint, 0) + (kept.week).gone),
        ('month used', (kept.month).used, coalesce((spent->>'month')::bigint, 0) + (kept.month).gone),
        ('total used', (kept.total).used, coalesce((spent->>'total')::bigint, 0) + (kept.total).gone),
        ('held', kept.held, coalesce(adding.held::bigint, 0))
      ) as checked (what, says, adds_up_to)
    where kept.user_id = p_user_id and checked.says <> checked.adds_up_to
    union all
    select 'budget ' || spent.budget || ' dailyUsage', sum(spent.recorded)::bigint, sum(spent.summed)::bigint
    from (
      select step.budget, record.credits_used as recorded, case when record.seq > p_summed_seq then record.credits_used else 0 end as summed
      from :"schema".ai_credit_usage record, unnest(record.budgets) as step (budget)
      where record.user_id = p_user_id and record.budgets is not null
      union all
      select budget, gone, used_credits from :"schema".ai_credit_budget_usage where user_id = p_user_id
    ) spent
    group by spent.budget having sum(spent.recorded) <> sum(spent.summed);
end
$$;

-- How many levels a budget and those below it have.
create or replace function :"schema".ai_credit_height(p_user_id varchar, p_budget varchar) returns integer
language plpgsql stable as $$
begin
  return (
    with recursive step as (
      select p_budget collate "C" as budget, 1 as level
      union all
      select below.budget, step.level + 1
      from step, lateral (
        select budget from :"schema".ai_credit_budgets where user_id = p_user_id and within = step.budget offset 0
      ) below
    )
    select max(level) from step
  );
end
$$;

-- A budget as callers are told of it, as JSON. Where there is none with this name, with p_or_template the one that its template would
-- make.
create or replace function :"schema".ai_credit_told_budget(
  p_user_id varchar, p_budget varchar, p_or_template boolean, p_seq bigint, p_instant timestamptz
) returns json
language plpgsql stable as $$
begin
  return (
    select json_build_object('budget', kept.budget, 'within', kept.within, 'held', kept.held,
      'limits', coalesce(limits, '{}'), 'used', coalesce(used, '{}'), 'resetsAt', coalesce(resets_at, '{}'))
    from :"schema".ai_credit_budget_at(p_user_id, p_budget, p_or_template, p_seq, p_instant) kept, lateral (
      select json_object_agg(period, (counted).amount) as limits, json_object_agg(period, (counted).used) as used,
        json_object_agg(period, :"schema".ai_credit_iso((counted).resets_at)) as resets_at
      from (values ('day', kept.day), ('week', kept.week), ('month', kept.month), ('total', kept.total)) as of_period (period, counted)
      where (counted).amount is not null
    ) told
  );
end
$$;

-- Makes a budget, or replaces its definition. p_limits: the amount of each limit that it has, by its period, in JSON. A limit that it
-- had keeps what it has counted. Verdicts: 'accepted'; 'missing' (there is no budget p_within); 'cycle' (that is the budget itself,
-- or below it); 'depth' (there would be more than 8 levels); and the obstacles.
create or replace function :"schema".ai_credit_set_budget(
  p_caller integer, p_user_id varchar, p_budget varchar, p_within varchar, p_limits jsonb, p_allowance jsonb, p_lock_timeout integer,
  out verdict varchar, out budget varchar, out settled varchar
)
security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off
language plpgsql as $$
#variable_conflict use_column
declare
  account :"schema".ai_credit_account := :"schema".ai_credit_lock(p_user_id, p_allowance, p_lock_timeout);
  path varchar[];
begin
  settled := account.settled;
  verdict := account.obstacle;
  if verdict is not null then
    return;
  end if;
  -- One that stays where it is cannot be wrong there, and what is below it need not be read.
  if p_within is not null
    and not exists (select from :"schema".ai_credit_budgets where user_id = p_user_id and budget = p_budget and within = p_within) then
    if exists (select from :"schema".ai_credit_budgets where user_id = p_user_id and budget = p_within) then
      path := :"schema".ai_credit_path(p_user_id, p_within);
    end if;
    verdict := case
      when p_within = p_budget or p_budget = any (path) then 'cycle'
      when path is null then 'missing'
      when cardinality(path) + :"schema".ai_credit_height(p_user_id, p_budget) > 8 then 'depth' end;
    if verdict is not null then
      return;
    end if;
  end if;
  verdict := 'accepted';
  insert into :"schema".ai_credit_budgets (user_id, budget, made_seq) values (p_user_id, p_budget, account.seq)
  on conflict (user_id, budget) do nothing;
  update :"schema".ai_credit_budgets
  set within = p_within,
      day = :"schema".ai_credit_limit_at(day, (p_limits->>'day')::bigint, 'day'::text,
        account.seq, account.updated_at, 0::bigint, 0::bigint),
      week = :"schema".ai_credit_limit_at(week, (p_limits->>'week')::bigint, 'week'::text,
        account.seq, account.updated_at, 0::bigint, 0::bigint),
      month = :"schema".ai_credit_limit_at(month, (p_limits->>'month')::bigint, 'month'::text,
        account.seq, account.updated_at, 0::bigint, 0::bigint),
      total = :"schema".ai_credit_limit_at(total, (p_limits->>'total')::bigint, 'total'::text,
        account.seq, account.updated_at, 0::bigint, 0::bigint)
  where user_id = p_user_id and budget = p_budget;
  perform :"schema".ai_credit_save(account); -- with its instant, which the clock may not fall back behind
  ai_credit_set_budget.budget := :"schema".ai_credit_told_budget(p_user_id, p_budget, false, account.seq, account.updated_at);
end
$$;
comment on function :"schema".ai_credit_set_budget(integer, varchar, varchar, varchar, jsonb, jsonb, integer)
is 'Makes a budget of an account, or replaces its definition.';

-- Removes a budget. Verdicts: 'accepted'; 'missing' (there is none); 'in use' (others are within it); and the obstacles.
create or replace function :"schema".ai_credit_remove_budget(
  p_caller integer, p_user_id varchar, p_budget varchar, p_allowance jsonb, p_lock_timeout integer,
  out verdict varchar, out settled varchar
)
security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off
language plpgsql as $$
declare
  account :"schema".ai_credit_account := :"schema".ai_credit_lock(p_user_id, p_allowance, p_lock_timeout);
begin
  settled := account.settled;
  verdict := account.obstacle;
  if verdict is not null then
    return;
  end if;
  if exists (select from :"schema".ai_credit_budgets where user_id = p_user_id and within = p_budget) then
    verdict := 'in use';
    return;
  end if;
  delete from :"schema".ai_credit_budgets where user_id = p_user_id and budget = p_budget;
  verdict := case when found then 'accepted' else 'missing' end;
end
$$;
comment on function :"schema".ai_credit_remove_budget(integer, varchar, varchar, jsonb, integer)
is 'Removes a budget of an account.';

-- A page of an account's budgets at an instant, as a JSON array: those after p_after by name; or with p_path this budget and those
-- above it, in this order. Stable, so that all of it is of one snapshot.
create or replace function :"schema".ai_credit_told_budgets(
  p_user_id varchar, p_path varchar, p_after varchar, p_limit integer, p_instant timestamptz
) returns varchar
language plpgsql stable as $$
declare
  names varchar[];
begin
  if p_path is not null then
    names := :"schema".ai_credit_path(p_user_id, p_path);
  else
    names := array(
      select budget from :"schema".ai_credit_budgets
      where user_id = p_user_id and budget > p_after order by budget limit p_limit);
  end if;
  return (
    select coalesce(json_agg(
      :"schema".ai_credit_told_budget(p_user_id, name, p_path is not null, 0::bigint, p_instant) order by place), '[]')
    from unnest(names) with ordinality as listed (name, place));
end
$$;

-- The same at this moment. Verdicts: 'accepted', and the obstacles.
create or replace function :"schema".ai_credit_list_budgets(
  p_caller integer, p_user_id varchar, p_path varchar, p_after varchar, p_limit integer, p_allowance jsonb, p_lock_timeout integer,
  out verdict varchar, out budgets varchar, out settled varchar
)
security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off set jit = off
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
  budgets := :"schema".ai_credit_told_budgets(
    p_user_id, p_path, p_after, p_limit, greatest(:"schema".ai_credit_now(), account.updated_at));
end
$$;
comment on function :"schema".ai_credit_list_budgets(integer, varchar, varchar, varchar, integer, jsonb, integer)
is 'Returns a page of the budgets of an account.';
