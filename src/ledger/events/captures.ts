import type { Database } from '../database/database.js'
import type { Metadata } from '../input/metadata.js'
import { functionCall } from '../posting/function-call.js'
import { now } from '../timers.js'

const CAPTURES = functionCall('ai_credit_captures', ['bigint[]', 'bigint[]'])

/** The ids of a capture: its hold, and its usage record. A refused capture has no usage record: `id` is null. */
export interface CaptureIds {
  holdId: string
  id: string | null
}

/** Facts about a capture. */
export interface CaptureFacts {
  operation: string
  metadata: Metadata
  /** By how many credits it changed `available`. */
  amount: number
}

/**
 * Reads the facts about captures from the database, because shared statements return only numbers. Returns them in the order
 * of `captures`; undefined for a capture that has been pruned since.
 */
export async function readCaptures (
  database: Database, captures: readonly CaptureIds[], timeout: number
): Promise<Array<CaptureFacts | undefined>> {
  const row = await database.run({
    name: 'ai_credit_captures',
    text: CAPTURES,
    values: () => [captures.map(({ holdId }) => holdId), captures.map(({ id }) => id)],
    repeatable: true
  }, { deadline: now() + timeout, sentAgainBy: 'database' })
  const facts: Array<[string | null, Metadata | null, number | null]> = JSON.parse(row.captures)
  return facts.map(([operation, metadata, amount], index) => {
    const gone = operation === null || (captures[index]!.id !== null && metadata === null)
    return gone ? undefined : { operation, metadata: metadata!, amount: amount! }
  })
}
