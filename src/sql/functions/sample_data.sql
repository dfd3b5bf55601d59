-- The sample data: an account with 1,500 of 10,000 credits used, today and yesterday. Written where the account is not there
-- yet, and only then, whoever else tries at the same time.
create or replace function :"schema".ai_credit_write_sample_data(p_caller integer, p_user_id varchar) returns void
security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off
language plpgsql as $$
declare
  time_zone text := :"schema".ai_credit_time_zone();
  instant timestamptz;
  sample record;
begin
  insert into :"schema".ai_credits (user_id, total_credits, opening_total, used_credits, seq, summed_seq)
  values (p_user_id, 10000, 10000, 1500, 5, 0)
  on conflict (user_id) do nothing
  returning updated_at into instant;
  if instant is null then
    return;
  end if;
  for sample in
    select seq, days_ago, operation, credits, used_after, metadata
    from (values
      (1, 1, 'video_analysis',   300,  300, '{"clips_analyzed": 5}'::jsonb),
      (2, 1, 'script_generation', 200,  500, '{"variants": 3}'),
      (3, 0, 'video_generation', 500, 1000, '{"duration": 30, "quality": "hd"}'),
      (4, 0, 'video_generation', 400, 1400, '{"duration": 60, "quality": "4k"}'),
      (5, 0, 'text_analysis',    100, 1500, '{"words": 500}')
    ) as of_data (seq, days_ago, operation, credits, used_after, metadata)
    order by seq
  loop
    insert into :"schema".ai_credit_usage
      (user_id, seq, credits_used, operation, metadata, created_at, total_after, used_after, held_after)
    values (p_user_id, sample.seq, sample.credits, sample.operation, sample.metadata,
      (instant at time zone time_zone - make_interval(days => sample.days_ago)) at time zone time_zone, 10000, sample.used_after, 0);
  end loop;
end
$$;
comment on function :"schema".ai_credit_write_sample_data(integer, varchar)
is 'Writes an account with sample data, if it is not there yet.';
