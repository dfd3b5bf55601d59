-- Adoption, before anything is locked or changed: names at once all that stands in its way, or in the ledger's afterwards, as
-- one error (SQLSTATE FC001). Each point ends with the statement that mends it. What is not named is adopted.
--
-- Each file adds its points, pairs of a problem and a statement, to the setting fastify_ai_credits.points.

begin isolation level read committed, read only;
select set_config('fastify_ai_credits.schema', :'schema', true), set_config('fastify_ai_credits.points', '[]', true),
  set_config('fastify_ai_credits.path', to_json(current_schemas(false))::text, true);
set local search_path to pg_catalog, pg_temp;
set local statement_timeout to 0;

-- Another process may be adopting: its locks on the two tables and what is read here could wait for each other.
select pg_advisory_xact_lock(hashtextextended('fastify-ai-credits', 0));

\ir check/tables.sql
\ir check/columns.sql
\ir check/dependents.sql
\ir check/keys.sql
\ir check/rows.sql
\ir check/metadata.sql

do $$
begin
  if current_setting('fastify_ai_credits.points') <> '[]' then
    raise exception using errcode = 'FC001', message = (
      select format(E'The tables ai_credits and ai_credit_usage in the schema %I cannot be adopted as they are. Nothing was '
        'changed. Run the statement of each point, then start again.\n\n%s', current_setting('fastify_ai_credits.schema'),
        string_agg(format(E'%s. %s:\n   %s', number, point->>0, point->>1), E'\n' order by number))
      from jsonb_array_elements(current_setting('fastify_ai_credits.points')::jsonb) with ordinality points (point, number));
  end if;
end
$$;

commit;
