-- What rows have in columns whose types are fit for adoption.
do $$
declare
  schema varchar := current_setting('fastify_ai_credits.schema');
  points jsonb := '[]';
  target record;
  found record;
  digits integer := 0;    -- after the decimal point, over all amounts
  example varchar;
begin
  for target in
    select pg_class.oid::regclass as name, relname, attname, coalesce(domain.typname, pg_type.typname) as type,
      exists (
        select from pg_index
        where indrelid = pg_class.oid and indisunique and indimmediate and indisvalid and indpred is null
          and indnkeyatts = 1 and indkey[0] = attnum) as is_unique,
      (select min(conname) from pg_constraint
        where contype = 'f' and conrelid = pg_class.oid and attnum = any(conkey)
          and confrelid <> coalesce(to_regclass(format('%I.ai_credits', schema)), 0)) as refers
    from pg_class join pg_attribute on attrelid = pg_class.oid and attnum > 0 and not attisdropped
      join pg_type on pg_type.oid = atttypid left join pg_type domain on domain.oid = pg_type.typbasetype
    where relnamespace = to_regnamespace(quote_ident(schema)) and relname in ('ai_credits', 'ai_credit_usage') and relkind = 'r'
      and pg_has_role(relowner, 'usage')
    order by relname, attname
  loop
    if target.attname in ('total_credits', 'used_credits', 'credits_used')
      and target.type in ('int8', 'numeric', 'float4', 'float8')
    then
      execute format('select count(*) from %s where not %I between -9007199254740991 and 9007199254740991', target.name,
        target.attname) into found;
      if found.count > 0 then
        points := points || jsonb_build_array(jsonb_build_array(
          format('%s.%I is beyond what the ledger counts to, 9007199254740991, in %s rows', target.name, target.attname, found.count),
          format('update %s set %I = case when %2$I < 0 then -9007199254740991 else 9007199254740991 end
            where not %2$I between -9007199254740991 and 9007199254740991;', target.name, target.attname)));
      elsif target.type <> 'int8' then
        execute format('select max(scale(trim_scale(%I::numeric))) as digits, min(%1$I) filter (where scale(trim_scale(%1$I::numeric)) > 0)
          as example from %s', target.attname, target.name) into found;
        if found.digits > 0 then
          digits := greatest(digits, found.digits);
          example := coalesce(example, format('%s.%I is %s', target.name, target.attname, found.example));
        end if;
      end if;

    elsif target.attname in ('created_at', 'updated_at') and target.type in ('timestamp', 'timestamptz', 'date') then
      execute format('select count(*) from %s where not isfinite(%I)', target.name, target.attname) into found;
      if found.count > 0 then
        points := points || jsonb_build_array(jsonb_build_array(
          format('%s.%I is infinite in %s rows', target.name, target.attname, found.count),
          format('update %s set %I = current_timestamp where not isfinite(%2$I);', target.name, target.attname)));
      end if;

    elsif target.relname = 'ai_credits' and target.attname = 'user_id' and not target.is_unique then
      execute format('select count(*) filter (where user_id is null) as nobody, count(*) - count(distinct user_id) -
        count(*) filter (where user_id is null) as repeated from %s', target.name) into found;
      if found.nobody > 0 then
        points := points || jsonb_build_array(jsonb_build_array(
          format('%s has %s accounts without a user_id, which nobody can name', target.name, found.nobody),
          format('delete from %s where user_id is null;', target.name)));
      end if;
      if found.repeated > 0 then
        points := points || jsonb_build_array(jsonb_build_array(
          format('%s has %s accounts whose user_id another account has. To make one of them, with their sum', target.name,
            found.repeated),
          format('with gone as (delete from %s where user_id in (select user_id from %1$s group by user_id having count(*) > 1) '
            'returning *) insert into %1$s (user_id, total_credits, used_credits, created_at, updated_at) select user_id, '
            'sum(total_credits), sum(used_credits), min(created_at), max(updated_at) from gone group by user_id;', target.name)));
      end if;

    elsif target.relname = 'ai_credit_usage' and target.attname = 'id' and not target.is_unique
      and target.type in ('int2', 'int4', 'int8')
    then
      execute format('select count(*) - count(distinct id) as repeated from %s', target.name) into found;
      if found.repeated > 0 then
        points := points || jsonb_build_array(jsonb_build_array(
          format('%s has %s records without an id of their own. To give them new ones', target.name, found.repeated),
          format('update %s record set id = fresh.id from (select place, (select coalesce(max(id), 0) from %1$s) + row_number() '
            'over () as id from (select ctid as place, id, row_number() over (partition by id order by ctid) as nth from %1$s) '
            'numbered where id is null or nth > 1) fresh where record.ctid = fresh.place;', target.name)));
      end if;

    elsif target.relname = 'ai_credit_usage' and target.attname = 'user_id' and target.refers is not null then
      execute format('select count(*) from %s where user_id is null', target.name) into found;
      if found.count > 0 then
        points := points || jsonb_build_array(jsonb_build_array(
          format('%s has %s records without a user_id, which get the user_id '''', and the foreign key %I refuses that', target.name,
            found.count, target.refers),
          format('alter table %s drop constraint %I;', target.name, target.refers)));
      end if;
    end if;
  end loop;

  if digits > 0 then
    points := points || jsonb_build_array(jsonb_build_array(
      format('Credits are whole numbers, and %s. Count in units of which a credit has %s, here and in what callers send',
        example, 10 ^ digits),
      (select string_agg(format('alter table %s alter column %I type numeric using %2$I::numeric * %s;', attrelid::regclass,
          attname, 10 ^ digits), ' ' order by attrelid, attnum)
        from pg_attribute
        where attrelid in (to_regclass(format('%I.ai_credits', schema)), to_regclass(format('%I.ai_credit_usage', schema)))
          and attname in ('total_credits', 'used_credits', 'credits_used') and not attisdropped)));
  end if;
  perform set_config('fastify_ai_credits.points',
    (current_setting('fastify_ai_credits.points')::jsonb || points)::text, true);
end
$$;
