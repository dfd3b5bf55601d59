-- fastify-ai-credits, migration 003: calls that share a statement.
--
-- By hand: psql "$DATABASE_URL" -v ON_ERROR_STOP=1 -f 003_group_commit.sql, after 002.
-- The functions of 001 and 002 keep their signatures, so that processes of the version before go on working.

begin;

select pg_advisory_xact_lock(hashtextextended('fastify-ai-credits', 0));
insert into ai_credit_migrations (id) values (3);

-- Ids are taken before their rows are written, so an adopted table's sequence gets the name that ours has.
do $$
declare
  sequence regclass := pg_get_serial_sequence('ai_credit_usage', 'id');
begin
  if sequence is distinct from to_regclass('ai_credit_usage_id_seq') then
    execute format('alter sequence %s rename to ai_credit_usage_id_seq', sequence);
  end if;
end
$$;

----------------------------------------------------------------------------------------------------------------------
-- Locking, as in 002
----------------------------------------------------------------------------------------------------------------------

-- p_lock_timeout null: an account that is missing or locked elsewhere is not waited for; the answer is null.
create or replace function ai_credit_lock(p_user_id varchar, p_allowance jsonb, p_lock_timeout integer)
returns ai_credits
language plpgsql as $$
declare
  account ai_credits;
begin
  select * into account from ai_credits where user_id = p_user_id for update skip locked;
  if not found then
    if p_lock_timeout is null then
      return null;
    end if;
    account := ai_credit_lock_waiting(p_user_id, p_allowance, p_lock_timeout);
  end if;
  account.updated_at := greatest(statement_timestamp(), account.updated_at);
  if account.due_at <= account.updated_at then
    account := ai_credit_settle(account, account.updated_at, p_allowance);
  end if;
  return account;
end
$$;

----------------------------------------------------------------------------------------------------------------------
-- Captures and releases, for a call that goes alone and for one that shares its statement: each function is handed a
-- locked account and the hold as it is, and answers both as they will be, and what the caller is told.
----------------------------------------------------------------------------------------------------------------------

-- verdict: as before. id: of the usage record. null: nothing to say.
create type ai_credit_answer as (
  verdict varchar, id bigint, total bigint, used bigint, held bigint, credits bigint, uncollected bigint, required bigint
);

create function ai_credit_decide_capture(
  inout account ai_credits, inout hold ai_credit_holds, p_credits bigint, p_metadata jsonb, p_final boolean,
  p_shortfall varchar, p_idempotency_key varchar, out record ai_credit_usage, out answer ai_credit_answer
)
language plpgsql as $$
declare
  earlier ai_credit_usage;
  hash bytea := ai_credit_hash(jsonb_build_array(p_credits, p_metadata, p_final, p_shortfall));
  available bigint := account.total_credits - account.used_credits - account.held_credits;
  required bigint := coalesce(p_credits, hold.credits_left);
  own bigint;     -- of those required, what the hold covers
  extra bigint;   -- and what it does not, so far as it is available
  pinned bigint;  -- of the own, what was kept from grants that have ended
