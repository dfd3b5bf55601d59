-- How functions plan their queries on this Citus: see ai_credit_keeps_plans. Within functions.sql, at the beginning.
select set_config('fastify_ai_credits.citus', case when (
    select bool_and(result::boolean) from run_command_on_all_nodes(format('select %I.ai_credit_keeps_plans(%L)', :'schema', :'schema'))
    where result <> ''
  ) then 'auto' else 'force_custom_plan' end, true);
