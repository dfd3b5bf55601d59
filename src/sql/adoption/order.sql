-- Adoption, after columns.sql: works out each record's place in its account's order, and a balance that leads up to the one
-- that the account has. records.sql hands them out.

begin isolation level read committed;
set local search_path to pg_catalog, pg_temp;
select pg_advisory_xact_lock(hashtextextended('fastify-ai-credits', 0));
set local statement_timeout to 0;
set local work_mem to '64MB';

insert into :"schema".ai_credit_adoption (id, seq, total_after, used_after)
select id, row_number() over earlier, account.total_credits,
  account.used_credits - (sum(credits_used) over (partition by user_id) - sum(credits_used) over earlier)
from :"schema".ai_credit_usage record join :"schema".ai_credits account using (user_id)
window earlier as (partition by user_id order by record.created_at, id rows unbounded preceding);

-- That the key is there says that this is done.
alter table :"schema".ai_credit_adoption add primary key (id);

commit;
