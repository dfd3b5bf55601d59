-- What depends on the columns that get another type, or would run with each row.
with recursive tables as (
  select oid, relname, oid::regclass as name from pg_class
  where relnamespace = to_regnamespace(quote_ident(:'schema')) and relname in ('ai_credits', 'ai_credit_usage') and relkind = 'r'
), dependents as (
  select distinct tables.name, refobjsubid, classid, objid
  from pg_depend join tables on refclassid = 'pg_class'::regclass and refobjid = tables.oid
    join pg_attribute on attrelid = refobjid and attnum = refobjsubid
  where attname in ('id', 'user_id', 'total_credits', 'used_credits', 'credits_used', 'operation', 'metadata', 'created_at',
    'updated_at')
), views (oid, depth) as (
  select ev_class, 1 from pg_rewrite join dependents on classid = 'pg_rewrite'::regclass and objid = pg_rewrite.oid
  where ev_class not in (select oid from tables)
  union
  select ev_class, depth + 1
  from views join pg_depend on refclassid = 'pg_class'::regclass and refobjid = views.oid and classid = 'pg_rewrite'::regclass
    join pg_rewrite on pg_rewrite.oid = objid
  where ev_class <> views.oid
), points (place, problem, statement) as (
  select -max(depth), format('The view %s depends on columns that get another type. Afterwards make it again, from: %s',
      oid::regclass, btrim(regexp_replace(pg_get_viewdef(oid), '\s+', ' ', 'g'), ' ;')),
    format('drop %s %s;', case relkind when 'm' then 'materialized view' else 'view' end, oid::regclass)
  from views join pg_class using (oid) group by oid, relkind
  union all
  select 1, format('The function %s depends on columns that get another type. Make it again afterwards', objid::regprocedure),
    format('drop function %s;', objid::regprocedure)
  from dependents where classid = 'pg_proc'::regclass group by objid
  union all
  select 2, format('%s.%I is computed from columns that get another type. Afterwards add it again, as: %s', name, attname,
      pg_get_expr(adbin, adrelid)),
    format('alter table %s drop column %I;', name, attname)
  from dependents join pg_attrdef on classid = 'pg_attrdef'::regclass and objid = pg_attrdef.oid
    join pg_attribute on attrelid = adrelid and attnum = adnum
  where attgenerated <> '' and refobjsubid <> adnum group by name, attname, adbin, adrelid
  union all
  select 3, format('The policy %I of %s depends on columns that get another type', polname, polrelid::regclass),
    format('drop policy %I on %s;', polname, polrelid::regclass)
  from dependents join pg_policy on classid = 'pg_policy'::regclass and objid = pg_policy.oid group by polname, polrelid
  union all
  select 4, format('The trigger %I of %s depends on columns that get another type. Make it again afterwards, if it changes no '
      'row: %s', tgname, tgrelid::regclass, pg_get_triggerdef(pg_trigger.oid)),
    format('drop trigger %I on %s;', tgname, tgrelid::regclass)
  from dependents join pg_trigger on classid = 'pg_trigger'::regclass and objid = pg_trigger.oid
  where not tgisinternal group by pg_trigger.oid
  union all
  select 5, format('The trigger %I of %s would run with each row that adoption or the ledger writes. Enable it again '
      'afterwards, if it changes no row', tgname, tgrelid::regclass),
    format('alter table %s disable trigger %I;', tgrelid::regclass, tgname)
  from pg_trigger
  where tgrelid in (select oid from tables) and not tgisinternal and tgenabled <> 'D'
    and not exists (select from dependents where classid = 'pg_trigger'::regclass and objid = pg_trigger.oid)
  union all
  select 6, format('The rule %I of %s may make something else of what the ledger writes', rulename, ev_class::regclass),
    format('drop rule %I on %s;', rulename, ev_class::regclass)
  from pg_rewrite where ev_class in (select oid from tables)
  union all
  select 7, format('The publication %I filters rows of %s by columns that get another type', pubname, prrelid::regclass),
    format('alter publication %I drop table %s;', pubname, prrelid::regclass)
  from dependents join pg_publication_rel on classid = 'pg_publication_rel'::regclass and objid = pg_publication_rel.oid
    join pg_publication on pg_publication.oid = prpubid
  group by pubname, prrelid
  union all
  select 8, format('%s.%I holds rows of %s, whose columns get another type', attrelid::regclass, attname, name),
    format('alter table %s alter column %I type text using %2$I::text;', attrelid::regclass, attname)
  from tables join pg_class row_of using (oid) join pg_type on pg_type.oid = row_of.reltype
    join pg_attribute on atttypid in (pg_type.oid, pg_type.typarray) and not attisdropped
    join pg_class holder on holder.oid = attrelid and holder.relkind in ('r', 'p', 'm')
)
select set_config('fastify_ai_credits.points', (current_setting('fastify_ai_credits.points')::jsonb
  || coalesce(jsonb_agg(jsonb_build_array(problem, statement) order by place, problem), '[]'))::text, true)
from points;
