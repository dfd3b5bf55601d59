-- fastify-ai-credits, migration 005: what a process tells its listeners, where an account was changed by time alone, and
-- what it has to know of a capture.
--
-- By hand: psql "$DATABASE_URL" -v ON_ERROR_STOP=1 -f 005_events.sql, after the migrations before it.
-- Functions keep their signatures, so that processes of the version before go on working.

begin;

select pg_advisory_xact_lock(hashtextextended('fastify-ai-credits', 0));
insert into ai_credit_migrations (id) values (5);

-- Leaves word of what time has done to a locked account, until the transaction ends: the last column of the statement
-- that is under way hands it over. One JSON array for each account, separated by commas:
--   [user, total, used, held, [[kind, at, amount, reference, details, total after, used after, held after], ...]]
create function ai_credit_report_settled(p_before ai_credits) returns void
language plpgsql set enable_seqscan = off as $$
declare
  changes json;
begin
  select json_agg(json_build_array(kind, ai_credit_iso(created_at), amount, reference_id::varchar, details,
    total_after, used_after, held_after) order by seq)
  into changes
  from ai_credit_events
  where user_id = p_before.user_id and seq > p_before.seq;

  if changes is not null then
    perform set_config('fastify_ai_credits.settled',
      concat_ws(',', nullif(current_setting('fastify_ai_credits.settled', true), ''),
        json_build_array(p_before.user_id, p_before.total_credits, p_before.used_credits, p_before.held_credits, changes)),
      true);
  end if;
end
$$;

-- As in 003, and leaves word of what was due.
create or replace function ai_credit_lock(p_user_id varchar, p_allowance jsonb, p_lock_timeout integer)
returns ai_credits
language plpgsql as $$
declare
  account ai_credits;
  before ai_credits;
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
    before := account;
    account := ai_credit_settle(account, account.updated_at, p_allowance);
    perform ai_credit_report_settled(before);
  end if;
  return account;
end
$$;

-- What captures were for, each known by its hold, and by its usage record where it made one: a JSON array, in order, of
-- [operation, metadata, by how much it changed what is available].
create function ai_credit_captures(p_hold_ids bigint[], p_record_ids bigint[], out captures varchar)
language plpgsql stable set enable_seqscan = off as $$
begin
  select json_agg(json_build_array(
    (select operation from ai_credit_holds where id = hold_id),
    (select metadata from ai_credit_usage where id = record_id),
    (select amount from ai_credit_usage where id = record_id)) order by place)::varchar
  into captures
  from unnest(p_hold_ids, p_record_ids) with ordinality as asked(hold_id, record_id, place);
end
$$;

commit;
