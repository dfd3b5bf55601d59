import { readFileSync } from 'node:fs'

/** The SQL that made a database at number 6: tables and functions, in the first schema of the search_path. */
export const number6 = readFileSync(new URL('../upgrade/006.sql', import.meta.url), 'utf8')

/** SQL that the functions of number 6 also need for a test's clock: they read their deadline from clock_timestamp(). */
export const clockOfNumber6 = `
  create or replace function test_clock.clock_timestamp() returns timestamptz
  language sql stable return statement_timestamp();`
