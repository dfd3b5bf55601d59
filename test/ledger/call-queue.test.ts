// How the queue divides calls among statements where accounts live on several nodes. The database is made up here.
import t from 'tap'
import { BUSY, NEW, type Outcome, type Patience } from '../../src/ledger/posting/call-runner.js'
import { CallQueue } from '../../src/ledger/posting/call-queue.js'
import type { QueuedCall } from '../../src/ledger/posting/lane.js'

const turn = () => new Promise(resolve => setImmediate(resolve))
const nodeOf = (userId: string) => Number(userId.split('.')[0])

t.test('calls of several nodes never share a statement', async t => {
  const { add, sent, settle } = open()
  const calls = Array.from({ length: 300 }, (_, i) => add(`${i % 3}.${i % 50}`))
  await turn()
  t.strictSame(sent.map(({ users }) => new Set(users.map(nodeOf)).size), [1, 1, 1])
  t.strictSame(sent.map(({ users }) => nodeOf(users[0]!)).sort(), [0, 1, 2])
  await settle()
  t.strictSame((await Promise.all(calls)).length, 300)
  t.ok(sent.every(({ users }) => new Set(users.map(nodeOf)).size === 1))
})

t.test('each node has two shared statements in flight', async t => {
  const { add, sent, settle } = open()
  const calls: Promise<string>[] = []
  for (let round = 0; round < 5; round++) {
    for (let i = 0; i < 30; i++) calls.push(add(`${i % 3}.${round} ${i}`))
    await turn()
  }
  t.strictSame(nodesOf(sent), [0, 0, 1, 1, 2, 2])
  sent[0]!.finish()
  await turn()
  t.equal(sent.length, 7)
  t.equal(nodeOf(sent[6]!.users[0]!), nodeOf(sent[0]!.users[0]!), 'the next statement of the node that has answered')
  t.equal(sent[6]!.users.length, 30, 'with all that has come meanwhile')
  await settle()
  t.equal((await Promise.all(calls)).length, 150)
})

t.test('a slow node does not hold up another', async t => {
  const { add, sent, settle } = open()
  let done = 0
  const slow = Array.from({ length: 200 }, (_, i) => add(`1.${i}`).then(() => done++))
  await turn()
  slow.push(...Array.from({ length: 200 }, (_, i) => add(`1.more ${i}`).then(() => done++)))
  await turn()
  t.strictSame(nodesOf(sent), [1, 1])
  for (let round = 0; round < 20; round++) {
    const quick = [add('2.ann'), add('2.bob'), add('2.ann')]
    await turn()
    t.strictSame(sent.at(-1)!.users, ['2.ann', '2.ann', '2.bob'])
    sent.at(-1)!.finish()
    await Promise.all(quick)
  }
  t.equal(done, 0)
  t.equal(sent.length, 22)
  await settle()
  t.equal((await Promise.all(slow)).length, 400)
})

t.test('a lone call of a node goes alone, whatever waits on others', async t => {
  const { add, sent, settle } = open()
  const calls = Array.from({ length: 10 }, (_, i) => add(`1.${i}`))
  calls.push(add('2.ann'))
  await turn()
  t.strictSame(sent.map(({ kind }) => kind).sort(), ['alone', 'together'])
  for (let i = 0; i < 6; i++) {
    calls.push(add(`2.user ${i}`))
    await turn()
  }
  t.strictSame(sent.filter(({ users }) => nodeOf(users[0]!) === 2).map(({ kind }) => kind),
    ['alone', 'alone', 'alone', 'alone', 'together', 'together'], 'four alone, then together')
  calls.push(add('3.ann'))
  await turn()
  t.match(sent.at(-1), { kind: 'alone', users: ['3.ann'] }, 'those of a node do not count for another')
  await settle()
  t.equal((await Promise.all(calls)).length, 18)
})

t.test('the accounts that are missing are created together, on each node by itself', async t => {
  const { add, sent, outcomes, settle } = open()
  for (const node of [1, 2, 3]) for (const name of ['ann', 'bob']) outcomes.set(`${node}.${name}`, NEW)
  const calls = [1, 2, 3].flatMap(node => [add(`${node}.ann`), add(`${node}.bob`)])
  await turn()
  for (const statement of sent.splice(0)) statement.finish()
  await turn()
  outcomes.clear()
  t.strictSame(sent.map(({ patience, users }) => [patience, users]),
    [1, 2, 3].map(node => ['create', [`${node}.ann`, `${node}.bob`]]))
  for (const name of ['carl', 'dora']) outcomes.set(`1.${name}`, NEW)
  calls.push(add('1.carl'), add('1.dora'))
  await turn()
  sent.at(-1)!.finish()
  await turn()
  t.equal(sent.length, 4, 'one at a time on a node')
  outcomes.clear()
  sent[0]!.finish()
  await turn()
  t.match(sent.at(-1), { patience: 'create', users: ['1.carl', '1.dora'] })
  await settle()
  t.equal((await Promise.all(calls)).length, 8)
})

