-- Makes the functions those of Citus, and delegates what is about one account to the node where it lives. Within functions.sql, at the
-- end.
--
-- Citus sends a query to one place if it names the account by itself. So two conditions become plain: `user_id || ''`, which on
-- PostgreSQL keeps a query from an index, and `coalesce(p_user_id, user_id)`, as the account is always given here. A function of SQL
-- that reads a table becomes one of PL/pgSQL, as Citus plans no query of the former that has parameters. And a query has no plan for
-- any account, which Citus refuses: it has one for the account, or one by which Citus looks for the account's place each time, if this
-- Citus does that well (begin.sql).
do $$
declare
  schema text := current_setting('fastify_ai_credits.schema');
  tables text := format('\m(ai_credits|%s)\M', (
    select string_agg(relname, '|') from pg_class join pg_namespace on pg_namespace.oid = relnamespace
    where nspname = schema and relname like 'ai\_credit\_%' and relkind in ('r', 'v') and relname <> 'ai_credit_settings'));
  mode text := current_setting('fastify_ai_credits.citus');
  function record;
  definition text;
begin
  for function in
    select pg_proc.oid::regprocedure as signature, pg_get_functiondef(pg_proc.oid) as definition, prosrc, prosecdef, proretset, lanname,
      'p_user_id' = any(proargnames) as is_of_account
    from pg_proc join pg_namespace on pg_namespace.oid = pronamespace join pg_language on pg_language.oid = prolang
    where nspname = schema and proname like 'ai\_credit\_%' and proname not like 'ai\_credit\_usage\_%'
  loop
    definition := replace(function.definition, 'user_id || ''''', 'user_id');
    definition := regexp_replace(definition, 'coalesce\(p_user_id, (\w+\.)?user_id\)', 'p_user_id', 'g');
    definition := replace(definition, 'SET plan_cache_mode TO ''force_generic_plan''', format('SET plan_cache_mode TO %L', mode));
    if function.lanname = 'sql' and function.prosrc ~ tables then
      definition := replace(definition, 'LANGUAGE sql', 'LANGUAGE plpgsql');
      definition := regexp_replace(definition, '\$function\$(.*)\$function\$', case when function.proretset
        then '$function$' || E'\n#variable_conflict use_column\nbegin\n  return query\\1;\nend\n' || '$function$'
        else '$function$' || E'\n#variable_conflict use_column\nbegin\n  return (\\1);\nend\n' || '$function$' end);
    end if;
    if definition <> function.definition then
      execute definition;
    end if;
    if function.prosecdef then
      execute format('alter function %s set plan_cache_mode to %L', function.signature, mode);
      if function.is_of_account then
        perform create_distributed_function(function.signature, 'p_user_id', format('%I.ai_credits', schema));
      end if;
    end if;
  end loop;
  execute format('insert into %I.ai_credit_settings (name, value) values (''citus'', current_setting(''fastify_ai_credits.content''))
    on conflict (name) do update set value = excluded.value', schema);
end
$$;
