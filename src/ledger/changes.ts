import type { Database } from './database.js'
import type { Change, Settled } from './events.js'
import { functionCall } from './function-call.js'
import { now } from './timers.js'

const CHANGES = functionCall('ai_credit_changes', ['varchar', 'bigint', 'bigint'])

/** Reads what time has changed of an account. */
export async function readChanges (
  database: Database, { userId, after, to }: Settled, timeout: number
): Promise<Change[]> {
  const row = await database.send({
    name: 'ai_credit_changes',
    text: CHANGES,
    values: () => [userId, after, to],
    repeatable: true
  }, now() + timeout, null)
  return JSON.parse(row.changes)
}
