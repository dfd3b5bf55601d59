import { spawn } from 'node:child_process'
import { mkdtemp, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { findBinaries } from './binaries.js'
import { copyBinaries } from './copy-binaries.js'
import { PostgresServer, urlOf, type Settings } from './postgres-server.js'
import { runBinary } from './run-binary.js'
import { handOver, temporaryFolder } from './unprivileged.js'

export type { PostgresServer } from './postgres-server.js'

const defaults: Settings = {
  listen_addresses: '127.0.0.1',
  unix_socket_directories: '',
  max_connections: 200,
  // No test survives a crash of the machine. A test that measures durability can switch it on.
  fsync: 'off'
}

export interface PostgresOptions {
  /** A major version such as '16', or an exact one. Default: the installed one. */
  version?: string | undefined
  /** Settings of the server. They are added to the defaults for tests, and replace them. */
  settings?: Settings
  /** An empty folder for everything that the server needs. Default: a new one. */
  folder?: string
  /** The id of the process whose end stops the server. Default: this process. */
  owner?: number
}

/** Starts a new PostgreSQL server. Once it is stopped, or its owner has ended, nothing of it remains. */
export async function startPostgres (options: PostgresOptions = {}): Promise<PostgresServer> {
  return await startIn(options, (folder, settings) => PostgresServer.create(folder, settings))
}

/** Starts a standby with the data of a stopped server. Once that server runs again, the standby follows it. */
export async function startStandby (primary: PostgresServer, options: PostgresOptions = {}): Promise<PostgresServer> {
  return await startIn(options, (folder, settings) => PostgresServer.createStandby(folder, primary, settings))
}

async function startIn (
  options: PostgresOptions, start: (folder: string, settings: Settings) => Promise<PostgresServer>
): Promise<PostgresServer> {
  const folder = options.folder ?? await mkdtemp(join(temporaryFolder, 'fastify-ai-credits-'))
  watch(folder, options.owner ?? process.pid)
  try {
    await handOver(folder)
    await copyBinaries(await findBinaries(options.version, folder), folder)
    return await start(folder, { ...defaults, ...options.settings })
  } catch (error) {
    await rm(folder, { recursive: true, force: true })
    throw error
  }
}

/** Stops the server in this folder, which any process may have started, and removes the folder. */
export async function stopPostgres (folder: string): Promise<void> {
  await runBinary(folder, 'pg_ctl', ['stop', '-D', join(folder, 'data'), '-m', 'immediate'])
  await rm(folder, { recursive: true, force: true })
}

/** Returns the superuser's connection string of the server in this folder, which any process may have started. */
export async function connectionStringOf (folder: string): Promise<string> {
  const lines = (await readFile(join(folder, 'data', 'postmaster.pid'), 'utf8')).split('\n')
  return urlOf(Number(lines[3]))
}

function watch (folder: string, owner: number): void {
  const watchdog = fileURLToPath(new URL('watchdog.js', import.meta.url))
  // Without the test runner's environment: it makes every Node.js process record its coverage.
  const env = { SYSTEMROOT: process.env.SYSTEMROOT }
  spawn(process.execPath, [watchdog, folder, String(owner)], {
    cwd: tmpdir(), env, detached: true, stdio: 'ignore', windowsHide: true
  }).unref()
}
