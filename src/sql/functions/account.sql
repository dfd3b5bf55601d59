-- Accounts: what they have, their lock, and how they are written.

-- 2^53 - 1, the largest whole number that every reader of JSON holds exactly.
create or replace function :"schema".ai_credit_max() returns bigint
language sql immutable as $$
  select 9007199254740991
$$;

create or replace function :"schema".ai_credit_available(p_account :"schema".ai_credit_account) returns bigint
language sql immutable as $$
  select p_account.total_credits - p_account.used_credits - p_account.held_credits
$$;

-- What an account can spend: its overdraft beside what is available. Less than 0 where it owes more than that.
create or replace function :"schema".ai_credit_spendable(p_account :"schema".ai_credit_account) returns bigint
language sql immutable as $$
  select :"schema".ai_credit_available(p_account) + p_account.overdraft
$$;

-- Whether an account can pay so many credits. What costs nothing is never refused.
create or replace function :"schema".ai_credit_fits(p_account :"schema".ai_credit_account, p_credits bigint) returns boolean
language sql immutable as $$
  select p_credits = 0 or p_credits <= :"schema".ai_credit_spendable(p_account)
$$;

-- How many credits may still be added to an account. What it can spend in all, with its overdraft, never passes
-- 2^53 - 1, so that used never does.
create or replace function :"schema".ai_credit_room(p_account :"schema".ai_credit_account) returns bigint
language sql immutable as $$
  select :"schema".ai_credit_max() - p_account.total_credits - p_account.overdraft
$$;

-- SHA-256 of some content. The text of jsonb has one order of keys, so equal content has one hash. The hashes are kept, and so
-- this relies on PostgreSQL never to write jsonb otherwise: it says so by calling that cast immutable, on which indexes and
-- generated columns of others rely as well, and 14 to 18 write the same.
create or replace function :"schema".ai_credit_hash(p_content jsonb) returns bytea
language sql immutable parallel safe as $$
  select sha256(convert_to(p_content::text, 'UTF8'))
$$;

-- Keeps a query to the index that is meant. Several indexes of a table begin with the account, and by another one than that all of
-- the account's past is read. A session may plan on tables of which PostgreSQL knows nothing yet: it expects one row by either
-- index then, may take the wrong one, and keeps that plan.
--
-- Where the index that is meant is a partial one, add to the query, for a condition of that index which the query has anyway,
--   (condition or ai_credit_dear(column of the condition))
-- Beside the condition this is true: it changes no result, and this function is never called. The planner leaves it out where it
-- follows from an index's own condition, and so from the plan by the index that is meant. By any other index it is a filter, which
-- costs more than whatever that index could save. In PL/pgSQL, and with an argument that each row has, for PostgreSQL not to work
-- the function out when it plans; any text but the account's name, as Citus looks for that in a query, once.
create or replace function :"schema".ai_credit_dear(p_column text) returns boolean
language plpgsql immutable parallel safe cost 1000000 as $$
begin
  return false;
end
$$;

-- Writes those accounts that are missing, all alike, in the order of their names: so two statements that create the same accounts do not
-- deadlock.
create or replace function :"schema".ai_credit_insert_accounts(
  p_user_ids varchar[], p_credits bigint, p_plan jsonb, p_instant timestamptz, p_renewal timestamptz
) returns void
language plpgsql as $$
begin
  insert into :"schema".ai_credits (user_id, total_credits, opening_total, created_at, updated_at, plan, renews_at, due_at)
  select user_id, p_credits, p_credits, p_instant, p_instant, p_plan, p_renewal, p_renewal
  from unnest(p_user_ids) as missing (user_id)
  order by user_id collate "C"
  on conflict (user_id) do nothing;
end
$$;

-- Creates those accounts that are missing. It waits for a transaction that has created one of them and has yet to commit, for p_lock_timeout milliseconds. The
-- SET clause ends with the function, so that the limit set inside leaves nothing behind in a host's transaction.
create or replace function :"schema".ai_credit_create_accounts(p_user_ids varchar[], p_allowance jsonb, p_lock_timeout integer)
returns void
language plpgsql set lock_timeout = 0 as $$
declare
  credits bigint := (p_allowance->>'credits')::bigint;
  plan jsonb := case when p_allowance ? 'every' then p_allowance end;
  instant timestamptz := :"schema".ai_credit_now();
  renewal timestamptz := 'infinity';
begin
  perform set_config('lock_timeout', p_lock_timeout::text, true);
  if plan is not null then
    renewal := :"schema".ai_credit_next_renewal(plan, instant, instant);
  end if;
  perform :"schema".ai_credit_insert_accounts(p_user_ids, credits, plan, instant, renewal);
