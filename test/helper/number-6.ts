import { readFileSync } from 'node:fs'

/** What made a database at number 6: tables and functions, in the first schema of the search_path. */
export const number6 = readFileSync(new URL('../upgrade/006.sql', import.meta.url), 'utf8')

// It asks with clock_timestamp() whether it is late.
/** What its functions need besides on a test's clock. */
export const clockOfNumber6 = `
  create or replace function test_clock.clock_timestamp() returns timestamptz
  language sql stable return statement_timestamp();`
