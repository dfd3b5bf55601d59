import type { Database } from '../database/database.js'
import type { Change, Settled } from './events.js'
import { functionCall } from '../posting/function-call.js'
import { now } from '../timers.js'

const CHANGES = functionCall('ai_credit_changes', ['varchar', 'bigint', 'bigint'])

/** Reads the due changes (lapses, expiries, renewals) that a statement has applied to an account, in order. */
export async function readChanges (
  database: Database, { userId, after, to }: Settled, timeout: number
): Promise<Change[]> {
  const row = await database.run({
    name: 'ai_credit_changes',
    text: CHANGES,
    values: () => [userId, after, to],
    repeatable: true
  }, { deadline: now() + timeout, sentAgainBy: 'database' })
  return JSON.parse(row.changes)
}
