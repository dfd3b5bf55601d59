-- fastify-ai-credits, migration 006: usage records older than a given time can go.
--
-- By hand: psql "$DATABASE_URL" -v ON_ERROR_STOP=1 -f 006_prune.sql, after those before.
-- Functions keep their signatures, so that processes of the version before go on working.

begin;

select pg_advisory_xact_lock(hashtextextended('fastify-ai-credits', 0));
insert into ai_credit_migrations (id) values (6);

-- An account's books are closed up to one of its postings: with that one its statement opens, and of what is older only
-- that stays which something newer still needs. A table of its own, so that charges have no more of an account to write.
create table ai_credit_pruned (
  user_id varchar primary key,
  seq bigint not null,          -- the posting that the books are closed with
  created_at timestamptz not null,
  total_after bigint not null,  -- the balance after it
  used_after bigint not null,
  held_after bigint not null,
  credits bigint not null       -- what the usage records that are gone add up to
);

-- As in 004, but for the opening: it is the last posting that the books were closed with. And without a condition on
-- grants, for which PostgreSQL would sort all of them for one page: those that are no postings, as allowances, have no seq.
create or replace view ai_credit_entries as
select account.user_id, coalesce(pruned.seq, 0) as seq, 'opening'::varchar as kind,
  coalesce(pruned.created_at, account.created_at) as created_at,
  coalesce(pruned.total_after - pruned.used_after - pruned.held_after, opening_total - opening_used) as amount,
  null::bigint as id, null::varchar as operation, null::jsonb as metadata, null::varchar as reason,
  null::bigint as reference_id, null::jsonb as details,
  coalesce(pruned.total_after, opening_total) as total_after, coalesce(pruned.used_after, opening_used) as used_after,
  coalesce(pruned.held_after, 0) as held_after, null::varchar as price_version, null::jsonb as quantities
from ai_credits account left join ai_credit_pruned pruned using (user_id)
union all
select user_id, seq, kind, created_at, coalesce(amount, -credits_used), id, operation, metadata, reason,
  coalesce(hold_id, refunded_id), null, total_after, used_after, held_after, price_version, quantities
from ai_credit_usage
union all
select user_id, seq, 'hold', created_at, -credits, id, operation, metadata, null, null, null,
  total_after, used_after, held_after, null, null
from ai_credit_holds
union all
select user_id, seq, 'grant', created_at, credits, id, null, null, reason, null, null,
  total_after, used_after, held_after, null, null
from ai_credit_grants
union all
select user_id, seq, kind, created_at, amount, null, null, null, null, reference_id, details,
  total_after, used_after, held_after, null, null
from ai_credit_events;

-- As in 004; what was kept of closed books is not told.
create or replace function ai_credit_statement(
  p_user_id varchar, p_from timestamptz, p_to timestamptz, p_after_seq bigint, p_limit integer,
  p_allowance jsonb, p_lock_timeout integer, out entries varchar
)
language plpgsql as $$
declare
  opening_seq bigint;
begin
  perform ai_credit_balance(p_user_id, p_allowance, p_lock_timeout);
  opening_seq := coalesce((select seq from ai_credit_pruned where user_id = p_user_id), 0);
  select coalesce(json_agg(json_build_array(seq, kind, ai_credit_iso(created_at), amount, total_after, used_after,
      held_after, id::varchar, reference_id::varchar, operation, metadata, reason, details, price_version, quantities)
      order by seq), '[]')::varchar
  into entries
  from (
    select * from ai_credit_entries
    where user_id = p_user_id and seq > p_after_seq and seq >= opening_seq and (seq > opening_seq or kind = 'opening')
      and (p_from is null or created_at >= p_from) and (p_to is null or created_at < p_to)
    order by seq
    limit p_limit
  ) page;
end
$$;

-- As in 002, with what is gone: its credits count as recorded, and its postings as entries.
create or replace function ai_credit_reconcile(p_user_id varchar, p_after_user_id varchar, p_limit integer)
returns table (user_id varchar, total bigint, used bigint, held bigint,
  spent bigint, recorded bigint, summed bigint, holding bigint, granted bigint, covered bigint, entries bigint, seq bigint)
