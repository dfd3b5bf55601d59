-- Accounts: what they have, their lock, and how they are written.

-- 2^53 - 1, the largest whole number that every reader of JSON holds exactly.
create or replace function :"schema".ai_credit_max() returns bigint
language sql immutable
return 9007199254740991;

create or replace function :"schema".ai_credit_available(p_account :"schema".ai_credits) returns bigint
language sql immutable
return p_account.total_credits - p_account.used_credits - p_account.held_credits;

-- How many credits may still be added to an account. What it can spend in all, with its overdraft, never passes
-- 2^53 - 1, so that used never does.
create or replace function :"schema".ai_credit_room(p_account :"schema".ai_credits) returns bigint
language sql immutable
return :"schema".ai_credit_max() - p_account.total_credits - p_account.overdraft;

-- SHA-256 of some content. The text of jsonb has one order of keys, so equal content has one hash.
create or replace function :"schema".ai_credit_hash(p_content jsonb) returns bytea
language sql immutable parallel safe
return sha256(convert_to(p_content::text, 'UTF8'));

-- Creates the account if it is missing, and waits for its lock. The SET clause ends with the function, so that the limit
-- set inside leaves nothing behind in a host's transaction.
create or replace function :"schema".ai_credit_lock_waiting(p_user_id varchar, p_allowance jsonb, p_lock_timeout integer)
returns :"schema".ai_credits
language plpgsql set lock_timeout = 0 as $$
declare
  account :"schema".ai_credits;
  credits bigint := (p_allowance->>'credits')::bigint;
  plan jsonb := case when p_allowance ? 'every' then p_allowance end;
  instant timestamptz := :"schema".ai_credit_now();
  renewal timestamptz := 'infinity';
  started timestamptz := clock_timestamp();
begin
  perform set_config('lock_timeout', p_lock_timeout::text, true);
  if plan is not null then
    renewal := :"schema".ai_credit_next_renewal(plan, instant, instant);
  end if;
  insert into :"schema".ai_credits (user_id, total_credits, opening_total, created_at, updated_at, plan, renews_at, due_at)
  values (p_user_id, credits, credits, instant, instant, plan, renewal, renewal)
  on conflict (user_id) do nothing;
  select * into strict account from :"schema".ai_credits where user_id = p_user_id for no key update;
  -- PostgreSQL's limit is one for each lock on the way, and a queue has several: late is late, however it came about.
  if clock_timestamp() > started + p_lock_timeout * interval '1 millisecond' then
    raise lock_not_available using message = 'canceling statement due to lock timeout';
  end if;
  return account;
end
$$;

-- Locks an account and returns it as of the posting instant (its updated_at), with what was due until then done.
-- Statements of the caller that come after this one see all that others committed while it waited.
--
-- p_lock_timeout: the milliseconds in which to wait for an account that is locked elsewhere, or to create one that is
-- missing. null: neither is done, and what is returned is null; see ai_credit_obstacle.
--
-- NO KEY: a row that refers to the account by a foreign key of the host's does not wait for us, nor we for it.
create or replace function :"schema".ai_credit_lock(p_user_id varchar, p_allowance jsonb, p_lock_timeout integer)
returns :"schema".ai_credits
language plpgsql as $$
declare
  account :"schema".ai_credits;
  before :"schema".ai_credits;
begin
  select * into account from :"schema".ai_credits where user_id = p_user_id for no key update skip locked;
  if not found then
    if p_lock_timeout is null then
      return null;
    end if;
    account := :"schema".ai_credit_lock_waiting(p_user_id, p_allowance, p_lock_timeout);
  end if;
  account.updated_at := greatest(:"schema".ai_credit_now(), account.updated_at);
  if account.due_at <= account.updated_at then
    before := account;
    account := :"schema".ai_credit_settle(account, p_allowance, case when p_lock_timeout is null then 100 else 2000 end);
    perform :"schema".ai_credit_report_settled(before, account.seq);
  end if;
  return account;
end
$$;

-- Why nothing can be posted to an account that was to be locked. The verdict of its caller:
--   'busy'      it is locked elsewhere
--   'new'       it is missing
--   'settling'  it is locked, and more was due than one statement does; what was done stays done, so that calling again
--               comes to an end
-- null: nothing. A caller looks whether user_id is null or due_at has come before it asks, as most have no obstacle.
create or replace function :"schema".ai_credit_obstacle(p_account :"schema".ai_credits, p_user_id varchar) returns varchar
language sql stable
return case
  when p_account.user_id is not null then case when p_account.due_at <= p_account.updated_at then 'settling' end
  when exists (select from :"schema".ai_credits where user_id = p_user_id) then 'busy'
  else 'new'
end;

-- Writes all of a locked account.
create or replace function :"schema".ai_credit_save(p_account :"schema".ai_credits) returns void
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
