-- What time alone does to an account: holds lapse, grants expire, the allowance renews. Whatever locks an account that is
-- due settles it first, in parts of so many things: each part is a statement, and stays done.

-- Makes happen what is due by the account's updated_at, instants in order; at one instant holds lapse, then grants expire,
-- then the allowance renews. At most about p_limit things happen; if more is due, due_at says so.
create or replace function :"schema".ai_credit_settle(inout account :"schema".ai_credit_account, p_allowance jsonb, p_limit integer)
language plpgsql as $$
declare
  instant timestamptz := account.updated_at;
  room integer := p_limit;
  next_lapse timestamptz;
  next_expiry timestamptz;
  part record;
begin
  loop
    next_lapse := coalesce((
      select min(expires_at) from :"schema".ai_credit_holds
      where user_id = account.user_id and state = 'open'
        and (state = 'open' or :"schema".ai_credit_dear(state))), 'infinity');
    next_expiry := coalesce((
      select min(expires_at) from :"schema".ai_credit_grants
      where user_id = account.user_id and state = 'living' and kind <> 'allowance'), 'infinity');
    account.due_at := least(account.renews_at, next_lapse, next_expiry);
    exit when account.due_at > instant or room <= 0;
    if least(next_lapse, next_expiry) > account.renews_at then
      account := :"schema".ai_credit_renew_until(account, instant, least(next_lapse, next_expiry), p_allowance);
      room := room - 1;
    else
      if next_lapse <= next_expiry then
        part := :"schema".ai_credit_lapse(account, least(instant, next_expiry, account.renews_at), room);
      elsif account.held_credits = 0 and next_lapse > least(instant, account.renews_at) then
        part := :"schema".ai_credit_expire(account, least(instant, account.renews_at), room);
      else
        part := :"schema".ai_credit_expire_beside_holds(account, least(instant, account.renews_at), room);
      end if;
      account := part.account;
      room := part.room;
    end if;
  end loop;
  perform :"schema".ai_credit_save(account);
end
$$;

-- Writes what time has done to an account: holds, known by their seqs, with what is pinned to each now, and the posting with which it
-- has lapsed, null if it is open; grants that have expired; and an event for each that has ended.
create or replace function :"schema".ai_credit_write_ended(
  p_user_id varchar, p_holds bigint[], p_pins bigint[], p_closings bigint[], p_grants bigint[], p_events :"schema".ai_credit_event[]
) returns void
language plpgsql as $$
begin
  if cardinality(p_holds) > 0 then
    update :"schema".ai_credit_holds hold
    set pinned = changed.pinned, closing_seq = changed.closing_seq,
        state = case when changed.closing_seq is null then 'open' else 'lapsed' end
    from (
      select p_user_id as user_id, * from unnest(p_holds, p_pins, p_closings) as all_of (seq, pinned, closing_seq)
      offset 0 -- see 'For the planner' in README.md
    ) changed
    where hold.user_id = changed.user_id and hold.seq = changed.seq and hold.user_id || '' = p_user_id;
    perform :"schema".ai_credit_count_lapsed(p_user_id, array(
      select seq from unnest(p_holds, p_closings) as all_of (seq, closing_seq) where closing_seq is not null));
  end if;
  if cardinality(p_grants) > 0 then
    update :"schema".ai_credit_grants living
    set state = 'expired', credits_left = 0
    from (select p_user_id as user_id, id from unnest(p_grants) as expired (id) offset 0) expired
    where living.user_id = expired.user_id and living.id = expired.id and living.user_id || '' = p_user_id;
  end if;
  insert into :"schema".ai_credit_events (user_id, seq, kind, created_at, amount, reference_id, total_after, used_after, held_after)
  select user_id, seq, kind, created_at, amount, reference_id, total_after, used_after, held_after from unnest(p_events);
end
$$;

-- Lets the first of the holds lapse that end by p_until, as many as there is room for. What is pinned to them belongs to
-- no living grant, and leaves the total.
create or replace function :"schema".ai_credit_lapse(inout account :"schema".ai_credit_account, p_until timestamptz, inout room integer)
language plpgsql as $$
declare
  hold record;
  event :"schema".ai_credit_event;
  seqs bigint[] := '{}';
  closings bigint[] := '{}';
  events :"schema".ai_credit_event[] := '{}';
