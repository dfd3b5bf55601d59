-- What reads or writes rows of several accounts, as it is on Citus: one account after the other, each by queries that are sent to one
-- place. Within functions.sql, after the functions that these replace.

-- The time zone is part of the function: a query on one node may not ask for it.
do $$
declare
  schema text := current_setting('fastify_ai_credits.schema');
  time_zone text;
begin
  execute format('select value from %I.ai_credit_settings where name = ''time_zone''', schema) into strict time_zone;
  execute format('create or replace function %I.ai_credit_time_zone() returns text language sql immutable as %L',
    schema, format('select %L::text', time_zone));
end
$$;
alter function :"schema".ai_credit_day_start(timestamp, text) immutable;
alter function :"schema".ai_credit_next_renewal(jsonb, timestamptz, timestamptz) immutable;
alter function :"schema".ai_credit_limit_at(:"schema".ai_credit_limit, bigint, text, bigint, timestamptz, bigint, bigint) immutable;

-- Of several accounts each is locked by itself.
create or replace function :"schema".ai_credit_lock_free(p_user_ids varchar[]) returns :"schema".ai_credit_account[]
language sql immutable as $$
  select array_fill(cast(null as :"schema".ai_credit_account), array[cardinality(p_user_ids)])
$$;

create or replace function :"schema".ai_credit_insert_accounts(
  p_user_ids varchar[], p_credits bigint, p_plan jsonb, p_instant timestamptz, p_renewal timestamptz
) returns void
language plpgsql as $$
declare
  missing varchar;
begin
  for missing in
    select user_id from unnest(p_user_ids) as given (user_id) order by user_id collate "C"
  loop
    insert into :"schema".ai_credits (user_id, total_credits, opening_total, created_at, updated_at, plan, renews_at, due_at)
    values (missing, p_credits, p_credits, p_instant, p_instant, p_plan, p_renewal, p_renewal)
    on conflict (user_id) do nothing;
  end loop;
end
$$;

-- What waits may be a statement at another node: a host's transaction is not sent as a whole to where the account is. So the limit is
-- set there. count(*): one row, also without the account.
create or replace function :"schema".ai_credit_limit_waits(p_user_id varchar, p_lock_timeout text) returns text
language plpgsql as $$
declare
  before text;
begin
  select current_setting('lock_timeout'), set_config('lock_timeout', p_lock_timeout, true), count(*) into before
  from :"schema".ai_credits where user_id = p_user_id;
  return before;
end
$$;

-- Lets this session keep the memory of a statement for the next one. Citus writes several rows by COPY, for which it asks for half a
-- megabyte. glibc gives what is above 128 KB back to the system when it is free, so each statement would ask for it anew: that took
-- two fifths of its time. From the first large block on that a process frees, glibc keeps twice as much as that: see
-- M_MMAP_THRESHOLD in mallopt(3). Where memory is another library's, this changes nothing.
create or replace function :"schema".ai_credit_keep_memory() returns void
language plpgsql as $$
declare
  bytes integer := 1000000; -- a variable, so that PostgreSQL does not keep the text in its plan
begin
  if current_setting('fastify_ai_credits.keeps_memory', true) is null then
    perform set_config('fastify_ai_credits.keeps_memory', length(repeat('x'::text, bytes))::text, false);
  end if;
end
$$;

create or replace function :"schema".ai_credit_save_all(
  p_accounts :"schema".ai_credit_account[], p_seqs bigint[], out user_ids varchar[], out summed_seqs bigint[]
)
language plpgsql as $$
declare
  posted :"schema".ai_credit_account;
  summed bigint;
