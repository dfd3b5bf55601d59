import type pg from 'pg'
import type { Credits } from '../src/index.js'

/** Makes accounts that no call has used for long: each has so many lapsed holds and expired grants, in alternation. */
export async function neglect (ledger: Credits, pool: pg.Pool, users: string[], holds: number, grants = holds): Promise<void> {
  await Promise.all(users.map(async userId => {
    await Promise.all(Array.from({ length: Math.max(holds, grants) }, async (_, index) => {
      if (index < holds) await ledger.hold({ userId, credits: 1, operation: 'chat', ttl: 3_600_000 })
      if (index < grants) await ledger.grant({ userId, credits: 1, expiresAt: new Date(Date.now() + 3_600_000) })
    }))
  }))
  await pool.query(`
    with holds as (
      update ai_credit_holds set expires_at = now() where user_id = any($1) and state = 'open'
    ), grants as (
      update ai_credit_grants set expires_at = now()
      where user_id = any($1) and kind = 'grant' and state = 'living'
    )
    update ai_credits set due_at = now() where user_id = any($1)`, [users])
}
