import { execFileSync } from 'node:child_process'
import { chmod, chown } from 'node:fs/promises'
import { tmpdir } from 'node:os'

const isRoot = process.getuid?.() === 0

/** Options of `spawn` for PostgreSQL's processes, which refuse to run as root: the user `nobody` if this process is root. */
export const unprivileged = isRoot ? { uid: idOfNobody('-u'), gid: idOfNobody('-g') } : {}

/** The folder for files that the unprivileged user needs. Not root's own TMPDIR, because others may not open it. */
export const temporaryFolder = isRoot ? '/tmp' : tmpdir()

/** Gives a file or a folder to the unprivileged user, and to no other, whatever its mode was. */
export async function handOver (path: string): Promise<void> {
  await chmod(path, 0o700)
  const { uid, gid } = unprivileged
  if (uid !== undefined && gid !== undefined) await chown(path, uid, gid)
}

function idOfNobody (flag: string): number {
  return Number(execFileSync('id', [flag, 'nobody'], { encoding: 'utf8' }))
}
