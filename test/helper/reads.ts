import { setTimeout as sleep } from 'node:timers/promises'
import type pg from 'pg'

/** What a piece of work reads of the tables. */
export interface Reads {
  /** Rows, found by an index. */
  rows: number
  /** Entries of indexes, also those whose rows are gone: how long these stay to be read is not up to the work. */
  entries: number
  /** Scans of whole tables. */
  scans: number
}

/** Does the work through the pool, which nothing else uses meanwhile, and tells what that read of the tables with such names. */
export async function readsOf (pool: pg.Pool, work: () => Promise<unknown>, tables = 'ai_credit%'): Promise<Reads> {
  const before = await read(pool, tables)
  await work()
  const after = await read(pool, tables)
  return { rows: after.rows - before.rows, entries: after.entries - before.entries, scans: after.scans - before.scans }
}

async function read (pool: pg.Pool, tables: string): Promise<Reads> {
  await settle(pool)
  const { rows: [row] } = await pool.query(`
    select sum(idx_tup_fetch)::int as rows, sum(seq_scan)::int as scans,
      (select sum(idx_tup_read)::int from pg_stat_user_indexes where relname like $1) as entries
    from pg_stat_user_tables where relname like $1`, [tables])
  return row
}

// Until the sessions have told what they did: before PostgreSQL 15 each does so twice a second, if it does anything, and
// what was told is shown half a second later.
async function settle (pool: pg.Pool): Promise<void> {
  const clients = await Promise.all(Array.from({ length: pool.totalCount }, () => pool.connect()))
  const { rows: [{ asked }] } = await clients[0]!.query(
    "select exists (select from pg_proc where proname = 'pg_stat_force_next_flush') as asked")
  await Promise.all(clients.map(async client => {
    await client.query(asked ? 'select pg_stat_force_next_flush()' : 'select pg_sleep(0.6)')
    await client.query('select')
    client.release()
  }))
  if (!asked) await sleep(600)
}
