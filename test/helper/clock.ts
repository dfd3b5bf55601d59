import type { Test } from 'tap'
import pg from 'pg'
import { createDatabase, pglite } from './database.js'

/** A database whose clock the test sets. */
export interface ClockedDatabase {
  /** Connects with the test's clock; a connection string without `options` has the real one. */
  connectionString: string
  /** Sets what time it is, for every connection: an ISO 8601 time. */
  setClock: (time: string) => Promise<void>
}

/**
 * An empty database in which `statement_timestamp()` is what the test says. The product has no switch for this: a schema
 * that comes before pg_catalog in the search path of the test's connections has a function of that name.
 */
export async function createClockedDatabase (t: Test, time: string): Promise<ClockedDatabase> {
  const plain = await createDatabase(t)
  const client = new pg.Client({ connectionString: plain })
  client.on('error', () => {})
  await client.connect()
  t.teardown(() => client.end())
  await client.query(`
    create schema test_clock;
    create table test_clock.clock (instant timestamptz not null);
    insert into test_clock.clock values (now());
    create function test_clock.statement_timestamp() returns timestamptz
    language sql stable return (select instant from test_clock.clock);`)
  const setClock = async (instant: string) => {
    await client.query('update test_clock.clock set instant = $1', [instant])
  }
  await setClock(time)
  // PGlite takes no options from a connection, and all connections share its one session.
  if (pglite) await client.query('set search_path to test_clock, pg_catalog, public')
  const url = new URL(plain)
  url.searchParams.set('options', '-c search_path=test_clock,pg_catalog,public')
  return { connectionString: url.href, setClock }
}