begin
  if p_idempotency_key is not null then
    select * into earlier from ai_credit_usage
    where user_id = account.user_id and kind = 'capture' and hold_id = hold.id and idempotency_key = p_idempotency_key;
  elsif hold.state = 'captured' and hold.closing_hash = hash then
    select * into earlier from ai_credit_usage where user_id = account.user_id and seq = hold.closing_seq;
  end if;
  if earlier.id is not null then
    answer.verdict := case when earlier.request_hash = hash then 'replayed' else 'conflict' end;
    answer.id := earlier.id;
    answer.total := earlier.total_after;
    answer.used := earlier.used_after;
    answer.held := earlier.held_after;
    answer.credits := earlier.credits_used;
    answer.uncollected := earlier.uncollected;
    return;
  end if;

  own := case hold.state when 'open' then least(required, hold.credits_left) else 0 end;
  extra := least(required - own, greatest(0, available + account.overdraft));
  answer.required := required;
  if hold.state not in ('open', 'lapsed') then
    answer.verdict := 'closed';
  elsif own + extra < required and p_shortfall = 'reject' then
    answer.verdict := 'insufficient';
  else
    answer.verdict := 'accepted';
    pinned := least(own, hold.pinned);
    account.allocated := account.allocated + pinned;
    account.held_credits := account.held_credits - own;
    account.used_credits := account.used_credits + own + extra;
    account.seq := account.seq + 1;
    if hold.state = 'open' then
      hold.credits_left := hold.credits_left - own;
      hold.pinned := hold.pinned - pinned;
    end if;
    if p_final or hold.state = 'lapsed' then -- one that has lapsed gave back what it held
      if hold.state = 'open' then
        account.held_credits := account.held_credits - hold.credits_left;
        account.total_credits := account.total_credits - hold.pinned;
      end if;
      hold.state := 'captured';
      hold.credits_left := 0;
      hold.pinned := 0;
      hold.closing_seq := account.seq;
      hold.closing_hash := hash;
    end if;
    record.id := nextval('ai_credit_usage_id_seq');
    record.user_id := account.user_id;
    record.seq := account.seq;
    record.kind := 'capture';
    record.credits_used := own + extra;
    record.operation := hold.operation;
    record.metadata := hold.metadata || coalesce(p_metadata, '{}');
    record.created_at := account.updated_at;
    record.total_after := account.total_credits;
    record.used_after := account.used_credits;
    record.held_after := account.held_credits;
    record.idempotency_key := p_idempotency_key;
    record.request_hash := hash;
    record.hold_id := hold.id;
    record.amount := account.total_credits - account.used_credits - account.held_credits - available;
    record.uncollected := required - own - extra;
    answer.id := record.id;
    answer.credits := record.credits_used;
    answer.uncollected := record.uncollected;
  end if;
  answer.total := account.total_credits;
  answer.used := account.used_credits;
  answer.held := account.held_credits;
end
$$;

-- The event is written at once. One that has lapsed already gave back what it held.
create function ai_credit_decide_release(
  inout account ai_credits, inout hold ai_credit_holds, out answer ai_credit_answer
)
language plpgsql as $$
declare
  event ai_credit_events;
begin
  if hold.state = 'captured' then
    answer.verdict := 'closed';
    return;
  end if;
  answer.verdict := 'replayed';
  if hold.state = 'open' then
    answer.verdict := 'accepted';
    account.held_credits := account.held_credits - hold.credits_left;
    account.total_credits := account.total_credits - hold.pinned;
    account := ai_credit_note(account, 'release', account.updated_at, hold.credits_left - hold.pinned, hold.id, null);
    hold.state := 'released';
    hold.credits_left := 0;
    hold.pinned := 0;
    hold.closing_seq := account.seq;
  end if;
  select * into event from ai_credit_events where user_id = account.user_id and seq = hold.closing_seq;
  answer.total := event.total_after;
  answer.used := event.used_after;
  answer.held := event.held_after;
  answer.credits := event.amount;
end
$$;

create function ai_credit_save_hold(p_hold ai_credit_holds) returns void
language plpgsql as $$
begin
  update ai_credit_holds
  set state = p_hold.state, credits_left = p_hold.credits_left, pinned = p_hold.pinned,
      closing_seq = p_hold.closing_seq, closing_hash = p_hold.closing_hash
  where user_id = p_hold.user_id and seq = p_hold.seq;
end
$$;

