import type { Connection } from './types.js'

/**
 * Runs `work` in a transaction at READ COMMITTED, whatever the default isolation level is. At a stricter level, a statement
 * that waits for a lock does not see what the other transaction wrote, and fails (40001).
 */
export async function runReadCommitted<T> (connection: Connection, work: () => Promise<T>): Promise<T> {
  await connection.query({ text: 'begin isolation level read committed' })
  try {
    const result = await work()
    const { command } = await connection.query({ text: 'commit' })
    if (command !== 'COMMIT') throw new Error(`COMMIT was answered with ${command}`)
    return result
  } catch (error) {
    await connection.query({ text: 'rollback' })
    throw error
  }
}