begin
  perform :"schema".ai_credit_keep_memory();
  for place in 1..cardinality(p_accounts) loop
    posted := p_accounts[place];
    summed := :"schema".ai_credit_next_summed(posted, p_seqs[place]);
    continue when posted.obstacle is not null or posted.seq = p_seqs[place] and summed = posted.summed_seq;
    update :"schema".ai_credits
    set total_credits = posted.total_credits, used_credits = posted.used_credits, held_credits = posted.held_credits,
        allocated = posted.allocated, seq = posted.seq, summed_seq = summed, due_at = posted.due_at, updated_at = posted.updated_at
    where user_id = posted.user_id;
    if summed > posted.summed_seq then
      user_ids := array_append(user_ids, posted.user_id);
      summed_seqs := array_append(summed_seqs, posted.summed_seq);
    end if;
  end loop;
end
$$;

create or replace function :"schema".ai_credit_save_holds(p_changed :"schema".ai_credit_hold_state[]) returns bigint
language plpgsql as $$
declare
  changed :"schema".ai_credit_hold_state;
begin
  foreach changed in array p_changed loop
    perform :"schema".ai_credit_save_hold(changed);
  end loop;
  return (select count(distinct (user_id, seq)) from unnest(p_changed));
end
$$;

create or replace function :"schema".ai_credit_make_budgets(p_counting :"schema".ai_credit_counting[]) returns void
language plpgsql as $$
declare
  made record;
begin
  for made in
    select counting.user_id, budget.*
    from unnest(p_counting) as counting, generate_subscripts(counting.budgets, 1) as position,
      lateral :"schema".ai_credit_budget_at(
        counting.user_id, counting.budgets[position], true, counting.begun_seqs[position], counting.instant) budget
    where counting.made_seqs[position] is null and counting.begun_seqs[position] is not null and budget.is_new
  loop
    insert into :"schema".ai_credit_budgets (user_id, budget, within, made_seq, day, week, month, total)
    values (made.user_id, made.budget, made.within, made.made_seq, made.day, made.week, made.month, made.total);
  end loop;
end
$$;

create or replace function :"schema".ai_credit_count_all(
  p_counting :"schema".ai_credit_counting[], p_make boolean, p_tell boolean
) returns text
language plpgsql as $$
declare
  counting :"schema".ai_credit_counting;
  told text;
  all_told jsonb;
begin
  if p_make then
    perform :"schema".ai_credit_make_budgets(p_counting);
  end if;
  foreach counting in array p_counting loop
    continue when counting.user_id is null;
    told := :"schema".ai_credit_count(counting.user_id, array[counting], :"schema".ai_credit_max(), :"schema".ai_credit_max(), p_tell);
    all_told := case when told is null then all_told else coalesce(all_told, '[]') || told::jsonb end;
  end loop;
  return all_told;
end
$$;

create or replace function :"schema".ai_credit_sum_up(p_user_ids varchar[], p_summed_seqs bigint[]) returns void
language plpgsql as $$
declare
  time_zone text := :"schema".ai_credit_time_zone();
  used record;
  in_budget varchar;
begin
  for used in
    select account.user_id, recent.*
    from unnest(p_user_ids, p_summed_seqs) as account (user_id, summed_seq),
      lateral :"schema".ai_credit_used_since(account.user_id, null::varchar, account.summed_seq, time_zone) recent
  loop
    insert into :"schema".ai_credit_daily_usage as daily (user_id, day, operation, metadata_hash, metadata, used_credits)
    values (used.user_id, used.day, used.operation, used.metadata_hash, used.metadata, used.used_credits)
    on conflict (user_id, day, operation, metadata_hash)
    do update set used_credits = daily.used_credits + excluded.used_credits;
    foreach in_budget in array coalesce(used.budgets, '{}') loop
      insert into :"schema".ai_credit_budget_usage as daily (user_id, budget, day, operation, metadata_hash, metadata, used_credits)
      values (used.user_id, in_budget, used.day, used.operation, used.metadata_hash, used.metadata, used.used_credits)
      on conflict (user_id, budget, day, operation, metadata_hash)
      do update set used_credits = daily.used_credits + excluded.used_credits;
    end loop;
  end loop;
end
$$;
