-- Pruning: usage records older than a given time go. It goes along each account's postings, by the indexes on
-- (user_id, seq): no index on times has to be kept up to date with every charge.

-- Closes the books of a locked account with at most p_limit further postings, all of them older than p_before. Of these
-- stay: a usage record while one of its refunds is newer, with all its refunds, so that their limit is remembered; holds
-- that were open then, and captures of theirs that have a key; grants, which live on or have the key of a purchase, and
-- what their revoking was answered.
create or replace function :"schema".ai_credit_prune_account(
  p_user_id varchar, p_before timestamptz, p_limit integer, out entries integer, out records integer
)
language plpgsql as $$
declare
  pruned record;
  first_seq bigint := 0; -- after this one, up to and with the last
  last_seq bigint;
  summed_to bigint; -- daily usage has what goes up to and with this posting
  opening record;
  ended bigint[];
  going bigint[];
  oldest bigint; -- of those
  gone bigint := 0;
  counted :"schema".ai_credit_counted[]; -- of those, what counts in budgets
  time_zone text := :"schema".ai_credit_time_zone();
begin
  select seq, credits into pruned from :"schema".ai_credit_pruned where user_id = p_user_id;
  first_seq := coalesce(pruned.seq, 0);
  select least(seq, first_seq + p_limit), coalesce(summed_seq, seq) into last_seq, summed_to
  from :"schema".ai_credits where user_id = p_user_id;
  last_seq := coalesce((
    select seq - 1 from :"schema".ai_credit_entries
    where user_id = p_user_id and kind <> 'opening' and seq > first_seq and seq <= last_seq and created_at >= p_before
    order by seq limit 1), last_seq);
  entries := last_seq - first_seq;
  records := 0;
  if entries <= 0 then
    return;
  end if;
  select created_at, total_after, used_after, held_after into opening from :"schema".ai_credit_entries
  where user_id = p_user_id and seq >= first_seq and seq <= last_seq
  order by seq desc, kind <> 'opening' limit 1;

  if summed_to < last_seq then
    perform :"schema".ai_credit_sum_up(array[p_user_id], array[summed_to]);
    update :"schema".ai_credits set summed_seq = seq where user_id = p_user_id;
  end if;

  -- Here and below || '', + 0, OFFSET 0 and counts: see 'For the planner' in README.md.
  with hold as (
    delete from :"schema".ai_credit_holds
    where user_id || '' = p_user_id and state <> 'open' and closing_seq <= last_seq and id = any(array(
      select hold_id from :"schema".ai_credit_usage
      where user_id = p_user_id and seq > first_seq and seq <= last_seq and kind = 'capture'
      union
      select reference_id from :"schema".ai_credit_events
      where user_id = p_user_id and seq > first_seq and seq <= last_seq and kind in ('release', 'lapse')))
    returning id
  )
  select coalesce(array_agg(id), '{}') into ended from hold;

  with old as (
    select id, seq, case when kind = 'capture' and idempotency_key is not null then hold_id end as hold_id
    from :"schema".ai_credit_usage
    where user_id = p_user_id and seq > first_seq and seq <= last_seq and kind <> 'refund'
    union
    select refund.refunded_id, original.seq,
      case when original.kind = 'capture' and original.idempotency_key is not null then original.hold_id end
    from :"schema".ai_credit_usage refund left join :"schema".ai_credit_usage original on original.id = refund.refunded_id and original.user_id || '' = p_user_id
    where refund.user_id = p_user_id and refund.seq > first_seq and refund.seq <= last_seq and refund.kind = 'refund'
    union
    select capture.id, capture.seq, null from unnest(ended) as hold (id),
      lateral (
        select id, seq from :"schema".ai_credit_usage
        where user_id = p_user_id and hold_id = hold.id and kind = 'capture' and idempotency_key is not null
          and (idempotency_key is not null or :"schema".ai_credit_dear(idempotency_key::text)) offset 0
      ) capture
  ), unneeded as (
    select id, seq from old
    where (select count(*) from :"schema".ai_credit_usage refund
        where refund.user_id = p_user_id and refund.refunded_id = old.id and refund.seq + 0 > last_seq) = 0
      and (select count(*) from :"schema".ai_credit_holds hold where hold.id = old.hold_id and hold.user_id || '' = p_user_id) = 0
  )
  select array_agg(seq), min(seq) into going, oldest
  from (
    select seq from unneeded
    union
    select refund.seq from unneeded,
      lateral (select seq from :"schema".ai_credit_usage where user_id = p_user_id and refunded_id = unneeded.id offset 0) refund
  ) going;

  -- The range, too: see 'For the planner' in README.md.
  with record as (
    delete from :"schema".ai_credit_usage
    where user_id = p_user_id and seq >= oldest and seq <= last_seq and seq = any(going)
    returning seq, credits_used, refunded_id, budgets, created_at, operation, metadata
  )
  select count(*), coalesce(sum(credits_used), 0),
    array_agg(cast(row(
      case when refunded_id is null then seq
        else (select original.seq from :"schema".ai_credit_usage original where original.id = record.refunded_id and original.user_id || '' = p_user_id) end,
      credits_used, budgets, (created_at at time zone time_zone)::date, operation,
      :"schema".ai_credit_hash(metadata)) as :"schema".ai_credit_counted)) filter (where budgets is not null)
  into records, gone, counted
  from record;
  if counted is not null then
    perform :"schema".ai_credit_prune_budgets(p_user_id, counted);
  end if;

  delete from :"schema".ai_credit_events
  where user_id = p_user_id and seq > first_seq and seq <= last_seq and kind <> 'revoke';

  gone := gone + coalesce(pruned.credits, 0);
  insert into :"schema".ai_credit_pruned (user_id, seq, created_at, total_after, used_after, held_after, credits)
  values (p_user_id, last_seq, opening.created_at, opening.total_after, opening.used_after, opening.held_after, gone)
  on conflict (user_id) do update
  set seq = excluded.seq, created_at = excluded.created_at, total_after = excluded.total_after,
      used_after = excluded.used_after, held_after = excluded.held_after, credits = excluded.credits;
