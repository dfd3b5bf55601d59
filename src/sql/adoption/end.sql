-- Goes on with adoption after 006_tables.sql, in parts, and tells how far it is. For psql; the library does the same.
\ir state.sql
\if :begun
  \ir records.sql
  select set_config('fastify_ai_credits.schema', :'schema', false);
  do $$
  declare
    schema text := current_setting('fastify_ai_credits.schema');
    part bigint;
    done bigint := 0;
    total bigint;
  begin
    execute format('select count(*) from %I.ai_credit_adoption where id > coalesce((
      select value::bigint from %1$I.ai_credit_settings where name = ''adopted_to''), -9223372036854775808)', schema) into total;
    loop
      execute format('select %I.ai_credit_adopt_records(50000)', schema) into part;
      commit;
      exit when part = 0;
      done := done + part;
      raise notice 'adopted % of % usage records', done, total;
    end loop;
  end
  $$;
  \ir finish.sql
\endif
