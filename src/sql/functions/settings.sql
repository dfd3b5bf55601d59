-- What all processes on this database must agree on.

-- Returns in which time zone this database keeps its days: the first caller's. The first caller also notes how far there
-- are records that are older than daily usage; ai_credit_sum_days sums them up.
create or replace function :"schema".ai_credit_use_time_zone(p_time_zone varchar) returns varchar
security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off
language plpgsql as $$
begin
  perform now() at time zone p_time_zone; -- an unknown one is an error before anything is written
  if not exists (select from :"schema".ai_credit_settings where name = 'time_zone') then
    insert into :"schema".ai_credit_settings (name, value) values ('time_zone', p_time_zone) on conflict (name) do nothing;
    if found then
      insert into :"schema".ai_credit_settings (name, value)
      select 'unsummed_to', max(id)::text from :"schema".ai_credit_usage having count(id) > 0;
    end if;
  end if;
  return (select value from :"schema".ai_credit_settings where name = 'time_zone');
end
$$;
comment on function :"schema".ai_credit_use_time_zone(varchar)
is 'Returns the time zone in which this database keeps its days, which the first call sets.';

-- Sums up a part of the records that are older than daily usage, from the newest on down, and returns how many. It is
-- called until it returns 0, each time in a transaction of its own, before any process charges. For the owner of the tables.
create or replace function :"schema".ai_credit_sum_days(p_limit integer) returns bigint
set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off
language plpgsql as $$
declare
  records bigint;
  first_id bigint;
  last_id bigint;
begin
  perform pg_advisory_xact_lock(hashtextextended('fastify-ai-credits', 0));
  select value::bigint into last_id from :"schema".ai_credit_settings where name = 'unsummed_to';
  select count(*), min(id) into records, first_id
  from (select id from :"schema".ai_credit_usage where id <= last_id order by id desc limit p_limit) part;

  insert into :"schema".ai_credit_daily_usage as daily (user_id, day, operation, metadata_hash, metadata, used_credits)
  select user_id, (created_at at time zone :"schema".ai_credit_time_zone())::date, operation,
    :"schema".ai_credit_hash(shown), shown, sum(credits_used)
  from :"schema".ai_credit_usage,
    lateral (select case jsonb_typeof(metadata) when 'object' then metadata
                    else jsonb_build_object('metadata', metadata) end as shown) object
  where id between first_id and last_id
  group by 1, 2, 3, 4, 5
  on conflict (user_id, day, operation, metadata_hash) do update set used_credits = daily.used_credits + excluded.used_credits;

  if records < p_limit then
    delete from :"schema".ai_credit_settings where name = 'unsummed_to';
  else
    update :"schema".ai_credit_settings set value = (first_id - 1)::text where name = 'unsummed_to';
  end if;
  return records;
end
$$;
comment on function :"schema".ai_credit_sum_days(integer)
is 'Sums up by day a part of the usage records that were adopted.';
