import { execFile, spawn, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { open } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { promisify } from 'node:util'
import { unprivileged } from './unprivileged.js'

const execute = promisify(execFile)

/** Runs one of the binaries that were copied into this folder, to its end. If it fails, the error has its output. */
export async function runBinary (folder: string, name: string, args: string[]): Promise<void> {
  await execute(join(folder, 'native', 'bin', name), args, optionsIn(folder))
}

/** Starts the server's binary, with its output in a log file. Neither process ends when the other does. */
export async function spawnServer (folder: string, args: string[]): Promise<ChildProcess> {
  const log = await open(join(folder, 'server.log'), 'w')
  try {
    const stdio = ['ignore', log.fd, log.fd] as const
    const options = { ...optionsIn(folder), stdio: [...stdio], detached: true }
    const child = spawn(join(folder, 'native', 'bin', 'postgres'), args, options)
    await once(child, 'spawn')
    child.unref()
    return child
  } finally {
    await log.close()
  }
}

/** Copies a folder of the server. The copy belongs to the server's user too. */
export async function copyFolder (from: string, to: string): Promise<void> {
  await execute('cp', ['-R', from, to], { ...unprivileged, cwd: dirname(to) })
}

function optionsIn (folder: string) {
  return { ...unprivileged, cwd: folder, env: environment(), windowsHide: true }
}

// Leaves out PGDATA, PGOPTIONS and the like: they are meant for the developer's own server.
function environment (): NodeJS.ProcessEnv {
  const entries = Object.entries(process.env).filter(([name]) => !name.startsWith('PG'))
  return { ...Object.fromEntries(entries), LC_ALL: 'C' }
}