-- As in 002.
create or replace function ai_credit_capture(
  p_hold_id bigint, p_user_id varchar, p_credits bigint, p_metadata jsonb, p_final boolean, p_shortfall varchar,
  p_idempotency_key varchar, p_allowance jsonb, p_time_zone varchar, p_lock_timeout integer,
  out verdict varchar, out user_id varchar, out record_id bigint, out credits bigint, out uncollected bigint,
  out required bigint, out total bigint, out used bigint, out held bigint
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
  decided := ai_credit_decide_capture(account, hold, p_credits, p_metadata, p_final, p_shortfall, p_idempotency_key);
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

----------------------------------------------------------------------------------------------------------------------
-- Posting
----------------------------------------------------------------------------------------------------------------------

-- As in 002, except that the record may have its id already.
create or replace function ai_credit_post(p_account ai_credits, p_record ai_credit_usage, p_time_zone varchar)
returns bigint
language plpgsql as $$
declare
  record_id bigint := coalesce(p_record.id, nextval('ai_credit_usage_id_seq'));
begin
  -- What spending changes, and no more: this is every deduct's path.
  update ai_credits
  set total_credits = p_account.total_credits, used_credits = p_account.used_credits,
      held_credits = p_account.held_credits, spent_before = p_account.spent_before, allocated = p_account.allocated,
      seq = p_account.seq, updated_at = p_account.updated_at
  where user_id = p_account.user_id;

  insert into ai_credit_usage (id, user_id, seq, kind, credits_used, operation, metadata, created_at,
    total_after, used_after, held_after, idempotency_key, request_hash,
    hold_id, amount, uncollected, refunded_id, reason)
  values (record_id, p_account.user_id, p_account.seq, p_record.kind, p_record.credits_used, p_record.operation,
    p_record.metadata, p_account.updated_at, p_account.total_credits, p_account.used_credits,
    p_account.held_credits, p_record.idempotency_key, p_record.request_hash,
    p_record.hold_id, p_record.amount, p_record.uncollected, p_record.refunded_id, p_record.reason);

  insert into ai_credit_daily_usage as daily (user_id, day, operation, metadata_hash, metadata, used_credits)
  values (p_account.user_id, (p_account.updated_at at time zone p_time_zone)::date, p_record.operation,
    ai_credit_hash(p_record.metadata), p_record.metadata, p_record.credits_used)
  on conflict (user_id, day, operation, metadata_hash)
  do update set used_credits = daily.used_credits + excluded.used_credits;

  return record_id;
end
$$;


-- Posts what several calls have come to: accounts, usage records with their daily usage, new holds, and holds that changed.
create function ai_credit_post_all(
  p_accounts ai_credits[], p_records ai_credit_usage[], p_holds ai_credit_holds[], p_changed ai_credit_holds[],
  p_time_zone varchar
) returns void
language plpgsql as $$
declare
  written integer;
begin
  update ai_credits account
  set total_credits = posted.total_credits, used_credits = posted.used_credits, held_credits = posted.held_credits,
      allocated = posted.allocated, seq = posted.seq, due_at = posted.due_at, updated_at = posted.updated_at
  from unnest(p_accounts) posted
  where account.user_id = posted.user_id and account.seq < posted.seq;

  if cardinality(p_records) > 0 then
    insert into ai_credit_usage (id, user_id, seq, kind, credits_used, operation, metadata, created_at,
      total_after, used_after, held_after, idempotency_key, request_hash, hold_id, amount, uncollected)
    select id, user_id, seq, kind, credits_used, operation, metadata, created_at,
      total_after, used_after, held_after, idempotency_key, request_hash, hold_id, amount, uncollected
    from unnest(p_records);

    insert into ai_credit_daily_usage as daily (user_id, day, operation, metadata_hash, metadata, used_credits)
    select user_id, (created_at at time zone p_time_zone)::date, operation, ai_credit_hash(metadata), metadata, spent
    from (
      select user_id, created_at, operation, metadata, sum(credits_used) as spent
      from unnest(p_records)
      group by user_id, created_at, operation, metadata
    ) summed
    on conflict (user_id, day, operation, metadata_hash)
    do update set used_credits = daily.used_credits + excluded.used_credits;
  end if;

  if cardinality(p_holds) > 0 then
    insert into ai_credit_holds (id, user_id, seq, credits, credits_left, operation, metadata, ttl, created_at, expires_at,
      total_after, used_after, held_after, idempotency_key, request_hash)
    select id, user_id, seq, credits, credits, operation, metadata, ttl, created_at, expires_at,
      total_after, used_after, held_after, idempotency_key, request_hash
    from unnest(p_holds);
  end if;

  if cardinality(p_changed) > 0 then
    update ai_credit_holds hold
    set state = changed.state, credits_left = changed.credits_left, pinned = changed.pinned,
        closing_seq = changed.closing_seq, closing_hash = changed.closing_hash
    from unnest(p_changed) changed
    where hold.user_id = changed.user_id and hold.seq = changed.seq;
    get diagnostics written = row_count;
    if written <> cardinality(p_changed) then -- else a hold would be spent twice
      raise cardinality_violation using message = 'calls of one statement are about the same hold';
    end if;
  end if;
end
$$;

----------------------------------------------------------------------------------------------------------------------
-- Group commit: the calls of one statement
----------------------------------------------------------------------------------------------------------------------

-- What a capture or a release is told, in numbers.
create function ai_credit_numbers(p_answer ai_credit_answer) returns bigint[]
language sql immutable
return array[
  case (p_answer).verdict when 'accepted' then 1 when 'replayed' then 2 when 'conflict' then 3 when 'insufficient' then 4
    else 6 end,
  coalesce((p_answer).id, 0), coalesce((p_answer).total, 0), coalesce((p_answer).used, 0), coalesce((p_answer).held, 0),
  coalesce((p_answer).credits, 0), coalesce((p_answer).uncollected, 0), coalesce((p_answer).required, 0)];

-- Runs calls on the accounts p_user_ids, those on one account side by side and in order. Each is a JSON array that begins
-- with the account's place in p_user_ids:
--   [place, 'deduct', key, credits, operation, metadata]
--   [place, 'hold', key, credits, operation, metadata, milliseconds to live]
--   [place, 'capture', key, credits, null, metadata, hold, final, shortfall]
--   [place, 'release', null, null, null, null, hold]
-- No two calls on one account may have the same key or the same hold.
--
-- It waits for no account: all are locked first, and one that is missing or locked elsewhere is left out. The answer is
-- made of numbers: for each call the verdict (1 accepted, 2 replayed, 3 conflict, 4 insufficient, 5 missing, 6 closed; or
-- 0, left out, and nothing more), then id, total, used and held, then of a hold when it expires (in milliseconds), of a
-- capture or a release credits, uncollected and required. 0 stands for none.
--
-- Long and flat for a reason: a call of another function costs a tenth of a deduct. One plan serves all calls, as
-- PostgreSQL would plan anew for each array.
create function ai_credit_execute(p_user_ids varchar[], p_calls jsonb, p_allowance jsonb, p_time_zone varchar)
returns bigint[]
language plpgsql set plan_cache_mode = force_generic_plan set enable_seqscan = off as $$
declare
  user_id varchar;
  accounts ai_credits[] := '{}';
  account ai_credits;
  place integer := 0;
  call record;
  decided record;
  record ai_credit_usage;
  records ai_credit_usage[] := '{}';
  hold ai_credit_holds;
  holds ai_credit_holds[] := '{}';
  changed ai_credit_holds[] := '{}';
  number bigint;
  told bigint[];
  answers bigint[] := '{}';
begin
  foreach user_id in array p_user_ids loop
    accounts := array_append(accounts, ai_credit_lock(user_id, p_allowance, null));
  end loop;

  for call in
    select given.*,
      case when key is not null then ai_credit_hash(case kind
        when 'deduct' then jsonb_build_array(credits, operation, metadata)
        when 'hold' then jsonb_build_array(credits, operation, metadata, detail) end) end as hash,
      -- what the key was used for before, and how that is answered
      case when key is null then null
        when kind = 'deduct' then (
          select array[case when request_hash = ai_credit_hash(
            jsonb_build_array(given.credits, given.operation, given.metadata)) then 2 else 3 end,
            id, total_after, used_after, held_after]
          from ai_credit_usage spent
          where spent.user_id = given.user_id and spent.kind = 'deduct' and idempotency_key = given.key)
        when kind = 'hold' then (
          select array[case when request_hash = ai_credit_hash(
            jsonb_build_array(given.credits, given.operation, given.metadata, given.detail)) then 2 else 3 end,
            id, total_after, used_after, held_after, floor(extract(epoch from created_at) * 1000)::bigint + ttl]
          from ai_credit_holds made
          where made.user_id = given.user_id and idempotency_key = given.key) end as earlier,
      case when kind in ('capture', 'release') then (
        select made from ai_credit_holds made where id = given.detail) end as hold
    from (
      select (c->0)::integer as place, p_user_ids[(c->0)::integer] as user_id, c->>1 as kind, c->>2 as key,
        (c->>3)::bigint as credits, c->>4 as operation, c->5 as metadata, (c->>6)::bigint as detail, c
      from jsonb_array_elements(p_calls) c
      offset 0 -- so that the conditions above are plain: else they count as dear, and the wrong index seems cheaper
    ) given
  loop
    if place <> call.place then
      if place > 0 then
        accounts[place] := account;
      end if;
      place := call.place;
      account := accounts[place];
      record.user_id := account.user_id;
      record.created_at := account.updated_at;
    end if;

    if account.user_id is null then
      answers := array_append(answers, 0::bigint);
      continue;

    elsif call.kind = 'capture' or call.kind = 'release' then
      if (call.hold).user_id is distinct from account.user_id then
        told := array[5, 0, 0, 0, 0, 0, 0, 0];
      elsif call.kind = 'capture' then
        decided := ai_credit_decide_capture(account, call.hold, call.credits, nullif(call.metadata, 'null'),
          (call.c->>7)::boolean, call.c->>8, call.key);
        told := ai_credit_numbers(decided.answer);
        if told[1] = 1 then
          records := array_append(records, decided.record);
        end if;
      else
        decided := ai_credit_decide_release(account, call.hold);
        told := ai_credit_numbers(decided.answer);
      end if;
      if told[1] = 1 then
        account := decided.account;
        changed := array_append(changed, decided.hold);
      end if;
      foreach number in array told loop
        answers := array_append(answers, number);
      end loop;
      continue;

    elsif call.earlier is not null then
      foreach number in array call.earlier loop
        answers := array_append(answers, number);
      end loop;
      continue;

    elsif account.total_credits - account.used_credits - account.held_credits + account.overdraft < call.credits then
      answers := array_append(answers, 4::bigint);
      answers := array_append(answers, 0::bigint);

    elsif call.kind = 'deduct' then
      account.used_credits := account.used_credits + call.credits;
      account.seq := account.seq + 1;
      record.id := nextval('ai_credit_usage_id_seq');
      record.seq := account.seq;
      record.kind := 'deduct';
      record.credits_used := call.credits;
      record.operation := call.operation;
      record.metadata := call.metadata;
      record.total_after := account.total_credits;
      record.used_after := account.used_credits;
      record.held_after := account.held_credits;
      record.idempotency_key := call.key;
      record.request_hash := call.hash;
      records := array_append(records, record);
      answers := array_append(answers, 1::bigint);
      answers := array_append(answers, record.id);

    else
      account.held_credits := account.held_credits + call.credits;
      account.seq := account.seq + 1;
      hold.id := nextval('ai_credit_holds_id_seq');
      hold.user_id := account.user_id;
      hold.seq := account.seq;
      hold.credits := call.credits;
      hold.operation := call.operation;
      hold.metadata := call.metadata;
      hold.ttl := call.detail;
      hold.created_at := account.updated_at;
      hold.expires_at := account.updated_at + call.detail * interval '1 millisecond';
      hold.total_after := account.total_credits;
      hold.used_after := account.used_credits;
      hold.held_after := account.held_credits;
      hold.idempotency_key := call.key;
      hold.request_hash := call.hash;
      account.due_at := least(account.due_at, hold.expires_at);
      holds := array_append(holds, hold);
      answers := array_append(answers, 1::bigint);
      answers := array_append(answers, hold.id);
    end if;

    answers := array_append(answers, account.total_credits);
    answers := array_append(answers, account.used_credits);
    answers := array_append(answers, account.held_credits);
    if call.kind = 'hold' then
      answers := array_append(answers, floor(extract(epoch from account.updated_at) * 1000)::bigint + call.detail);
    end if;
  end loop;

  if place > 0 then
    accounts[place] := account;
  end if;
  perform ai_credit_post_all(accounts, records, holds, changed, p_time_zone);
  return answers;
end
$$;

-- A session plans a function's queries once, perhaps while the tables are small, and keeps the plan while they grow.
alter function ai_credit_deduct set enable_seqscan = off;
alter function ai_credit_hold set enable_seqscan = off;
alter function ai_credit_capture set enable_seqscan = off;
alter function ai_credit_release set enable_seqscan = off;
alter function ai_credit_grant set enable_seqscan = off;
alter function ai_credit_refund set enable_seqscan = off;

commit;