begin
  event.user_id := account.user_id;
  event.kind := 'lapse';
  event.used_after := account.used_credits;
  for hold in
    select seq, id, expires_at, credits_left, pinned from :"schema".ai_credit_holds
    where user_id = account.user_id and state = 'open' and expires_at <= p_until
      and (state = 'open' or :"schema".ai_credit_dear(state))
    order by expires_at, id
    limit room
  loop
    account.seq := account.seq + 1;
    account.held_credits := account.held_credits - hold.credits_left;
    account.total_credits := account.total_credits - hold.pinned;
    event.seq := account.seq;
    event.created_at := hold.expires_at;
    event.amount := hold.credits_left - hold.pinned;
    event.reference_id := hold.id;
    event.total_after := account.total_credits;
    event.held_after := account.held_credits;
    events := array_append(events, event);
    seqs := array_append(seqs, hold.seq);
    closings := array_append(closings, account.seq);
  end loop;
  perform :"schema".ai_credit_write_ended(account.user_id, seqs, array_fill(0::bigint, array[cardinality(seqs)]), closings,
    '{}'::bigint[], events);
  room := room - cardinality(events);
end
$$;

-- Lets the first of the grants expire that end by p_until, as many as there is room for, while no credits are held: what
-- is unspent of them leaves the total.
create or replace function :"schema".ai_credit_expire(inout account :"schema".ai_credit_account, p_until timestamptz, inout room integer)
language plpgsql as $$
declare
  ending record;
  event :"schema".ai_credit_event;
  grants bigint[] := '{}';
  events :"schema".ai_credit_event[] := '{}';
begin
  account := :"schema".ai_credit_allocate(account);
  event.user_id := account.user_id;
  event.kind := 'expiry';
  event.used_after := account.used_credits;
  event.held_after := account.held_credits;
  for ending in
    select id, expires_at, credits_left from :"schema".ai_credit_grants
    where user_id = account.user_id and state = 'living' and kind <> 'allowance' and expires_at <= p_until
    order by expires_at, priority, id
    limit room
  loop
    account.seq := account.seq + 1;
    account.total_credits := account.total_credits - ending.credits_left;
    event.seq := account.seq;
    event.created_at := ending.expires_at;
    event.amount := -ending.credits_left;
    event.reference_id := ending.id;
    event.total_after := account.total_credits;
    events := array_append(events, event);
    grants := array_append(grants, ending.id);
  end loop;
  perform :"schema".ai_credit_write_ended(account.user_id, '{}'::bigint[], '{}'::bigint[], '{}'::bigint[], grants, events);
  room := room - cardinality(events);
end
$$;

-- The same while credits are held, together with the holds that lapse meanwhile: where a hold lies on a grant that
-- expires, that part is pinned to the hold and stays.
--
-- The grants in burn order are one line of credits, and so are the holds by id, of what is not pinned; a hold lies on the
-- grants beside it. What lapses and what expires leaves its line, and the rest moves up. Where something lies is a sum over
-- what comes before it, which a binary indexed tree (Fenwick, 1994) keeps: so the work is n log n and not n squared.
create or replace function :"schema".ai_credit_expire_beside_holds(
  inout account :"schema".ai_credit_account, p_until timestamptz, inout room integer
)
language plpgsql as $$
declare
  seqs bigint[];     -- the open holds by id
  pins bigint[];     -- of each, what is pinned
  pins_before bigint[];
  lying bigint[];    -- and what is not
  closings bigint[]; -- the seq with which it lapsed
  holds integer;
  line bigint[];     -- the tree of the holds' line
  gone bigint[];     -- the tree of what has left the grants' line, by the due grants' order in it
  height integer := 1;
  grants bigint[] := '{}'; -- those that have expired
  events :"schema".ai_credit_event[] := '{}';
  event :"schema".ai_credit_event;
  thing record;
  place integer;
  step integer;
  lies_at bigint;
  before bigint;
  part bigint;
  rest bigint;
