-- Daily usage: an account's usage records, summed up by day, operation and metadata. The same for each budget, of the records
-- whose path it is on.
--
-- It is not written with every record, which would be a random row for each charge. After so many postings, an account's records
-- since the last time are added to it; ai_credits.summed_seq says up to where. So what an account has used on a day is what daily
-- usage says and its records since.

-- Whether so much was posted to an account that its records are to be added to daily usage: 64 postings, or four times as many as the
-- present statement posts, the first of which came after p_seq. So it is done in at most one of four statements, and what a history adds
-- up by itself is at most what five statements have posted, or 64.
create or replace function :"schema".ai_credit_is_to_sum(p_account :"schema".ai_credit_account, p_seq bigint) returns boolean
language sql immutable as $$
  select (p_account).seq - (p_account).summed_seq >= greatest(64, 4 * ((p_account).seq - p_seq))
$$;

-- The summed_seq of an account after these postings.
create or replace function :"schema".ai_credit_next_summed(p_account :"schema".ai_credit_account, p_seq bigint) returns bigint
language sql immutable as $$
  select case when :"schema".ai_credit_is_to_sum(p_account, p_seq) then (p_account).seq else (p_account).summed_seq end
$$;

-- What the records of an account after p_seq add up to, by their path, too. p_budget: only those that count in it; null: all.
create or replace function :"schema".ai_credit_used_since(p_user_id varchar, p_budget varchar, p_seq bigint, p_time_zone text)
returns table (day date, operation varchar, metadata jsonb, metadata_hash bytea, used_credits bigint, budgets varchar[])
language sql stable as $$
  select summed.day, summed.operation, summed.metadata, :"schema".ai_credit_hash(summed.metadata), summed.used_credits, summed.budgets
  from (
    select (created_at at time zone p_time_zone)::date as day, record.operation, record.metadata,
      sum(credits_used)::bigint as used_credits, record.budgets
    from :"schema".ai_credit_usage record
    where user_id = p_user_id and seq > p_seq and (p_budget is null or p_budget = any (record.budgets))
    group by 1, 2, 3, 5
  ) summed
$$;

-- Daily usage, as far as it is summed up, of an account or of one of its budgets.
create or replace function :"schema".ai_credit_summed_usage(p_user_id varchar, p_budget varchar)
returns table (day date, used_credits bigint, operation varchar, metadata jsonb, metadata_hash bytea)
language sql stable as $$
  select day, used_credits, operation, metadata, metadata_hash from :"schema".ai_credit_daily_usage
  where p_budget is null and user_id = p_user_id
  union all
  select day, used_credits, operation, metadata, metadata_hash from :"schema".ai_credit_budget_usage
  where user_id = p_user_id and budget = p_budget
$$;

-- Adds to daily usage the records of accounts after their p_summed_seqs. The caller, who holds the accounts' locks, sets their
-- summed_seq to the last posting.
create or replace function :"schema".ai_credit_sum_up(p_user_ids varchar[], p_summed_seqs bigint[]) returns void
language plpgsql as $$
declare
  time_zone text := :"schema".ai_credit_time_zone();
begin
  with recent as materialized (
    select account.user_id, recent.day, recent.operation, recent.metadata_hash, recent.metadata, recent.used_credits, recent.budgets
    from unnest(p_user_ids, p_summed_seqs) as account (user_id, summed_seq),
      lateral :"schema".ai_credit_used_since(account.user_id, null::varchar, account.summed_seq, time_zone) recent
  ), of_account as (
    insert into :"schema".ai_credit_daily_usage as daily (user_id, day, operation, metadata_hash, metadata, used_credits)
    select user_id, day, operation, metadata_hash, (array_agg(metadata))[1], sum(used_credits)
    from recent group by user_id, day, operation, metadata_hash
    on conflict (user_id, day, operation, metadata_hash)
    do update set used_credits = daily.used_credits + excluded.used_credits
  )
  insert into :"schema".ai_credit_budget_usage as daily (user_id, budget, day, operation, metadata_hash, metadata, used_credits)
  select user_id, step.budget, day, operation, metadata_hash, (array_agg(metadata))[1], sum(used_credits)
  from recent, unnest(budgets) as step (budget) group by user_id, step.budget, day, operation, metadata_hash
  on conflict (user_id, budget, day, operation, metadata_hash)
  do update set used_credits = daily.used_credits + excluded.used_credits;
