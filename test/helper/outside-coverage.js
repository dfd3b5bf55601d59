import { spawnSync } from 'node:child_process'
import { fileURLToPath } from 'node:url'

/**
 * Runs server-command.ts for the test runner, unless tests use a server that is there already. In a process of its own: tap
 * counts the coverage of what its files `before` and `after` load, and starting servers is not what is tested.
 */
export function runServerCommand (command) {
  if (process.env.TEST_DATABASE_URL !== undefined || process.env.TEST_CITUS !== undefined) return
  const script = fileURLToPath(new URL('server-command.ts', import.meta.url))
  const { status } = spawnSync(process.execPath, ['--import=@tapjs/typescript/import', script, command, String(process.ppid)],
    { stdio: 'inherit', env: { ...process.env, _TAPJS_PROCESSINFO_COVERAGE_: '0' } })
  process.exitCode = status ?? 1
}