language sql stable
begin atomic
  select account.user_id, account.total_credits, account.used_credits, account.held_credits,
    account.spent_before + account.used_credits,
    (select coalesce(sum(credits_used), 0) from ai_credit_usage where user_id = account.user_id) + gone.credits,
    (select coalesce(sum(used_credits), 0) from ai_credit_daily_usage where user_id = account.user_id),
    hold.credits,
    account.total_credits - account.used_credits,
    case when living.grants = 0 then account.total_credits else living.credits + hold.pinned end
      - (account.spent_before + account.used_credits - account.allocated),
    (select count(distinct entry.seq) from ai_credit_entries entry
      where entry.user_id = account.user_id and entry.kind <> 'opening' and entry.seq > gone.seq) + gone.seq,
    account.seq
  from ai_credits account,
    lateral (
      select coalesce(sum(credits_left), 0)::bigint as credits, coalesce(sum(pinned), 0)::bigint as pinned
      from ai_credit_holds where user_id = account.user_id and state = 'open'
    ) hold,
    lateral (
      select count(*) as grants, coalesce(sum(credits_left) filter (where state = 'living'), 0)::bigint as credits
      from ai_credit_grants where user_id = account.user_id
    ) living,
    lateral (
      select coalesce(max(pruned.seq), 0) as seq, coalesce(max(pruned.credits), 0) as credits
      from ai_credit_pruned pruned where pruned.user_id = account.user_id
    ) gone
  where (p_user_id is null or account.user_id = p_user_id) and (p_after_user_id is null or account.user_id > p_after_user_id)
  order by account.user_id
  limit p_limit;
end;

----------------------------------------------------------------------------------------------------------------------
-- Pruning. It goes along each account's postings, by the indexes on (user_id, seq): no index on times has to be kept up
-- to date with every charge.
----------------------------------------------------------------------------------------------------------------------

-- Closes the books of a locked account with at most p_limit further postings, all of them older than p_before. Of these
-- stay: a usage record while one of its refunds is newer, with all its refunds, so that their limit is remembered; holds
-- that were open then, and captures of theirs that have a key; grants, which live on or have the key of a purchase, and
-- what their revoking was answered.
create function ai_credit_prune_account(
  p_user_id varchar, p_before timestamptz, p_limit integer, out entries integer, out records integer
)
language plpgsql set enable_seqscan = off as $$
declare
  pruned ai_credit_pruned;
  first_seq bigint := 0; -- after this one, up to and with the last
  last_seq bigint;
  opening ai_credit_entries;
  ended bigint[];
  going bigint[];
  oldest bigint; -- of those
  gone bigint := 0;
begin
  select * into pruned from ai_credit_pruned where user_id = p_user_id;
  first_seq := coalesce(pruned.seq, 0);
  select least(seq, first_seq + p_limit) into last_seq from ai_credits where user_id = p_user_id;
  last_seq := coalesce((
    select seq - 1 from ai_credit_entries
    where user_id = p_user_id and kind <> 'opening' and seq > first_seq and seq <= last_seq and created_at >= p_before
    order by seq limit 1), last_seq);
  entries := last_seq - first_seq;
  records := 0;
  if entries <= 0 then
    return;
  end if;
  select * into opening from ai_credit_entries
  where user_id = p_user_id and seq >= first_seq and seq <= last_seq
  order by seq desc, kind <> 'opening' limit 1;

  -- Here and below, || '' and + 0 and OFFSET 0: else PostgreSQL may look through all of the account for what has an index.
  with hold as (
    delete from ai_credit_holds
    where user_id || '' = p_user_id and state <> 'open' and closing_seq <= last_seq and id = any(array(
      select hold_id from ai_credit_usage
      where user_id = p_user_id and seq > first_seq and seq <= last_seq and kind = 'capture'
      union
      select reference_id from ai_credit_events
      where user_id = p_user_id and seq > first_seq and seq <= last_seq and kind in ('release', 'lapse')))
    returning id
  )
  select coalesce(array_agg(id), '{}') into ended from hold;

  -- Counted rather than asked for with EXISTS, which PostgreSQL may answer for all of the account at once.
  with old as (
    select id, seq, case when kind = 'capture' and idempotency_key is not null then hold_id end as hold_id
    from ai_credit_usage
    where user_id = p_user_id and seq > first_seq and seq <= last_seq and kind <> 'refund'
    union
    select refund.refunded_id, original.seq,
      case when original.kind = 'capture' and original.idempotency_key is not null then original.hold_id end
    from ai_credit_usage refund left join ai_credit_usage original on original.id = refund.refunded_id
    where refund.user_id = p_user_id and refund.seq > first_seq and refund.seq <= last_seq and refund.kind = 'refund'
    union
    select capture.id, capture.seq, null from unnest(ended) as hold (id),
      lateral (
        select id, seq from ai_credit_usage
        where user_id = p_user_id and hold_id = hold.id and kind = 'capture' and idempotency_key is not null offset 0
      ) capture
  ), unneeded as (
    select id, seq from old
    where (select count(*) from ai_credit_usage refund
        where refund.user_id = p_user_id and refund.refunded_id = old.id and refund.seq + 0 > last_seq) = 0
      and (select count(*) from ai_credit_holds hold where hold.id = old.hold_id and hold.user_id || '' = p_user_id) = 0
  )
  select array_agg(seq), min(seq) into going, oldest
  from (
    select seq from unneeded
    union
    select refund.seq from unneeded,
      lateral (select seq from ai_credit_usage where user_id = p_user_id and refunded_id = unneeded.id offset 0) refund
  ) going;

  -- The range for PostgreSQL before 17, which looks through all of the account for so many.
  with record as (
    delete from ai_credit_usage
    where user_id = p_user_id and seq >= oldest and seq <= last_seq and seq = any(going)
    returning credits_used
  )
  select count(*), coalesce(sum(credits_used), 0) into records, gone from record;

  delete from ai_credit_events
  where user_id = p_user_id and seq > first_seq and seq <= last_seq and kind <> 'revoke';

  gone := gone + coalesce(pruned.credits, 0);
  insert into ai_credit_pruned (user_id, seq, created_at, total_after, used_after, held_after, credits)
  values (p_user_id, last_seq, opening.created_at, opening.total_after, opening.used_after, opening.held_after, gone)
  on conflict (user_id) do update
  set seq = excluded.seq, created_at = excluded.created_at, total_after = excluded.total_after,
      used_after = excluded.used_after, held_after = excluded.held_after, credits = excluded.credits;
