-- What all processes on this database must agree on.

-- Returns in which time zone this database keeps its days: the first caller's. That one also sums up the records that are
-- older than daily usage.
create or replace function :"schema".ai_credit_use_time_zone(p_time_zone varchar) returns varchar
security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off
language plpgsql as $$
begin
  perform now() at time zone p_time_zone; -- an unknown one is an error before anything is written
  if not exists (select from :"schema".ai_credit_settings where name = 'time_zone') then
    insert into :"schema".ai_credit_settings (name, value) values ('time_zone', p_time_zone) on conflict (name) do nothing;
    if found then
      insert into :"schema".ai_credit_daily_usage (user_id, day, operation, metadata_hash, metadata, used_credits)
      select user_id, (created_at at time zone p_time_zone)::date, operation, :"schema".ai_credit_hash(shown), shown,
        sum(credits_used)
      from :"schema".ai_credit_usage,
        lateral (select case jsonb_typeof(metadata) when 'object' then metadata
                        else jsonb_build_object('metadata', metadata) end as shown) object
      group by 1, 2, 3, 4, 5
      on conflict (user_id, day, operation, metadata_hash) do update set used_credits = excluded.used_credits;
    end if;
  end if;
  return (select value from :"schema".ai_credit_settings where name = 'time_zone');
end
$$;
