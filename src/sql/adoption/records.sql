-- Adoption, after 006_tables.sql: a function that gives records what order.sql has worked out for them. It is called until
-- it returns 0, each time in a transaction of its own, and what it has done stays done.

begin isolation level read committed;
set local search_path to pg_catalog, pg_temp;
select pg_advisory_xact_lock(hashtextextended('fastify-ai-credits', 0));

-- Goes along the ids, and keeps in the settings how far it is. Returns how many records it has filled. Both ends of the
-- range are said of both tables, so that PostgreSQL reads no more of either.
create or replace function :"schema".ai_credit_adopt_records(p_limit integer) returns bigint
language sql
begin atomic
  select pg_advisory_xact_lock(hashtextextended('fastify-ai-credits', 0));
  with done as materialized (
    select coalesce(
      (select value::bigint from :"schema".ai_credit_settings where name = 'adopted_to'), -9223372036854775808) as id
  ), batch as materialized (
    select max(id) as id, count(*) as records
    from (
      select id from :"schema".ai_credit_adoption where id > (select id from done) order by id limit p_limit
    ) next
  ), filled as (
    update :"schema".ai_credit_usage record
    set seq = prepared.seq, total_after = prepared.total_after, used_after = prepared.used_after
    from :"schema".ai_credit_adoption prepared
    where record.id = prepared.id
      and record.id > (select id from done) and record.id <= (select id from batch)
      and prepared.id > (select id from done) and prepared.id <= (select id from batch)
  ), noted as (
    insert into :"schema".ai_credit_settings (name, value)
    select 'adopted_to', id::varchar from batch where records > 0
    on conflict (name) do update set value = excluded.value
  )
  select records from batch;
end;

commit;
