import { join } from 'node:path'
import { connectionStringOf } from './postgres.js'
import { temporaryFolder } from './unprivileged.js'

// Test files are separate processes, and so are `before.ts` and `after.ts`: all they share is their parent.
/** The test runner, by whose process id its server is found. */
export const runner = process.ppid

/** Where the server for all test files of this run is. */
export const sharedFolder = join(temporaryFolder, `fastify-ai-credits-run-${runner}`)

/** The connection string of a user who may create databases, on the server for all test files of this run. */
export async function sharedConnectionString (): Promise<string> {
  return process.env.TEST_DATABASE_URL ?? connectionStringOf(sharedFolder)
}
