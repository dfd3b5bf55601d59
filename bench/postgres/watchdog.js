// Stops PostgreSQL and removes its folder once the owner has ended. It is plain JavaScript, because it must start without a
// TypeScript loader: the test runner's loader ends with the runner.
import { existsSync, readFileSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'

const [folder, owner] = process.argv.slice(2)

while (existsSync(folder) && isAlive(Number(owner))) await sleep(500)

quitPostgres()
while (existsSync(folder)) {
  await sleep(200)
  removeFolder()
}

function isAlive (pid) {
  try {
    return process.kill(pid, 0)
  } catch (error) {
    return error.code === 'EPERM'
  }
}

function quitPostgres () {
  try {
    const pid = parseInt(readFileSync(join(folder, 'data', 'postmaster.pid'), 'utf8'))
    process.kill(pid, 'SIGQUIT')
  } catch {
    // The server never started, or has already stopped.
  }
}

function removeFolder () {
  try {
    rmSync(folder, { recursive: true, force: true })
  } catch {
    // A process that is still ending may have made a file there. The next attempt removes it.
  }
}
