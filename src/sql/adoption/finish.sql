-- Adoption, its end: accounts get what follows from their records, and the aids go.

begin isolation level read committed;
set local search_path to pg_catalog, pg_temp;
select pg_advisory_xact_lock(hashtextextended('fastify-ai-credits', 0));
set local statement_timeout to 0;

drop function :"schema".ai_credit_adopt_records(integer);
drop table :"schema".ai_credit_adoption;
delete from :"schema".ai_credit_settings where name = 'adopted_to';
alter table :"schema".ai_credit_usage reset (fillfactor);

-- Where used_credits differs from the sum of the records, the difference is kept, and counts as laid on grants.
update :"schema".ai_credits account
set seq = history.records, opening_total = account.total_credits, opening_used = account.used_credits - history.spent,
    spent_before = history.spent - account.used_credits, allocated = history.spent - account.used_credits
from (
  select user_id, coalesce(records, 0) as records, coalesce(spent, 0) as spent
  from :"schema".ai_credits left join (
    select user_id, count(*) as records, sum(credits_used) as spent from :"schema".ai_credit_usage group by user_id
  ) summed using (user_id)
) history
where history.user_id = account.user_id;

commit;
