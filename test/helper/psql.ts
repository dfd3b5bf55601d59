import { execFile, spawnSync } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'

/** The reason to skip tests that need psql; false if it is installed. It comes with PostgreSQL's clients, not its server. */
export const skipped = spawnSync('psql', ['--version']).status !== 0 && 'psql is not installed'

/** The folder of the SQL files. */
export const sqlFolder = fileURLToPath(new URL('../../src/sql/', import.meta.url))

/** The files that make tables and functions, in order. */
export const scripts = ['tables.sql', 'functions.sql']

/** Runs files with psql, like a person would, and returns its output. `options` come before the files. */
export async function psql (connectionString: string, files: string[], options: string[] = []): Promise<string> {
  const args = ['-X', '-q', '-v', 'ON_ERROR_STOP=1', ...options, ...files.flatMap(file => ['-f', file]), connectionString]
  const { stdout } = await promisify(execFile)('psql', args, { cwd: sqlFolder })
  return stdout
}
