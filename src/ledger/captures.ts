import type { Database } from './database.js'
import type { Metadata } from './metadata.js'
import { functionCall } from './function-call.js'
import { now } from './timers.js'

const CAPTURES = functionCall('ai_credit_captures', ['bigint[]', 'bigint[]'])

/** A capture, known by its hold, and by its usage record where it made one. */
export interface CaptureIds {
  holdId: string
  id: string | null
}

/** What a capture was for. */
export interface CaptureFacts {
  operation: string
  metadata: Metadata
  /** By how many credits it changed what is available. */
  amount: number
}

/**
 * Reads what captures were for, in their order: a shared statement returns only numbers, of many captures. Returns
 * undefined for one that has been pruned since.
 */
export async function readCaptures (
  database: Database, captures: readonly CaptureIds[], timeout: number
): Promise<Array<CaptureFacts | undefined>> {
  const row = await database.send({
    name: 'ai_credit_captures',
    text: CAPTURES,
    values: () => [captures.map(({ holdId }) => holdId), captures.map(({ id }) => id)],
    repeatable: true
  }, now() + timeout, null)
  const facts: Array<[string | null, Metadata | null, number | null]> = JSON.parse(row.captures)
  return facts.map(([operation, metadata, amount], index) => {
    const gone = operation === null || (captures[index]!.id !== null && metadata === null)
    return gone ? undefined : { operation, metadata: metadata!, amount: amount! }
  })
}
