import { mkdir, rm } from 'node:fs/promises'
import { startPostgres } from './postgres.js'
import { runner, sharedFolder } from './shared-server.js'
import { createTemplates } from './templates.js'

if (process.env.TEST_DATABASE_URL === undefined) {
  // Of a run that had the same process id, long ago.
  await rm(sharedFolder, { recursive: true, force: true })
  await mkdir(sharedFolder)
  const server = await startPostgres({ version: process.env.TEST_POSTGRES_VERSION, folder: sharedFolder, owner: runner })
  await createTemplates(server.connectionString)
}