t.test('an account that was busy goes once more with others of its node', async t => {
  const { add, sent, outcomes, settle } = open()
  outcomes.set('1.ann', BUSY)
  const calls = [add('1.ann'), add('1.bob'), add('2.ann'), add('2.bob')]
  await turn()
  sent.find(({ users }) => users[0] === '1.ann')!.finish()
  outcomes.clear()
  calls.push(add('1.carl'), add('2.carl'))
  for (let i = 0; i < 4; i++) await turn()
  t.ok(sent.slice(2).every(({ users }) => new Set(users.map(nodeOf)).size === 1))
  t.ok(sent.slice(2).some(({ users }) => users.includes('1.ann')))
  await settle()
  t.equal((await Promise.all(calls)).length, 6)
})

t.test('accounts of a node take turns, and those of others take none from them', async t => {
  const { add, sent, settle } = open()
  const calls = [...Array(1000)].map(() => add('1.hot'))
  for (let i = 0; i < 100; i++) calls.push(add(`2.${i}`), add(`1.${i}`))
  await turn()
  const [first] = sent.filter(({ users }) => nodeOf(users[0]!) === 1)
  t.equal(first!.users.filter(user => user === '1.hot').length, 8, 'a turn')
  t.equal(first!.users.length, 108, 'and there is room for all others of the node')
  t.equal(sent.find(({ users }) => nodeOf(users[0]!) === 2)!.users.length, 100)
  await settle()
  t.equal((await Promise.all(calls)).length, 1200)
})

t.test('an account that moves is sent to its new node', async t => {
  let node = 1
  const { add, sent, settle } = open({ nodeOf: userId => userId === 'ann' ? node : 1 })
  const calls = [add('ann'), add('bob')]
  await turn()
  t.strictSame(sent[0]!.users, ['ann', 'bob'])
  calls.push(add('ann'), add('bob'), add('ann'), add('bob'))
  node = 2
  sent[0]!.finish()
  await turn()
  t.strictSame(sent.slice(1).map(({ users }) => users), [['bob', 'bob'], ['ann', 'ann']])
  await settle()
  t.equal((await Promise.all(calls)).length, 6)
})

t.test('without nodes, all calls share statements', async t => {
  const { add, sent, settle } = open({ nodeOf: undefined })
  const calls = Array.from({ length: 60 }, (_, i) => add(`${i % 3}.${i}`))
  await turn()
  t.equal(sent.length, 1)
  await settle()
  t.equal((await Promise.all(calls)).length, 60)
})

interface Sent {
  kind: 'alone' | 'together'
  patience: Patience | undefined
  users: string[]
  finish: () => void
}

function nodesOf (sent: Sent[]) {
  return sent.map(({ users }) => nodeOf(users[0]!)).sort()
}

/** A queue, what it has sent, and what comes of the calls of an account: its name if `outcomes` does not say. */
function open (options: { nodeOf?: ((userId: string) => number) | undefined } = { nodeOf }) {
  const sent: Sent[] = []
  const outcomes = new Map<string, Outcome<string>>()
  const send = (kind: Sent['kind'], calls: QueuedCall[], patience: Patience | undefined) =>
    new Promise<Outcome<string>[]>(resolve => sent.push({
      kind,
      patience,
      users: calls.map(({ userId }) => userId),
      finish: () => resolve(calls.map(({ userId }) => outcomes.get(userId) ?? userId))
    }))
  const queue = new CallQueue<QueuedCall, string>({
    together: (calls, patience) => send('together', calls, patience),
    alone: async (call, patience) => (await send('alone', [call], patience))[0] as string
  }, { maxQueue: 10_000, patient: 4, reserve: 0, ...options.nodeOf && { nodeOf: options.nodeOf } })
  return {
    sent,
    outcomes,
    add: (userId: string) => queue.add({ userId, deadline: performance.now() + 10_000 }),
    async settle () {
      for (let finished = 0; !queue.idle; await turn()) for (; finished < sent.length; finished++) sent[finished]!.finish()
    }
  }
}
