import type pg from 'pg'
import t, { type Test } from 'tap'
import { createLedger } from '../../src/index.js'
import { createDatabase, createPool, pglite } from './database.js'
import { originalTables } from './original-tables.js'
import { dumpDatabase } from './schema-dump.js'

/** SQL that fills the original tables of these tests: two records of one user. */
export const rows = `
  insert into ai_credits (user_id, used_credits) values ('1', 30);
  insert into ai_credit_usage (id, user_id, credits_used, operation, metadata, created_at) values
    (3, '1', 10, 'chat', '{"words": 7}', '2024-01-01'), (7, '1', 20, 'image', null, '2024-01-02');
  select setval(pg_get_serial_sequence('ai_credit_usage', 'id'), 7);`

/** Tables that cannot be adopted: the SQL that makes them, and what the error says about them. */
export interface Obstacle {
  sql: string
  says: RegExp
  /** Whether PGlite can have this obstacle. Default: true. */
  pglite?: false
}

/** Tests that each obstacle is named before anything is changed, and that the named statement removes it. */
export function testObstacles (obstacles: Record<string, Obstacle>): void {
  for (const [name, obstacle] of Object.entries(obstacles)) {
    t.test(`named before anything is changed, and mended: ${name}`, { skip: pglite && obstacle.pglite === false }, async t => {
      const { pool, connectionString } = await adoptable(t, obstacle.sql)
      const before = await dumpDatabase(pool)
      const error: any = await createLedger(pool).migrate().catch(error => error)
      t.equal(error.code, 'FST_CREDITS_ADOPTION', error.message)
      t.match(error.message, obstacle.says)
      t.equal(await dumpDatabase(pool), before)
      const fresh = createPool(t, connectionString, { max: 1 })
      for (const [, statement] of error.message.matchAll(/^ {3}(.*?;)$/gms)) await fresh.query(statement)
      await works(t, fresh)
    })
  }
}

/** Creates a database with the original tables, and runs this SQL on it. */
export async function adoptable (t: Test, sql: string) {
  const connectionString = await createDatabase(t)
  const pool = createPool(t, connectionString, { max: 2 })
  await pool.query(originalTables)
  await pool.query(rows)
  await pool.query(sql)
  return { pool, connectionString }
}

/** Adopts the tables. Checks that every kind of call works then, that ids go on after the old ones, and that all reconciles. */
export async function works (t: Test, pool: pg.Pool) {
  const ledger = createLedger(pool, { prepare: !pglite })
  await ledger.migrate()
  t.match(await ledger.reconcile(), { ok: true, differences: [] })
  const highest = Number((await pool.query('select coalesce(max(id), 0) as id from ai_credit_usage')).rows[0].id)
  const { id } = await ledger.deduct({ userId: '1', credits: 5, operation: 'chat', metadata: { words: 7 } })
  t.ok(Number(id) > highest, `${id} > ${highest}`)
  await Promise.all([1, 2, 3].map(() => ledger.deduct({ userId: '1', credits: 1, operation: 'chat' })))
  await ledger.refund({ usageId: id })
  await ledger.deduct({ userId: 'new', credits: 1, operation: 'chat' })
  t.ok((await ledger.history('1', { days: 36_500 })).entries.length > 0)
  t.match(await ledger.reconcile(), { ok: true, differences: [] })
}
