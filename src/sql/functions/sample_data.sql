-- The sample data: an account with 1,500 of 10,000 credits used, today and yesterday. Written where the account is not there
-- yet, and only then, whoever else tries at the same time.
create or replace function :"schema".ai_credit_write_sample_data(p_caller integer, p_user_id varchar) returns void
security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off
language plpgsql as $$
declare
  time_zone text := :"schema".ai_credit_time_zone();
begin
  with account as (
    insert into :"schema".ai_credits (user_id, total_credits, opening_total, used_credits, seq)
    values (p_user_id, 10000, 10000, 1500, 5)
    on conflict (user_id) do nothing
    returning user_id, updated_at
  ), sample (seq, days_ago, operation, credits, used_after, metadata) as (
    values
      (1, 1, 'video_analysis',   300,  300, '{"clips_analyzed": 5}'::jsonb),
      (2, 1, 'script_generation', 200,  500, '{"variants": 3}'),
      (3, 0, 'video_generation', 500, 1000, '{"duration": 30, "quality": "hd"}'),
      (4, 0, 'video_generation', 400, 1400, '{"duration": 60, "quality": "4k"}'),
      (5, 0, 'text_analysis',    100, 1500, '{"words": 500}')
  ), records as (
    insert into :"schema".ai_credit_usage
      (user_id, seq, credits_used, operation, metadata, created_at, total_after, used_after, held_after)
    select user_id, seq, credits, operation, metadata,
      (updated_at at time zone time_zone - make_interval(days => days_ago)) at time zone time_zone, 10000, used_after, 0
    from account cross join sample
    order by seq
    returning user_id, operation, credits_used, metadata, created_at
  )
  insert into :"schema".ai_credit_daily_usage (user_id, day, operation, metadata_hash, metadata, used_credits)
  select user_id, (created_at at time zone time_zone)::date, operation, :"schema".ai_credit_hash(metadata), metadata, sum(credits_used)
  from records
  group by 1, 2, 3, 4, 5;
end
$$;
comment on function :"schema".ai_credit_write_sample_data(integer, varchar)
is 'Writes an account with sample data, if it is not there yet.';
