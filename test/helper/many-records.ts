import type pg from 'pg'
import type { Test } from 'tap'
import { createLedger } from '../../src/index.js'
import { defaults } from './app.js'
import { createDatabase, createPool } from './database.js'
import { originalTables } from './original-tables.js'

/** How many usage records there are: two parts of adoption, and too many for the 10 seconds of Fastify's default timeout. */
export const records = 60_000

const users = 100

/** Creates a database with the original tables and that many records. */
export async function databaseOfMany (t: Test) {
  const connectionString = await createDatabase(t)
  const pool = createPool(t, connectionString, { max: 2 })
  await pool.query(originalTables)
  await pool.query(`
    insert into ai_credits (user_id, used_credits) select 'user ' || i, ${records / users} from generate_series(1, ${users}) i;
    insert into ai_credit_usage (user_id, credits_used, operation, metadata, created_at)
    select 'user ' || 1 + i % ${users}, 1, 'chat', '{"words": 7}', timestamp '2024-01-01' + i * interval '1 minute'
    from generate_series(1, ${records}) i`)
  return { pool, connectionString }
}

/** Asserts that each record has its seq, each account and day has its sum, and that no trace of the adoption is left. */
export async function isAdopted (t: Test, pool: pg.Pool) {
  const ledger = createLedger(pool, { ...defaults.prepare === false && { prepare: false } })
  t.match(await ledger.reconcile(), { ok: true, differences: [], accounts: users })
  t.strictSame((await pool.query(`
    select count(*)::integer as records, min(seq)::integer as first, max(seq)::integer as last,
      bool_and(used_after = seq and total_after = 10000) as balanced
    from ai_credit_usage`)).rows, [{ records, first: 1, last: records / users, balanced: true }])
  t.strictSame((await pool.query("select name from ai_credit_settings where name like '%\\_to'")).rows, [])
  t.strictSame((await pool.query("select reloptions from pg_class where relname = 'ai_credit_usage'")).rows, [{ reloptions: null }])
}