end
$$;

-- How far an account has come, and up to where its books are closed.
create or replace function :"schema".ai_credit_books(p_user_id varchar) returns table (seq bigint, pruned_seq bigint)
language sql stable as $$
  select seq, coalesce((select pruned.seq from :"schema".ai_credit_pruned pruned where pruned.user_id = p_user_id), 0)
  from :"schema".ai_credits where user_id = p_user_id
$$;

-- Looks at the accounts p_user_ids in their order, of which p_user_id is one, and closes the books of those that have something older
-- than p_before, with p_batch postings at most. accounts: with how many it is done. verdict: 'accepted', or 'future' (p_before is not
-- in the past; nothing was done).
--
-- It waits for an account only while it holds none: one that is locked elsewhere later on is left for the next call.
create or replace function :"schema".ai_credit_prune(
  p_caller integer, p_user_id varchar, p_user_ids varchar[], p_before timestamptz, p_batch integer, p_lock_timeout integer,
  out verdict varchar, out accounts integer, out records integer
)
security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off set lock_timeout = 0
language plpgsql as $$
declare
  account record;
  done record;
  room integer := p_batch;
  holding boolean := false;
begin
  accounts := 0;
  records := 0;
  if p_before > :"schema".ai_credit_now() then
    verdict := 'future';
    return;
  end if;
  verdict := 'accepted';
  perform set_config('lock_timeout', p_lock_timeout::text, true);
  for account in
    select given.user_id, books.seq, books.pruned_seq
    from unnest(p_user_ids) with ordinality as given (user_id, place), :"schema".ai_credit_books(given.user_id) books
    order by given.place
  loop
    if account.seq > account.pruned_seq and not exists (
      select from :"schema".ai_credit_entries
      where user_id = account.user_id and kind <> 'opening' and seq = account.pruned_seq + 1 and created_at >= p_before
    ) then
      if holding then
        perform from :"schema".ai_credits where user_id = account.user_id for no key update skip locked;
        exit when not found;
      else
        perform from :"schema".ai_credits where user_id = account.user_id for no key update;
        holding := true;
      end if;
      done := :"schema".ai_credit_prune_account(account.user_id, p_before, room);
      records := records + done.records;
      room := room - done.entries;
      exit when room = 0; -- the account may have more
    end if;
    accounts := accounts + 1;
  end loop;
end
$$;
comment on function :"schema".ai_credit_prune(integer, varchar, varchar[], timestamptz, integer, integer)
is 'Deletes old usage records of accounts, in parts.';