end
$$;

-- Whether an entry comes after another one on a page: newest day first, within a day the largest first.
create or replace function :"schema".ai_credit_comes_after(
  p_day date, p_used bigint, p_operation varchar, p_hash bytea,
  p_other_day date, p_other_used bigint, p_other_operation varchar, p_other_hash bytea
) returns boolean
language sql immutable as $$
  select p_other_day is null or p_day < p_other_day or p_day = p_other_day and (p_used < p_other_used
    or p_used = p_other_used and (p_operation collate "C", p_hash) > (p_other_operation, p_other_hash))
$$;

-- A page of what an account, or one of its budgets (p_budget), has used on each day after p_before_day, entries that refunds have
-- brought to nothing left out. p_after names the last entry of the page before: [day, used, operation, hash]. null: this is the first page.
--
-- The account's records since its summed_seq are on its last days, the first of which daily usage may know as well: these days
-- are added up, and read as a whole. All others are as daily usage has them, found by the primary key's (user_id, day) and sorted
-- within one day at a time.
--
-- Stable, so that all of it sees what the query that calls it sees.
create or replace function :"schema".ai_credit_days(
  p_user_id varchar, p_budget varchar, p_summed_seq bigint, p_before_day date, p_limit bigint, p_after jsonb
) returns table (day date, used_credits bigint, operation varchar, metadata jsonb, metadata_hash bytea)
language plpgsql stable as $$
#variable_conflict use_column
declare
  time_zone text := :"schema".ai_credit_time_zone();
  after_day date := p_after->>0;
  after_used bigint := p_after->>1;
  after_operation varchar := p_after->>2;
  after_hash bytea := decode(p_after->>3, 'hex');
  unsummed_day date;
  found_entries bigint := 0;
begin
  select (created_at at time zone time_zone)::date into unsummed_day
  from :"schema".ai_credit_usage
  where user_id = p_user_id and seq > p_summed_seq and (p_budget is null or p_budget = any (budgets))
  order by seq limit 1;

  if found then
    return query
      select day, used_credits, operation, metadata, metadata_hash
      from (
        select day, sum(used_credits)::bigint as used_credits, operation, (array_agg(metadata))[1] as metadata, metadata_hash
        from (
          select day, used_credits, operation, metadata, metadata_hash
          from :"schema".ai_credit_summed_usage(p_user_id, p_budget) where day >= unsummed_day
          union all
          select day, used_credits, operation, metadata, metadata_hash
          from :"schema".ai_credit_used_since(p_user_id, p_budget, p_summed_seq, time_zone)
        ) known
        where day > p_before_day
        group by day, operation, metadata_hash
      ) added_up
      where used_credits <> 0 and :"schema".ai_credit_comes_after(day, used_credits, operation, metadata_hash,
        after_day, after_used, after_operation, after_hash)
      order by day desc, used_credits desc, operation collate "C", metadata_hash
      limit p_limit;
    get diagnostics found_entries = row_count;
  end if;

  -- Two queries, of one table each. Of both in one PostgreSQL reads all days, and sorts them.
  if found_entries < p_limit and p_budget is null then
    return query
      select day, used_credits, operation, metadata, metadata_hash from :"schema".ai_credit_daily_usage
      where user_id = p_user_id
        and day > p_before_day and day < coalesce(unsummed_day, 'infinity') and used_credits <> 0
        and :"schema".ai_credit_comes_after(day, used_credits, operation, metadata_hash,
          after_day, after_used, after_operation, after_hash)
      order by day desc, used_credits desc, operation collate "C", metadata_hash
      limit p_limit - found_entries;
  elsif found_entries < p_limit then
    return query
      select day, used_credits, operation, metadata, metadata_hash from :"schema".ai_credit_budget_usage
      where user_id = p_user_id and budget = p_budget
        and day > p_before_day and day < coalesce(unsummed_day, 'infinity') and used_credits <> 0
        and :"schema".ai_credit_comes_after(day, used_credits, operation, metadata_hash,
          after_day, after_used, after_operation, after_hash)
      order by day desc, used_credits desc, operation collate "C", metadata_hash
      limit p_limit - found_entries;
  end if;
end
$$;
