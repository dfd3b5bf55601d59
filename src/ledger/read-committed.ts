import type { Connection } from './database.js'

/**
 * Runs work in a transaction at READ COMMITTED, whatever the host's default is: at a stricter level a waiter does not see
 * what it waited for, and fails (40001).
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
