// needs a real server
import { fork, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import t, { type Test } from 'tap'
import { build } from 'tsup'
import { createLedger, type LedgerOptions } from '../../src/index.js'
import { citus } from '../helper/citus.js'
import { createLedgerDatabase, createPool } from '../helper/database.js'

const ann = { userId: 'ann', operation: 'chat' }
const names = ['low', 'exhausted', 'deducted', 'refused'] as const

// The script of a process. It makes so many deducts, all at once, and sends back how often each event came.
const source = `
  import pg from 'pg'
  import { createLedger } from ${JSON.stringify(fileURLToPath(new URL('../../src/index.ts', import.meta.url)))}
  process.on('message', async ({ connectionString, options, deducts }) => {
    const ledger = createLedger(new pg.Pool({ connectionString, max: 5 }), { timeout: 60_000, ...options })
    const heard = {}
    for (const name of ${JSON.stringify(names)}) {
      heard[name] = 0
      ledger.on(name, () => { heard[name]++ })
    }
    await Promise.allSettled(Array.from({ length: deducts }, () => ledger.deduct({ userId: 'ann', credits: 1, operation: 'chat' })))
    await ledger.close()
    process.send(heard)
  })
  process.send('ready')`

t.test('of 200 deducts from two processes, one process crosses each threshold, and one exhausts', async t => {
  const options = { allowance: 150, low: [100, '10%'] } satisfies LedgerOptions
  const connectionString = await createLedgerDatabase(t)
  await createLedger(createPool(t, connectionString), options).migrate()
  const children = await startProcesses(t, 2)
  const heard = await Promise.all(children.map(async child => {
    child.send({ connectionString, options, deducts: 100 })
    return (await once(child, 'message'))[0]
  }))
  t.strictSame(Object.fromEntries(names.map(name => [name, heard[0][name] + heard[1][name]])),
    { low: 2, exhausted: 1, deducted: 150, refused: 50 })
})

t.test('up and down from two ledgers at once: each crossing that the statement shows is told of once', async t => {
  const connectionString = await createLedgerDatabase(t)
  const options: LedgerOptions = { allowance: 100, low: [60, '40%'], timeout: 60_000 }
  const ledgers = [1, 2].map(() => createLedger(createPool(t, connectionString, { max: 5 }), options))
  await ledgers[0]!.migrate()
  const told: unknown[] = []
  for (const ledger of ledgers) {
    ledger.on('low', ({ threshold, balance }) => told.push([threshold, balance]))
    ledger.on('exhausted', ({ balance }) => told.push(['exhausted', balance]))
  }
  const spend = async (index: number) => {
    const ledger = ledgers[index % 2]!
    if (index % 7 === 0) return await ledger.grant({ userId: 'ann', credits: 40 })
    if (index % 3 === 0) return await ledger.deduct({ ...ann, credits: 9 })
    const { id } = await ledger.hold({ ...ann, credits: 8 })
    return index % 5 === 0 ? await ledger.release(id) : await ledger.capture(id, { userId: 'ann', credits: 1 + index % 16 })
  }
  await Promise.allSettled(Array.from({ length: 300 }, (_, index) => spend(index)))
  const { entries } = await ledgers[0]!.statement('ann')
  const expected = entries.slice(1).flatMap(({ balance: after }, index) => {
    const before = entries[index]!.balance
    const falls = (limit: (total: number) => number) => before.available > limit(before.total) && after.available <= limit(after.total)
    const crossed = [...falls(() => 60) ? [60] : [], ...falls(total => total * 0.4) ? ['40%'] : [], ...falls(() => 0) ? ['exhausted'] : []]
    return crossed.map(name => [name, after])
  })
  await Promise.all(ledgers.map(ledger => ledger.close()))
  t.ok(expected.length > 0, `${expected.length} crossings`)
  t.strictSame(sorted(told), sorted(expected))
})

t.test('where transactions are strict by default, what was due is told of as well', { skip: citus !== undefined }, async t => {
  const url = new URL(await createLedgerDatabase(t))
  url.searchParams.set('options', '-c default_transaction_isolation=serializable')
  const ledger = createLedger(createPool(t, url.href), { low: [95] })
  await ledger.migrate()
  const { id: holdId } = await ledger.hold({ ...ann, credits: 5, ttl: 1000 })
  const lapsed = new Promise<{ holdId: string }>(resolve => ledger.once('lapsed', resolve))
  const poll = setInterval(() => ledger.balance('ann').catch(() => {}), 50)
  t.match(await lapsed, { userId: 'ann', holdId, credits: 5 })
  clearInterval(poll)
  await ledger.close()
})

function sorted (values: unknown[]) {
  return values.map(value => JSON.stringify(value)).sort()
}

async function startProcesses (t: Test, count: number): Promise<ChildProcess[]> {
  const folder = t.testdir({ 'process.ts': source })
  await build({
    entry: { process: join(folder, 'process.ts') },
    outDir: folder,
    outExtension: () => ({ js: '.mjs' }),
    format: 'esm',
    skipNodeModulesBundle: true,
    config: false,
    silent: true
  })
  const env = Object.fromEntries(Object.entries(process.env).filter(([name]) => !/^(NODE_|_?TAP)/.test(name)))
  const children = Array.from({ length: count }, () => fork(join(folder, 'process.mjs'), { execArgv: [], env }))
  t.teardown(async () => {
    for (const child of children) {
      child.disconnect()
      if (child.exitCode === null) await once(child, 'exit')
    }
  })
  await Promise.all(children.map(child => once(child, 'message')))
  return children
}
