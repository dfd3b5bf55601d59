import { execFile, spawnSync } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'

/** Why tests that need psql are skipped: it comes with PostgreSQL's clients, not with its server. */
export const skipped = spawnSync('psql', ['--version']).status !== 0 && 'psql is not installed'

/** The folder of the files to run. */
export const sqlFolder = fileURLToPath(new URL('../../src/sql/', import.meta.url))

/** The files that make tables and functions, in order. */
export const scripts = ['tables.sql', 'functions.sql']

/** Runs files with psql, as one does by hand, and returns what it wrote; `options` come before the files. */
export async function psql (connectionString: string, files: string[], options: string[] = []): Promise<string> {
  const args = ['-X', '-q', '-v', 'ON_ERROR_STOP=1', ...options, ...files.flatMap(file => ['-f', file]), connectionString]
  const { stdout } = await promisify(execFile)('psql', args, { cwd: sqlFolder })
  return stdout
}