end
$$;

-- Looks at accounts from p_from on, at 1000 at most, and closes the books of those that have something older than
-- p_before, with p_batch postings at most. next: the account to go on with; null: there are no more. accounts: with how
-- many it is done. verdict: 'accepted', or 'future' (p_before is not in the past; nothing was done).
--
-- It waits for an account only while it holds none: one that is locked elsewhere later on is left for the next call.
create function ai_credit_prune(
  p_before timestamptz, p_from varchar, p_batch integer, p_lock_timeout integer,
  out verdict varchar, out next varchar, out accounts integer, out records integer
)
language plpgsql set lock_timeout = 0 set enable_seqscan = off as $$
declare
  account record;
  done record;
  room integer := p_batch;
  holding boolean := false;
begin
  accounts := 0;
  records := 0;
  if p_before > statement_timestamp() then
    verdict := 'future';
    return;
  end if;
  verdict := 'accepted';
  perform set_config('lock_timeout', p_lock_timeout::text, true);
  for account in
    select user_id, seq, coalesce((select pruned.seq from ai_credit_pruned pruned where pruned.user_id = found.user_id), 0)
      as pruned_seq
    from ai_credits found where user_id >= p_from order by user_id limit 1001
  loop
    next := account.user_id;
    exit when accounts = 1000;
    if account.seq > account.pruned_seq and not exists (
      select from ai_credit_entries
      where user_id = next and kind <> 'opening' and seq = account.pruned_seq + 1 and created_at >= p_before
    ) then
      if holding then
        perform from ai_credits where user_id = next for update skip locked;
        exit when not found;
      else
        perform from ai_credits where user_id = next for update;
        holding := true;
      end if;
      done := ai_credit_prune_account(next, p_before, room);
      records := records + done.records;
      room := room - done.entries;
      exit when room = 0; -- the account may have more
    end if;
    accounts := accounts + 1;
    next := null;
  end loop;
end
$$;

----------------------------------------------------------------------------------------------------------------------
-- What finds its row before it locks the account: the row may be gone by then. Else as in 002, 003 and 004.
----------------------------------------------------------------------------------------------------------------------

create or replace function ai_credit_refund(
  p_record_id bigint, p_user_id varchar, p_deduct_key varchar, p_credits bigint, p_reason varchar,
  p_idempotency_key varchar, p_allowance jsonb, p_time_zone varchar, p_lock_timeout integer,
  out verdict varchar, out user_id varchar, out usage_id bigint, out record_id bigint, out credits bigint,
  out total bigint, out used bigint, out held bigint
)
language plpgsql as $$
#variable_conflict use_column
declare
  account ai_credits;
  original ai_credit_usage;
  earlier ai_credit_usage;
  record ai_credit_usage;
  refundable bigint;
  debt bigint;
  in_period bigint; -- what was spent in this period is taken from used, the rest was spent before
