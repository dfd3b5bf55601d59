import { execFileSync } from 'node:child_process'
import { chmod, chown } from 'node:fs/promises'
import { tmpdir } from 'node:os'

const isRoot = process.getuid?.() === 0

// PostgreSQL refuses to run as root.
/** The user for PostgreSQL's processes, as options of `spawn`: `nobody` if this process is root's. */
export const unprivileged = isRoot ? { uid: idOfNobody('-u'), gid: idOfNobody('-g') } : {}

// Root's own TMPDIR may be closed to others.
/** Where to put what the unprivileged user needs. */
export const temporaryFolder = isRoot ? '/tmp' : tmpdir()

/** Gives a file or a folder to the unprivileged user, whatever umask or checkout its mode comes from. */
export async function handOver (path: string): Promise<void> {
  await chmod(path, 0o700)
  const { uid, gid } = unprivileged
  if (uid !== undefined && gid !== undefined) await chown(path, uid, gid)
}

function idOfNobody (flag: string): number {
  return Number(execFileSync('id', [flag, 'nobody'], { encoding: 'utf8' }))
}
