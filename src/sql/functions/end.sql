-- Completes the set: names the schema in the bodies, drops what is no longer in the set, takes from everybody the right to
-- call (rights.sql gives it to a role), and records the numbers.
do $$
declare
  schema text := current_setting('fastify_ai_credits.schema');
  token text := chr(58) || '"schema"'; -- psql leaves it alone in a body, as it is in quotes there
  this_transaction xid := pg_current_xact_id()::xid;
  function record;
begin
  for function in
    select pg_proc.oid::regprocedure as signature, pg_proc.xmin = this_transaction as is_new,
      case when strpos(prosrc, token) > 0 then pg_get_functiondef(pg_proc.oid) end as definition
    from pg_proc join pg_namespace on pg_namespace.oid = pronamespace
    where nspname = schema and proname like 'ai\_credit\_%' and proname not like 'ai\_credit\_usage\_%'
  loop
    if not function.is_new then
      execute format('drop function %s', function.signature);
      continue;
    end if;
    if function.definition is not null then
      execute replace(function.definition, token, format('"%s"', replace(schema, '"', '""'))); -- as psql quotes
    end if;
    execute format('revoke execute on function %s from public', function.signature);
  end loop;
  execute format('insert into %I.ai_credit_functions (number, oldest_caller, content)
    values (current_setting(''fastify_ai_credits.number'')::integer,
      current_setting(''fastify_ai_credits.oldest_caller'')::integer, current_setting(''fastify_ai_credits.content''))
    on conflict (number) do nothing', schema);
end
$$;
