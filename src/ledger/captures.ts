import type { Database } from './database.js'
import type { Metadata } from './metadata.js'

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

/** Reads what captures were for, in their order: a shared statement answers only numbers, of many captures. */
export async function readCaptures (
  database: Database, captures: readonly CaptureIds[], timeout: number
): Promise<CaptureFacts[]> {
  const row = await database.send({
    name: 'ai_credit_captures',
    text: 'select captures from ai_credit_captures($1, $2)',
    values: () => [captures.map(({ holdId }) => holdId), captures.map(({ id }) => id)],
    repeatable: true
  }, performance.now() + timeout)
  const facts: Array<[string, Metadata, number]> = JSON.parse(row.captures)
  return facts.map(([operation, metadata, amount]) => ({ operation, metadata, amount }))
}
