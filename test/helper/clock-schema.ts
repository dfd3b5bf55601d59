/**
 * SQL of a clock that tests set. The product has no switch for this. It reads the clock in one function, ai_credit_now();
 * these tests replace it by one that returns the time in a table. Older functions had no such function, and called
 * `statement_timestamp()` by the search path. For them this schema has one, and comes before pg_catalog.
 */
export const clockSchema = `
  create schema test_clock;
  create table test_clock.clock (instant timestamptz not null);
  insert into test_clock.clock values (now());
  create function test_clock.statement_timestamp() returns timestamptz
  language sql stable return (select instant from test_clock.clock);`

/**
 * SQL of a clock of one node of Citus, to be run on each. No table of Citus: what Citus sends to a node may not read such a table
 * there, and the ledger's functions ask for the time in all that they do.
 */
export const nodeClock = [
  'set citus.enable_ddl_propagation to off',
  'create schema test_clock',
  'create table test_clock.clock (instant timestamptz not null)',
  'insert into test_clock.clock values (now())'
]

/** SQL that sets the clocks of all nodes to $1, and returns those that it could not set. */
export const setNodeClocks = `
  select * from run_command_on_all_nodes(format('update test_clock.clock set instant = %L', $1::timestamptz)) where not success`

/** SQL that makes the ledger's functions use this clock. They must be there already. */
export const setFunctionsClock = `
  do $$
  begin
    if exists (select from pg_proc where proname = 'ai_credit_now' and strpos(pg_get_functiondef(oid), 'test_clock') = 0) then
      create or replace function public.ai_credit_now() returns timestamptz
      language sql stable as 'select instant from test_clock.clock';
    end if;
  end
  $$`

/** The search path by which older functions use this clock. New objects are created in public. */
export const clockedPath = 'public, test_clock, pg_catalog'

/** Returns the connection string with this search path added. */
export function withClock (connectionString: string): string {
  const url = new URL(connectionString)
  url.searchParams.set('options', `-c search_path=${clockedPath.replaceAll(' ', '')}`)
  return url.href
}
