-- Refuses to replace functions that are newer, or others with the same number.
do $$
declare
  versions text := format('%I.ai_credit_functions', current_setting('fastify_ai_credits.schema'));
  set_number integer := current_setting('fastify_ai_credits.number');
  installed record;
begin
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
