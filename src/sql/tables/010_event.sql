-- Tables, number 10: what functions hand each other of an event.

begin isolation level read committed;
set local search_path to pg_catalog, pg_temp;
select pg_advisory_xact_lock(hashtextextended('fastify-ai-credits', 0));
insert into :"schema".ai_credit_migrations (id) values (10);

-- What time has done to an account, to be written as a row of ai_credit_events.
create type :"schema".ai_credit_event as (
  user_id varchar, seq bigint, kind text, created_at timestamptz, amount bigint, reference_id bigint,
  total_after bigint, used_after bigint, held_after bigint
);

commit;
