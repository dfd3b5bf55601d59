-- Metadata that is not jsonb yet.
do $$
declare
  usage regclass := to_regclass(format('%I.ai_credit_usage', current_setting('fastify_ai_credits.schema')));
  record record;
  broken bigint[] := '{}';
begin
  if not exists (
    select from pg_attribute join pg_class on pg_class.oid = attrelid
    where attrelid = usage and attname = 'metadata' and atttypid::regtype::text = any('{json,text,character varying,character}')
      and relkind = 'r' and pg_has_role(relowner, 'usage')
      and exists (select from pg_attribute id where id.attrelid = usage and id.attname = 'id' and not attisdropped)
  ) then
    return;
  end if;

  begin
    execute format('select count(metadata::text::jsonb) from %s', usage) into record;
    return;
  exception when data_exception or program_limit_exceeded then -- which records?
  end;
  for record in execute format('select id::bigint, metadata::text as text from %s where metadata is not null order by id', usage) loop
    begin
      perform record.text::jsonb;
    exception when data_exception or program_limit_exceeded then
      broken := array_append(broken, record.id);
      exit when cardinality(broken) = 1000;
    end;
  end loop;
  perform set_config('fastify_ai_credits.points', (current_setting('fastify_ai_credits.points')::jsonb
    || jsonb_build_array(jsonb_build_array(
      format('%s.metadata of the record with the id %s%s is no JSON. To keep it as a string of JSON', usage, broken[1],
        case when cardinality(broken) > 1 then format(' (and of %s others)', cardinality(broken) - 1) else '' end),
      format('update %s set metadata = to_json(replace(metadata::text, ''\u0000'', '''')) where id in (%s);', usage,
        array_to_string(broken, ', ')))))::text, true);
end
$$;
