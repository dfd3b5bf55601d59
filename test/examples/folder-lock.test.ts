import { spawnSync } from 'node:child_process'
import { readdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { startScript, temporaryFolder } from './run-example.js'

const hold = (t: Test, folder: string) => startScript(t, 'test/examples/hold-lock.js', {}, [folder])

const claimOf = (pid: number, id = 'stale') => `process-${pid}-${id}.lock`

function endedPid () {
  return spawnSync(process.execPath, ['-e', '']).pid
}

t.test('a folder is locked until it is unlocked, and made if need be', async t => {
  const folder = join(await temporaryFolder(t), 'deep', 'below')
  const first = hold(t, folder)
  await first.said(/locked/)
  const second = hold(t, folder)
  t.equal(await second.exited, 1)
  t.match(second.errors(), `The folder ${folder} is in use by process ${first.pid}`)
  first.endInput()
  t.equal(await first.exited, 0)
  t.strictSame(await readdir(folder), [])
  await hold(t, folder).said(/locked/)
})

t.test('locks that processes left behind are taken over', async t => {
  const folder = await temporaryFolder(t)
  await writeFile(join(folder, claimOf(endedPid())), '')
  const holder = hold(t, folder)
  await holder.said(/locked/)
  t.match(await readdir(folder), [new RegExp(`^process-${holder.pid}-`)])
})

t.test('a lock with our own process id is stale, as containers give every run the same id', async t => {
  const folder = await temporaryFolder(t)
  const script = `
    import { writeFileSync } from 'node:fs'
    import { lockFolder } from './examples/folder-lock.js'
    const folder = process.argv[1]
    writeFileSync(folder + '/process-' + process.pid + '-stale.lock', '')
    const unlock = await lockFolder(folder)
    await lockFolder(folder).then(() => process.stdout.write('locked twice'), error => process.stdout.write(error.code))
    await unlock()
    await lockFolder(folder)`
  const { stdout, status, stderr } = spawnSync(process.execPath, ['--input-type=module', '-e', script, folder],
    { cwd: new URL('../..', import.meta.url), env: { ...process.env, _TAPJS_PROCESSINFO_COVERAGE_: '0' }, encoding: 'utf8' })
  t.equal(stdout, 'FOLDER_LOCKED', 'but a lock that this very process holds is not')
  t.equal(status, 0, stderr)
})

t.test('a process that one may not signal counts as running', async t => {
  const folder = await temporaryFolder(t)
  await writeFile(join(folder, claimOf(1)), '')
  const holder = hold(t, folder)
  t.equal(await holder.exited, 1)
  t.match(holder.errors(), 'is in use by process 1.')
})

t.test('of processes that start at once over a stale lock, one gets the folder', async t => {
  for (let round = 0; round < 5; round++) {
    const folder = await temporaryFolder(t)
    await writeFile(join(folder, claimOf(endedPid())), '')
    const holders = Array.from({ length: 6 }, () => hold(t, folder))
    const outcomes = await Promise.all(holders.map(({ said }) => said(/locked/).then(() => true, () => false)))
    t.equal(outcomes.filter(Boolean).length, 1)
    for (const { endInput } of holders) endInput()
    await Promise.all(holders.map(({ exited }) => exited))
    t.strictSame(await readdir(folder), [])
  }
})
