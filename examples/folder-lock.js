import { randomUUID } from 'node:crypto'
import { mkdir, readdir, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'

const ATTEMPTS = 5
const CLAIM = /^process-(\d+)-[\w-]+\.lock$/

// The claims of this process. A file with this process's pid proves nothing: a container gives every run the same pid.
const ours = new Set()

/** Locks a folder against other processes. Resolves to a function that unlocks it. Throws FolderLockedError. */
export async function lockFolder (folder) {
  await mkdir(folder, { recursive: true })
  for (let attempt = 1; ; attempt++) {
    const claim = `process-${process.pid}-${randomUUID()}.lock`
    const rival = await tryClaim(folder, claim)
    if (rival === undefined) return () => withdraw(folder, claim)
    if (attempt === ATTEMPTS) throw new FolderLockedError(folder, rival)
    // Two processes that start at once have both withdrawn. The one with the shorter random wait gets the folder.
    await sleep(20 + Math.random() * 100)
  }
}

/** Another process that is still running uses the folder. */
export class FolderLockedError extends Error {
  code = 'FOLDER_LOCKED'

  constructor (folder, { pid, claim }) {
    super(`The folder ${folder} is in use by process ${pid}. Stop that process or choose another folder. ` +
      `(If process ${pid} is some other program, delete ${join(folder, claim)} and start again.)`)
  }
}

// Every process writes its own claim before it looks for the claims of others. So at least one of two processes sees the
// other. One shared pid file would not work: two processes that find it stale would race to replace it.
async function tryClaim (folder, claim) {
  ours.add(claim)
  await writeFile(join(folder, claim), '', { flag: 'wx' })
  const rival = await findRival(folder, claim)
  if (rival) await withdraw(folder, claim)
  return rival
}

async function findRival (folder, claim) {
  for (const name of await readdir(folder)) {
    const pid = Number(CLAIM.exec(name)?.[1])
    if (name === claim || Number.isNaN(pid)) continue
    if (isHeld(name, pid)) return { pid, claim: name }
    await rm(join(folder, name), { force: true })
  }
}

function isHeld (claim, pid) {
  if (pid === process.pid) return ours.has(claim)
  try {
    return process.kill(pid, 0)
  } catch (error) {
    // Any other error, above all EPERM, means that the process exists.
    return error.code !== 'ESRCH'
  }
}

async function withdraw (folder, claim) {
  await rm(join(folder, claim), { force: true })
  ours.delete(claim)
}