end
$$;

-- Sets for how many milliseconds a statement about the account waits for a lock, and returns what it was until now.
create or replace function :"schema".ai_credit_limit_waits(p_user_id varchar, p_lock_timeout text) returns text
language plpgsql as $$
declare
  before text := current_setting('lock_timeout');
begin
  perform set_config('lock_timeout', p_lock_timeout, true);
  return before;
end
$$;

-- Creates the account if it is missing, and waits for its lock.
create or replace function :"schema".ai_credit_wait(p_user_id varchar, p_allowance jsonb, p_lock_timeout integer) returns void
language plpgsql set lock_timeout = 0 as $$
declare
  started timestamptz := clock_timestamp();
  before text := :"schema".ai_credit_limit_waits(p_user_id, p_lock_timeout::text);
begin
  perform :"schema".ai_credit_create_accounts(array[p_user_id], p_allowance, p_lock_timeout);
  perform from :"schema".ai_credits where user_id = p_user_id for no key update;
  -- PostgreSQL's limit is one for each lock on the way, and a queue has several: late is late, however it came about.
  if clock_timestamp() > started + p_lock_timeout * interval '1 millisecond' then
    raise lock_not_available using message = 'canceling statement due to lock timeout';
  end if;
  perform :"schema".ai_credit_limit_waits(p_user_id, before);
end
$$;

-- Does what is due on a locked account by its updated_at: at most about 2000 things in a statement that may wait for locks
-- (p_lock_timeout), and about 100 in one that may not, as it has others' calls. If more is due, it has the obstacle 'settling'.
create or replace function :"schema".ai_credit_do_due(
  inout account :"schema".ai_credit_account, p_allowance jsonb, p_lock_timeout integer
)
language plpgsql as $$
declare
  before :"schema".ai_credit_account := account;
begin
  account := :"schema".ai_credit_settle(account, p_allowance, case when p_lock_timeout is null then 100 else 2000 end);
  account.settled := :"schema".ai_credit_settled(before, account.seq);
  if account.due_at <= account.updated_at then
    account.obstacle := 'settling';
  end if;
end
$$;

-- Locks an account and returns it as of the posting instant (its updated_at), with what was due until then done.
-- Statements of the caller that come after this one see all that others committed while it waited.
--
-- p_lock_timeout: the milliseconds in which to wait for an account that is locked elsewhere, or to create one that is
-- missing. null: neither is done.
--
-- Where the account returned has an obstacle, nothing can be posted to it, and the obstacle is the verdict of the caller:
--   'busy'      it is locked elsewhere
--   'new'       it is missing
--   'settling'  it is locked, and more was due than one statement does; what was done stays done, so that calling again
--               comes to an end
--
-- NO KEY: a row that refers to the account by a foreign key of the host's does not wait for us, nor we for it.
create or replace function :"schema".ai_credit_lock(p_user_id varchar, p_allowance jsonb, p_lock_timeout integer)
returns :"schema".ai_credit_account
language plpgsql as $$
declare
  account :"schema".ai_credit_account;
begin
  loop
    select user_id, total_credits, used_credits, held_credits, spent_before, allocated, overdraft, seq, coalesce(summed_seq, seq), due_at, created_at,
      updated_at, plan, plan_own, next_plan, renews_at, null::text, null::text
    into account
    from :"schema".ai_credits where user_id = p_user_id for no key update skip locked;
    exit when found;
    if p_lock_timeout is null then
      account.obstacle := case when exists (select from :"schema".ai_credits where user_id = p_user_id) then 'busy' else 'new' end;
      return account;
    end if;
    perform :"schema".ai_credit_wait(p_user_id, p_allowance, p_lock_timeout); -- now the lock is ours
  end loop;
  account.updated_at := greatest(:"schema".ai_credit_now(), account.updated_at);
  if account.due_at <= account.updated_at then
    account := :"schema".ai_credit_do_due(account, p_allowance, p_lock_timeout);
  end if;
  return account;
end
$$;

-- Writes all of a locked account.
create or replace function :"schema".ai_credit_save(p_account :"schema".ai_credit_account) returns void
language plpgsql as $$
begin
  update :"schema".ai_credits
  set total_credits = p_account.total_credits, used_credits = p_account.used_credits,
      held_credits = p_account.held_credits, spent_before = p_account.spent_before, allocated = p_account.allocated,
      overdraft = p_account.overdraft, seq = p_account.seq, due_at = p_account.due_at,
      updated_at = p_account.updated_at, plan = p_account.plan, plan_own = p_account.plan_own,
      next_plan = p_account.next_plan, renews_at = p_account.renews_at
  where user_id = p_account.user_id;
end
$$;
