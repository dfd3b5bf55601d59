-- Refuses to replace functions that are newer, or others with the same number, or those of Citus. Citus sends functions to its nodes
-- only after the tables that they name.
do $$
declare
  versions text := format('%I.ai_credit_functions', current_setting('fastify_ai_credits.schema'));
  set_number integer := current_setting('fastify_ai_credits.number');
  installed record;
  distributed boolean := false;
begin
  if exists (select from pg_extension where extname = 'citus') then
    execute format('select exists (select from pg_dist_partition where logicalrelid = ''%I.ai_credits''::regclass)',
      current_setting('fastify_ai_credits.schema')) into distributed;
    if not distributed then
      set local citus.enable_ddl_propagation to off;
    elsif coalesce(current_setting('fastify_ai_credits.citus', true), '') = '' then
      raise object_not_in_prerequisite_state using
        message = 'The tables are distributed by Citus', hint = 'Nothing was changed. Run citus.sql in place of functions.sql.';
    end if;
  end if;
  execute format('select number, content from %s order by number desc limit 1', versions) into installed;
  if installed.number > set_number then
    raise object_not_in_prerequisite_state using
      message = format('This database has newer functions, number %s; these are number %s', installed.number, set_number),
      hint = 'Nothing was changed. Use the files of the newer release.';
  elsif installed.number = set_number and installed.content <> current_setting('fastify_ai_credits.content') then
    raise object_not_in_prerequisite_state using
      message = format('This database has other functions with the same number, %s', set_number),
      hint = format('Nothing was changed. To replace them: delete from %s where number = %s', versions, set_number);
  end if;
end
$$;
