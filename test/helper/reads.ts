import { setTimeout as sleep } from 'node:timers/promises'
import type pg from 'pg'
import type { Test } from 'tap'

/** How much a piece of work reads of the tables. */
export interface Reads {
  /** How many rows it reads through an index. */
  rows: number
  /** How many index entries it reads, including those of deleted rows. How long these remain is not up to the work. */
  entries: number
  /** How many scans of whole tables it makes. */
  scans: number
}

/** Does the work on the pool, which nothing else may use meanwhile. Returns what it read of the tables with such names. */
export async function readsOf (pool: pg.Pool, work: () => Promise<unknown>, tables = 'ai_credit%'): Promise<Reads> {
  const before = await read(pool, tables)
  await work()
  const after = await read(pool, tables)
  return { rows: after.rows - before.rows, entries: after.entries - before.entries, scans: after.scans - before.scans }
}

/** Returns a function that makes a call, and asserts that it reads at most so many rows, and no table as a whole. */
export function readsTo (t: Test, pool: pg.Pool, most: number) {
  return async function reads<T> (name: string, work: () => Promise<T>): Promise<T> {
    let result: T
    const { rows, scans } = await readsOf(pool, async () => { result = await work() })
    t.ok(rows <= most, `${name} reads ${rows} rows, at most ${most}`)
    t.equal(scans, 0, `${name} looks through no table`)
    return result!
  }
}

async function read (pool: pg.Pool, tables: string): Promise<Reads> {
  await settle(pool)
  const { rows: [row] } = await pool.query(`
    select sum(idx_tup_fetch)::int as rows, sum(seq_scan)::int as scans,
      (select sum(idx_tup_read)::int from pg_stat_user_indexes where relname like $1) as entries
    from pg_stat_user_tables where relname like $1`, [tables])
  return row
}

// Waits until the sessions have reported their statistics. Before PostgreSQL 15 a session that does anything reports twice a
// second, and its report shows half a second later.
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
