-- Tables, number 8: rows that were there before number 7 are checked, too. Reading and writing go on meanwhile.

begin isolation level read committed;
set local search_path to pg_catalog, pg_temp;
select pg_advisory_xact_lock(hashtextextended('fastify-ai-credits', 0));
insert into :"schema".ai_credit_migrations (id) values (8);

set local statement_timeout to 0;
alter table :"schema".ai_credit_usage validate constraint ai_credit_usage_kind;
alter table :"schema".ai_credit_grants validate constraint ai_credit_grants_kind;
alter table :"schema".ai_credit_grants validate constraint ai_credit_grants_state;
alter table :"schema".ai_credit_holds validate constraint ai_credit_holds_state;
alter table :"schema".ai_credit_events validate constraint ai_credit_events_kind;

commit;
