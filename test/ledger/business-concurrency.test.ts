// needs a real server
import { fork, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import t, { type Test } from 'tap'
import { build } from 'tsup'
import { createLedger, type CaptureInput, type Credits, type Ledger } from '../../src/index.js'
import { createClockedLedgerDatabase } from '../helper/clock.js'
import { createLedgerDatabase, createPool } from '../helper/database.js'

const hold = { userId: 'ann', credits: 1, operation: 'chat' }
const closed = 'FST_CREDITS_HOLD_CLOSED'
const insufficient = 'FST_CREDITS_INSUFFICIENT'

// The script of a process. It makes the calls that it is sent, all at once, and sends back the outcome of each.
const source = `
  import pg from 'pg'
  import { createLedger } from ${JSON.stringify(fileURLToPath(new URL('../../src/index.ts', import.meta.url)))}
  process.on('message', async ({ connectionString, allowance, calls }) => {
    const ledger = createLedger(new pg.Pool({ connectionString, max: 10 }), { allowance, timeout: 60_000 })
    const made = calls.map(([method, ...args]) => ledger[method](...args).catch(({ code, message }) => ({ error: code ?? message })))
    process.send(await Promise.all(made))
  })`

const script = await compile()
// The test runner's own variables would load its TypeScript loader into each of them.
const env = Object.fromEntries(Object.entries(process.env).filter(([name]) => !/^(NODE_|_?TAP)/.test(name)))

type Call = [method: keyof Credits, ...args: unknown[]]
type Outcome = Record<string, any>

t.test('of 1,000 concurrent holds from four processes exactly the 300 are accepted that the balance covers', async t => {
  const { connectionString, credits } = await ledger(t, 300)
  const outcomes = await fromProcesses(t, connectionString, 300, repeat(1000, ['hold', hold]))
  t.strictSame(count(outcomes), { accepted: 300, [insufficient]: 700 })
  t.strictSame(await credits.balance('ann'), { available: 0, total: 300, used: 0, held: 300 })
  const held = outcomes.flatMap(({ balance }) => balance?.held ?? []).sort((a, b) => a - b)
  t.strictSame(held, Array.from({ length: 300 }, (_, index) => index + 1), 'every balance was answered once')
  await reconciles(t, credits)
})

t.test('holds and deducts together never exceed the balance', async t => {
  const { credits, pools } = await ledger(t, 300)
  const outcomes = await settle(repeat(600, null).map((_, index) => {
    const pool = pools[index % pools.length]!
    return index % 2 === 0 ? pool.hold(hold) : pool.deduct(hold)
  }))
  t.strictSame(count(outcomes), { accepted: 300, [insufficient]: 300 })
  const { available, used, held } = await credits.balance('ann')
  t.strictSame([available, used + held], [0, 300])
  await reconciles(t, credits)
})

t.test('a hold that is captured and released from everywhere is closed exactly once', async t => {
  const { credits, pools } = await ledger(t, 1000)
  for (let round = 0; round < 10; round++) {
    const before = await credits.balance('ann')
    const { id } = await credits.hold({ ...hold, credits: 40 })
    const captures: CaptureInput[] = [{}, { credits: 10 }, { credits: 20, idempotencyKey: 'k' }]
    const outcomes = await settle(repeat(40, null).map((_, index) => {
      const pool = pools[(index + round) % pools.length]!
      const kind = (index + round) % 4
      return kind === 3 ? pool.release(id) : pool.capture(id, captures[kind])
    }))
    t.strictSame(count(outcomes), { accepted: 1, replayed: 9, [closed]: 30 }, `round ${round}`)
    const winner = outcomes.find(({ replayed }) => replayed === false)!
    for (const outcome of outcomes) if (outcome.replayed) t.strictSame({ ...outcome, replayed: false }, winner)
    const spent = winner.holdId === undefined ? 0 : winner.credits
    t.match(await credits.balance('ann'), { available: before.available - spent, used: before.used + spent, held: 0 })
  }
  await reconciles(t, credits)
})

t.test('parts of one hold from everywhere never take more than there is', async t => {
  const { credits, pools } = await ledger(t, 50)
  const { id } = await credits.hold({ ...hold, credits: 40 })
  const outcomes = await settle(repeat(100, null).map((_, index) =>
    pools[index % pools.length]!.capture(id, { credits: 1, final: false, shortfall: 'reject' })))
  t.strictSame(count(outcomes), { accepted: 50, [insufficient]: 50 })
  t.match(await credits.release(id), { credits: 0, balance: { available: 0, total: 50, used: 50, held: 0 } })
  await reconciles(t, credits)
})

t.test('duplicates of one key in flight together are done once, and answer the same', async t => {
  const { connectionString, credits } = await ledger(t, 1000)
  const { id: holdId } = await credits.hold({ ...hold, credits: 100 })
  const { id: usageId } = await credits.deduct({ ...hold, credits: 100 })
  const keyed = { credits: 10, idempotencyKey: 'k' }
  const calls: Call[] = [
    ['hold', { ...hold, ...keyed }],
    ['capture', holdId, { ...keyed, final: false }],
    ['grant', { userId: 'ann', ...keyed }],
    ['refund', { usageId, ...keyed }]
  ]
  const outcomes = await fromProcesses(t, connectionString, 1000, repeat(50, calls).flat())
  for (const [index, [method]] of calls.entries()) {
    const answers = outcomes.filter((_, each) => each % calls.length === index)
    t.strictSame(count(answers), { accepted: 1, replayed: 49 }, method)
    const [first] = answers
    for (const answer of answers) t.strictSame({ ...answer, replayed: true }, { ...first, replayed: true })
  }
  t.strictSame(await credits.balance('ann'), { available: 810, total: 1010, used: 100, held: 100 })
  await reconciles(t, credits)
})

t.test('different requests of one key in flight together: one is done, the others conflict', async t => {
  const { credits, pools } = await ledger(t, 1000)
  const outcomes = await settle(repeat(20, null).map((_, index) =>
    pools[index % pools.length]!.grant({ userId: 'ann', credits: index + 1, idempotencyKey: 'k' })))
  t.strictSame(count(outcomes), { accepted: 1, FST_CREDITS_IDEMPOTENCY_CONFLICT: 19 })
  const { credits: granted } = outcomes.find(({ error }) => error === undefined)!
  t.equal((await credits.balance('ann')).total, 1000 + granted)
  await reconciles(t, credits)
})

t.test('concurrent refunds never exceed the usage record', async t => {
  const { connectionString, credits } = await ledger(t, 1000)
  const { id: usageId } = await credits.deduct({ ...hold, credits: 100 })
  const outcomes = await fromProcesses(t, connectionString, 1000, repeat(200, ['refund', { usageId, credits: 3 }]))
  t.strictSame(count(outcomes), { accepted: 33, FST_CREDITS_REFUND_EXCEEDS: 167 })
  t.strictSame(await credits.balance('ann'), { available: 999, total: 1000, used: 1, held: 0 })
  await reconciles(t, credits)
})

t.test('a grant that is revoked from everywhere is taken back once', async t => {
  const { credits, pools } = await ledger(t, 1000)
  const { id } = await credits.grant({ userId: 'ann', credits: 50 })
  const outcomes = await settle(repeat(40, null).map((_, index) => pools[index % pools.length]!.revoke(id)))
  t.strictSame(count(outcomes), { accepted: 1, replayed: 39 })
  t.equal((await credits.balance('ann')).total, 1000)
  await reconciles(t, credits)
})

t.test('many holds that lapse are given back once, whoever comes first', async t => {
  const { credits, pools, setClock } = await clockedLedger(t, 100)
  for (let index = 0; index < 10; index++) await credits.hold({ ...hold, credits: 10 })
  await setClock('2030-01-01T00:15:00Z')
  const outcomes = await settle(repeat(200, null).map((_, index) => pools[index % pools.length]!.deduct(hold)))
  t.strictSame(count(outcomes), { accepted: 100, [insufficient]: 100 })
  const { entries } = await credits.statement('ann')
  t.equal(entries.filter(({ kind }) => kind === 'lapse').length, 10)
  await reconciles(t, credits)
})

t.test('everything at once on few accounts keeps every account in order', async t => {
  const { connectionString, credits } = await ledger(t, 100)
  const users = ['ann', 'bob', 'cat']
  const open: string[] = []
  const spent: string[] = []
  for (const userId of users) {
    await credits.grant({ userId, credits: 50, expiresAt: new Date(Date.now() + 1000) })
    for (let index = 0; index < 5; index++) {
      open.push((await credits.hold({ ...hold, userId, credits: 7, ttl: 1000 })).id)
      spent.push((await credits.deduct({ ...hold, userId, credits: 5 })).id)
    }
  }
  const calls = repeat(10, null).flatMap((_, round): Call[] => [
    ...open.map((id): Call => ['capture', id, { credits: round, final: round % 3 === 0 }]).filter((_, index) => (index + round) % 2 > 0 && round > 0),
    ...open.map((id): Call => ['release', id]).filter((_, index) => (index + round) % 5 === 0),
    ...spent.map((usageId): Call => ['refund', { usageId, credits: 1 }]),
    ...users.flatMap((userId): Call[] => [
      ['hold', { ...hold, userId, credits: 11, ttl: 1000 }], ['deduct', { ...hold, userId, credits: 3 }], ['grant', { userId, credits: 4 }],
      ['balance', userId], ['statement', userId]
    ])
  ])
  const outcomes = await fromProcesses(t, connectionString, 100, calls)
  const known = [undefined, closed, insufficient, 'FST_CREDITS_REFUND_EXCEEDS']
  t.strictSame(outcomes.filter(({ error }) => !known.includes(error)), [])
  await reconciles(t, credits)
  for (const userId of users) {
    t.ok((await credits.balance(userId)).available >= 0)
    const { entries } = await credits.statement(userId)
    t.strictSame(entries.map(({ seq }) => seq), entries.map((_, index) => index), 'entries are numbered without a gap')
    let available = 0
    for (const { amount, balance } of entries) t.equal(balance.available, available += amount)
  }
})

t.test('a process that is killed between hold and capture leaks nothing after the ttl', async t => {
  const { connectionString, credits, setClock } = await clockedLedger(t, 100)
  const child = start(t)
  const [{ id }] = await ask(child, { connectionString, allowance: 100, calls: [['hold', { ...hold, credits: 40 }]] }) as [Outcome]
  child.kill('SIGKILL')
  await once(child, 'exit')
  t.equal((await credits.balance('ann')).held, 40)
  await setClock('2030-01-01T00:15:00Z')
  t.strictSame(await credits.balance('ann'), { available: 100, total: 100, used: 0, held: 0 })
  t.match(await credits.release(id), { credits: 40 })
  await reconciles(t, credits)
})

t.test('a process that is killed among its holds leaks nothing after the ttl', async t => {
  const { connectionString, credits, setClock } = await clockedLedger(t, 1000)
  const child = start(t)
  child.send({ connectionString, allowance: 1000, calls: repeat(900, ['hold', hold]) })
  while ((await credits.balance('ann')).held < 10);
  child.kill('SIGKILL')
  await once(child, 'exit')
  await setClock('2030-01-01T00:15:00Z')
  // A call that the process sent before it was killed may still succeed, and holds credits from then on.
  while ((await credits.balance('ann')).held > 0) await setClock('2030-01-01T01:00:00Z')
  t.strictSame(await credits.balance('ann'), { available: 1000, total: 1000, used: 0, held: 0 })
  await reconciles(t, credits)
})

async function ledger (t: Test, allowance: number) {
  return { ...await open(t, await createLedgerDatabase(t), allowance) }
}

async function clockedLedger (t: Test, allowance: number) {
  const { connectionString, setClock } = await createClockedLedgerDatabase(t, '2030-01-01T00:00:00Z')
  return { ...await open(t, connectionString, allowance), setClock }
}

// Ledgers on four pools, like those of four gateways.
async function open (t: Test, connectionString: string, allowance: number) {
  const pools = repeat(4, null).map(() => createLedger(createPool(t, connectionString, { max: 5 }), { allowance, timeout: 60_000 }))
  const [credits] = pools as [Ledger]
  await credits.migrate()
  return { connectionString, credits, pools }
}

async function fromProcesses (t: Test, connectionString: string, allowance: number, calls: Call[]): Promise<Outcome[]> {
  const children = repeat(4, null).map(() => start(t))
  const answers = await Promise.all(children.map((child, index) =>
    ask(child, { connectionString, allowance, calls: calls.filter((_, each) => Math.floor(each / 4) % 4 === index) })))
  // Restores the order of the calls.
  return calls.map((_, each) => answers[Math.floor(each / 4) % 4]!.shift()!)
}

function start (t: Test): ChildProcess {
  const child = fork(script, { execArgv: [], env })
  t.teardown(async () => {
    if (child.exitCode !== null || child.signalCode !== null) return
    child.kill('SIGKILL')
    await once(child, 'exit')
  })
  return child
}

async function ask (child: ChildProcess, task: object): Promise<Outcome[]> {
  child.send(task)
  const ended = once(child, 'exit').then(() => { throw new Error('A process ended without an answer') })
  const [answer] = await Promise.race([once(child, 'message'), ended])
  ended.catch(() => {}) // later, with the test
  return answer
}

async function compile (): Promise<string> {
  const folder = t.testdir({ 'calls.ts': source })
  const outExtension = () => ({ js: '.mjs' })
  await build({
    entry: [join(folder, 'calls.ts')], outDir: folder, outExtension, format: 'esm', skipNodeModulesBundle: true, config: false, silent: true
  })
  return join(folder, 'calls.mjs')
}

async function settle (calls: Array<Promise<object>>): Promise<Outcome[]> {
  return await Promise.all(calls.map(call => call.catch(({ code, message }) => ({ error: code ?? message }))))
}

function count (outcomes: Outcome[]): Record<string, number> {
  const counts: Record<string, number> = {}
  for (const { error, replayed } of outcomes) {
    const outcome = error ?? (replayed ? 'replayed' : 'accepted')
    counts[outcome] = (counts[outcome] ?? 0) + 1
  }
  return counts
}

function repeat<T> (times: number, value: T): T[] {
  return Array.from({ length: times }, () => value)
}

async function reconciles (t: Test, credits: Credits) {
  t.match(await credits.reconcile(), { ok: true, differences: [] }, 'every account reconciles')
}