begin
  account := :"schema".ai_credit_allocate(account);
  select array_agg(seq order by id), array_agg(pinned order by id), array_agg(credits_left - pinned order by id), count(*)
  into seqs, pins, lying, holds
  from :"schema".ai_credit_holds
  where user_id = account.user_id and state = 'open' and (state = 'open' or :"schema".ai_credit_dear(state));
  pins_before := pins;
  closings := array_fill(null::bigint, array[holds]);
  line := lying;
  for i in 1..holds loop
    place := i + (i & -i);
    if place <= holds then
      line[place] := line[place] + line[i];
    end if;
  end loop;
  while height * 2 <= holds loop
    height := height * 2;
  end loop;
  gone := array_fill(0::bigint, array[room]);
  event.user_id := account.user_id;
  event.used_after := account.used_credits;

  for thing in
    select *, row_number() over (partition by kind order by priority, expires_at, id) as grant_place
    from (
      select 'lapse' as kind, id, expires_at, null as priority, credits_left as credits, hold_place, null as starts_at
      from (
        select *, row_number() over (order by id) as hold_place from :"schema".ai_credit_holds
        where user_id = account.user_id and state = 'open'
          and (state = 'open' or :"schema".ai_credit_dear(state))
      ) hold
      where expires_at <= p_until
      union all
      select 'expiry', id, expires_at, priority, credits_left, null, starts_at
      from (
        select *, sum(credits_left) over (order by priority, expires_at, id rows unbounded preceding) - credits_left as starts_at
        from :"schema".ai_credit_grants
        where user_id = account.user_id and state = 'living'
      ) living
      where expires_at <= p_until and kind <> 'allowance'
      order by expires_at, kind desc, priority, id
      limit room
    ) due
    order by expires_at, kind desc, priority, id
  loop
    account.seq := account.seq + 1;
    if thing.kind = 'lapse' then
      account.held_credits := account.held_credits - thing.credits;
      account.total_credits := account.total_credits - pins[thing.hold_place];
      event.amount := thing.credits - pins[thing.hold_place];
      closings[thing.hold_place] := account.seq;
      place := thing.hold_place;
      while place <= holds loop
        line[place] := line[place] - lying[thing.hold_place];
        place := place + (place & -place);
      end loop;
      pins[thing.hold_place] := 0;
    else
      lies_at := thing.starts_at;
      place := thing.grant_place;
      while place > 0 loop
        lies_at := lies_at - gone[place];
        place := place - (place & -place);
      end loop;
      rest := thing.credits;
      while rest > 0 loop
        place := 0; -- the hold before the one that lies there
        before := 0;
        step := height;
        while step > 0 loop
          if place + step <= holds and before + line[place + step] <= lies_at then
            place := place + step;
            before := before + line[place];
          end if;
          step := step / 2;
        end loop;
        exit when place = holds;
        place := place + 1;
        part := least(rest, before + lying[place] - lies_at);
        rest := rest - part;
        lying[place] := lying[place] - part;
        pins[place] := pins[place] + part;
        while place <= holds loop
          line[place] := line[place] - part;
          place := place + (place & -place);
        end loop;
      end loop;
      account.total_credits := account.total_credits - rest;
      event.amount := -rest;
      grants := array_append(grants, thing.id);
      place := thing.grant_place;
      while place <= cardinality(gone) loop
        gone[place] := gone[place] + thing.credits;
        place := place + (place & -place);
      end loop;
    end if;
    event.seq := account.seq;
    event.kind := thing.kind;
    event.created_at := thing.expires_at;
    event.reference_id := thing.id;
    event.total_after := account.total_credits;
    event.held_after := account.held_credits;
    events := array_append(events, event);
  end loop;

  select array_agg(seq), array_agg(pinned), array_agg(closing_seq) into seqs, pins, closings
  from unnest(seqs, pins, pins_before, closings) as all_of (seq, pinned, pinned_before, closing_seq)
  where closing_seq is not null or pinned <> pinned_before;
  perform :"schema".ai_credit_write_ended(account.user_id, seqs, pins, closings, grants, events);
  room := room - cardinality(events);
end
$$;

-- What the caller of a statement is told of an account that time has changed: a JSON array
--   [user, total, used, held, the seq before, the seq after]
-- What has changed is read by ai_credit_changes, if anybody listens. It would make a long row, and PostgreSQL takes back a
-- statement if the client is gone when the first part of a long row is sent.
create or replace function :"schema".ai_credit_settled(p_before :"schema".ai_credit_account, p_seq bigint) returns text
language sql stable as $$
  select json_build_array(p_before.user_id, p_before.total_credits, p_before.used_credits, p_before.held_credits,
    p_before.seq, p_seq)::text
$$;

-- What time has changed of an account, from one seq to another: a JSON array, in order, of
--   [kind, at, amount, reference, details, total after, used after, held after]
create or replace function :"schema".ai_credit_changes(
  p_caller integer, p_user_id varchar, p_after_seq bigint, p_to_seq bigint, out changes varchar
)
security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off
language plpgsql stable as $$
begin
  changes := (
    select coalesce(json_agg(json_build_array(kind, :"schema".ai_credit_iso(created_at), amount, reference_id::varchar,
      details, total_after, used_after, held_after) order by seq), '[]')
    from :"schema".ai_credit_events
    where user_id = p_user_id and seq > p_after_seq and seq <= p_to_seq);
end
$$;
comment on function :"schema".ai_credit_changes(integer, varchar, bigint, bigint)
is 'Returns what time has changed of an account, as listeners are told of it.';
