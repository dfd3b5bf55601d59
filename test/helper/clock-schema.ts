/**
 * A clock that tests set. The product has no switch for this: it reads the clock in one function, ai_credit_now(), which
 * these tests replace by one that returns what a table says. The functions of before had no such function, but called
 * `statement_timestamp()` by the search path: for them a schema that comes before pg_catalog has one.
 */
export const clockSchema = `
  create schema test_clock;
  create table test_clock.clock (instant timestamptz not null);
  insert into test_clock.clock values (now());
  create function test_clock.statement_timestamp() returns timestamptz
  language sql stable return (select instant from test_clock.clock);`

/** Gives this clock to the ledger's functions, once they are there. */
export const setFunctionsClock = `
  do $$
  begin
    if exists (select from pg_proc where proname = 'ai_credit_now' and strpos(pg_get_functiondef(oid), 'test_clock') = 0) then
      create or replace function public.ai_credit_now() returns timestamptz
      language sql stable return (select instant from test_clock.clock);
    end if;
  end
  $$`

/** The search path of connections that have this clock with the functions of before; what they create is in public. */
export const clockedPath = 'public, test_clock, pg_catalog'

/** The connection string, for connections with this clock and the functions of before. */
export function withClock (connectionString: string): string {
  const url = new URL(connectionString)
  url.searchParams.set('options', `-c search_path=${clockedPath.replaceAll(' ', '')}`)
  return url.href
}
