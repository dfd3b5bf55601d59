-- Tables, number 9: budgets, the limits on parts of an account's spending; on each usage record and hold, the budgets that it
-- counts in; and the daily usage of each budget.

begin isolation level read committed;
set local search_path to pg_catalog, pg_temp;
select pg_advisory_xact_lock(hashtextextended('fastify-ai-credits', 0));
insert into :"schema".ai_credit_migrations (id) values (9);

-- One limit of a budget. What it has counted is provable: `used` is the sum of the records with a seq above since_seq that count
-- in the budget, and of `gone`. A refund counts where the record that it refunds does.
create type :"schema".ai_credit_limit as (
  amount bigint,
  used bigint,
  since_seq bigint,      -- the account's last posting before this period
  resets_at timestamptz, -- when this period ends; infinity: never
  gone bigint            -- of what is used, what was pruned
);

create table :"schema".ai_credit_budgets (
  user_id varchar not null,
  budget varchar collate "C" not null,
  within varchar collate "C",          -- the budget above it; null: none
  made_seq bigint not null,            -- the account's last posting before the budget was made
  held bigint not null default 0,      -- what is left in open holds that count in it, of those with a seq above made_seq
  day :"schema".ai_credit_limit,       -- null: no such limit
  week :"schema".ai_credit_limit,
  month :"schema".ai_credit_limit,
  total :"schema".ai_credit_limit,
  primary key (user_id, budget)
) with (fillfactor = 50); -- every charge updates rows: so there is room for the next version on the same page, and no index changes
create index ai_credit_budgets_within on :"schema".ai_credit_budgets (user_id, within) where within is not null;
comment on table :"schema".ai_credit_budgets is 'Limits on parts of an account''s spending, with what counts in each.';

-- The path of a charge as it was then: its budget first, then those above it. null: it has none. So it stays provable what counts
-- where, whatever is moved or removed later.
alter table :"schema".ai_credit_usage add column budgets varchar[];
alter table :"schema".ai_credit_holds add column budgets varchar[];

create table :"schema".ai_credit_budget_usage (
  user_id varchar not null,
  budget varchar collate "C" not null,
  day date not null,
  operation varchar not null,
  metadata_hash bytea not null,
  metadata jsonb not null,
  used_credits bigint not null,
  gone bigint not null default 0, -- of these credits, what was pruned
  primary key (user_id, budget, day, operation, metadata_hash)
);
comment on table :"schema".ai_credit_budget_usage is 'Credits used in each budget and below it, summed by day, operation and metadata.';

-- What functions hand each other: see number 7.
alter type :"schema".ai_credit_record add attribute budgets varchar[];
alter type :"schema".ai_credit_new_hold add attribute budgets varchar[];
alter type :"schema".ai_credit_hold_state add attribute budgets varchar[];

-- What was spent, in which budgets, the posting by which it counts, and where daily usage has it.
create type :"schema".ai_credit_counted as (
  seq bigint, credits bigint, budgets varchar[], day date, operation varchar, metadata_hash bytea
);

-- Budgets of one account, side by side by their positions, and what calls count in them. seq is the account's last posting before the
-- calls, instant their time.
create type :"schema".ai_credit_counting as (
  user_id varchar, seq bigint, instant timestamptz,
  budgets varchar[],
  withins varchar[],   -- the budget above each; null: none
  made_seqs bigint[],  -- null: it is not made yet, or that is not known
  room bigint[],       -- what all limits have left; null: it has none
  begun_seqs bigint[], -- the account's last posting before the first charge that names it; null: none does
  used bigint[],       -- what more was spent
  held bigint[]        -- what more is held
);

commit;
