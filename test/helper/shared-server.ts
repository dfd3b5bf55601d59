import { mkdir, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { connectionStringOf, startPostgres } from '../../bench/postgres/postgres.js'
import { temporaryFolder } from '../../bench/postgres/unprivileged.js'
import { createTemplates } from './templates.js'

/** Where the server is for the test files that a process runs. Each of them is a process too: all they share is that parent. */
export function folderOf (runner: number): string {
  return join(temporaryFolder, `fastify-ai-credits-run-${runner}`)
}

/** Starts that server, with the databases that tests get copies of. */
export async function startSharedServer (runner: number): Promise<void> {
  const folder = folderOf(runner)
  await rm(folder, { recursive: true, force: true }) // of a run that had the same process id, long ago
  await mkdir(folder)
  const server = await startPostgres({ version: process.env.TEST_POSTGRES_VERSION, folder, owner: runner })
  await createTemplates(server.connectionString)
}

/** The connection string of a user who may create databases, on the server for all test files of this run. */
export async function sharedConnectionString (): Promise<string> {
  return process.env.TEST_DATABASE_URL ?? connectionStringOf(folderOf(process.ppid))
}
