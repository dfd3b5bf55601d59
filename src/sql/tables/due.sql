-- Sets due: whether the tables are older than :number. (Before the first of them there is nothing to ask.)
select pg_catalog.to_regclass(pg_catalog.format('%I.ai_credit_migrations', :'schema')) is null as due \gset
\if :due
\else
  select not exists (select from :"schema".ai_credit_migrations where id >= :number) as due \gset
\endif
