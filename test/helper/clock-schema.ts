/**
 * A clock that tests set: the product has no switch for this, but a schema that comes before pg_catalog in the search path
 * of the test's connections has a `statement_timestamp()` that answers what a table says.
 */
export const clockSchema = `
  create schema test_clock;
  create table test_clock.clock (instant timestamptz not null);
  insert into test_clock.clock values (now());
  create function test_clock.statement_timestamp() returns timestamptz
  language sql stable return (select instant from test_clock.clock);`

/** The search path of connections that have this clock. */
export const clockedPath = 'test_clock, pg_catalog, public'

/** The connection string, for connections with this clock. */
export function withClock (connectionString: string): string {
  const url = new URL(connectionString)
  url.searchParams.set('options', `-c search_path=${clockedPath.replaceAll(' ', '')}`)
  return url.href
}
