import { randomUUID } from 'node:crypto'
import { mkdir, readdir, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'

const ATTEMPTS = 5
const CLAIM = /^process-(\d+)-[\w-]+\.lock$/

// Claims of this very process: a container gives every run the same pid, so a pid of our own proves nothing.
const ours = new Set()

/** Locks a folder against other processes; resolves to the function that unlocks it. */
export async function lockFolder (folder) {
  await mkdir(folder, { recursive: true })
  for (let attempt = 1; ; attempt++) {
    const claim = `process-${process.pid}-${randomUUID()}.lock`
    const rival = await tryClaim(folder, claim)
    if (rival === undefined) return () => withdraw(folder, claim)
    if (attempt === ATTEMPTS) throw new FolderLockedError(folder, rival)
    // Two processes starting at once have both withdrawn: the one that draws the shorter wait gets the folder.
    await sleep(20 + Math.random() * 100)
  }
}

/** The folder is in use by another process that is still running. */
export class FolderLockedError extends Error {
  code = 'FOLDER_LOCKED'

  constructor (folder, { pid, claim }) {
    super(`The folder ${folder} is in use by process ${pid}. Stop that process or choose another folder. ` +
      `(If process ${pid} is some other program, delete ${join(folder, claim)} and start again.)`)
  }
}

// Every process writes a claim of its own before it looks for the claims of others, so of two processes at least one
// sees the other. One shared pid file could not do this: two processes that find it stale would race to replace it.
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
    // Anything else, EPERM above all, says that the process is there.
    return error.code !== 'ESRCH'
  }
}

async function withdraw (folder, claim) {
  await rm(join(folder, claim), { force: true })
  ours.delete(claim)
}