begin
  if p_record_id is null then
    select * into original from ai_credit_usage
    where user_id = p_user_id and kind = 'deduct' and idempotency_key = p_deduct_key;
  else
    select * into original from ai_credit_usage
    where id = p_record_id and kind <> 'refund' and user_id = coalesce(p_user_id, user_id);
  end if;
  if not found then
    verdict := 'missing';
    return;
  end if;
  ai_credit_refund.user_id := original.user_id;
  usage_id := original.id;
  account := ai_credit_lock(original.user_id, p_allowance, p_lock_timeout);
  if not exists (select from ai_credit_usage where id = original.id) then
    verdict := 'missing';
    return;
  end if;

  record.request_hash := ai_credit_hash(jsonb_build_array(original.id, p_credits, p_reason));
  if p_idempotency_key is not null then
    select * into earlier from ai_credit_usage
    where user_id = account.user_id and kind = 'refund' and idempotency_key = p_idempotency_key;
    if found then
      verdict := case when earlier.request_hash = record.request_hash then 'replayed' else 'conflict' end;
      record_id := earlier.id;
      credits := -earlier.credits_used;
      total := earlier.total_after;
      used := earlier.used_after;
      held := earlier.held_after;
      return;
    end if;
  end if;

  select original.credits_used + coalesce(sum(credits_used), 0) into refundable
  from ai_credit_usage where user_id = account.user_id and refunded_id = original.id;
  credits := coalesce(p_credits, refundable);
  in_period := least(credits, greatest(0, account.used_credits));
  if credits > refundable or credits = 0 then
    verdict := 'exceeds';
  elsif account.total_credits > ai_credit_max() - (credits - in_period) then
    verdict := 'overflow';
  else
    verdict := 'accepted';
    account := ai_credit_allocate(account);
    debt := account.spent_before + account.used_credits - account.allocated;
    account.used_credits := account.used_credits - in_period;
    account.spent_before := account.spent_before - (credits - in_period);
    account.total_credits := account.total_credits + (credits - in_period);
    if credits > debt then
      account := ai_credit_give_back(account, credits - debt);
    end if;
    account.seq := account.seq + 1;
    record.kind := 'refund';
    record.credits_used := -credits;
    record.operation := original.operation;
    record.metadata := original.metadata;
    record.idempotency_key := p_idempotency_key;
    record.refunded_id := original.id;
    record.reason := p_reason;
    record_id := ai_credit_post(account, record, p_time_zone);
  end if;
  total := account.total_credits;
  used := account.used_credits;
  held := account.held_credits;
end
$$;

create or replace function ai_credit_capture(
  p_hold_id bigint, p_user_id varchar, p_credits bigint, p_metadata jsonb, p_final boolean, p_shortfall varchar,
  p_idempotency_key varchar, p_operation varchar, p_price_version varchar, p_quantities jsonb,
  p_allowance jsonb, p_time_zone varchar, p_lock_timeout integer,
  out verdict varchar, out user_id varchar, out record_id bigint, out credits bigint, out uncollected bigint,
  out required bigint, out total bigint, out used bigint, out held bigint
)
language plpgsql set enable_seqscan = off as $$
declare
  account ai_credits;
  hold ai_credit_holds;
  decided record;
  answer ai_credit_answer;
begin
  user_id := ai_credit_hold_user(p_hold_id, p_user_id);
  if user_id is null then
    verdict := 'missing';
    return;
  end if;
  account := ai_credit_lock(user_id, p_allowance, p_lock_timeout);
  select * into hold from ai_credit_holds where id = p_hold_id;
  if not found then
    verdict := 'missing';
    return;
  end if;
  decided := ai_credit_decide_capture(account, hold, p_credits, p_metadata, p_final, p_shortfall, p_idempotency_key,
    p_operation, p_price_version, p_quantities);
  answer := decided.answer;
  if answer.verdict = 'accepted' then
    perform ai_credit_save_hold(decided.hold);
    perform ai_credit_post(decided.account, decided.record, p_time_zone);
  end if;
  verdict := answer.verdict;
  record_id := answer.id;
  credits := answer.credits;
  uncollected := answer.uncollected;
  required := answer.required;
  total := answer.total;
  used := answer.used;
  held := answer.held;
end
$$;

create or replace function ai_credit_release(
  p_hold_id bigint, p_user_id varchar, p_allowance jsonb, p_lock_timeout integer,
  out verdict varchar, out user_id varchar, out credits bigint, out total bigint, out used bigint, out held bigint
)
language plpgsql as $$
declare
  account ai_credits;
  hold ai_credit_holds;
  decided record;
  answer ai_credit_answer;
begin
  user_id := ai_credit_hold_user(p_hold_id, p_user_id);
  if user_id is null then
    verdict := 'missing';
    return;
  end if;
  account := ai_credit_lock(user_id, p_allowance, p_lock_timeout);
  select * into hold from ai_credit_holds where id = p_hold_id;
  if not found then
    verdict := 'missing';
    return;
  end if;
  decided := ai_credit_decide_release(account, hold);
  answer := decided.answer;
  if answer.verdict = 'accepted' then
    perform ai_credit_save_hold(decided.hold);
    perform ai_credit_save(decided.account);
  end if;
  verdict := answer.verdict;
  credits := answer.credits;
  total := answer.total;
  used := answer.used;
  held := answer.held;
end
$$;

alter function ai_credit_refund set enable_seqscan = off;
alter function ai_credit_release set enable_seqscan = off;

commit;
