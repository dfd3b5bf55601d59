import diagnosticsChannel from 'node:diagnostics_channel'
import { once } from 'node:events'
import { Writable } from 'node:stream'
import t from 'tap'
import { createLedger, type Balance, type Credits, type FastifyAiCreditsOptions } from '../../src/index.js'
import { buildGateway } from '../helper/app.js'
import { ledgerTest, start } from '../helper/clocked-ledger.js'
import { createClockedLedgerDatabase } from '../helper/clock.js'
import { createDatabase, createPool, pglite } from '../helper/database.js'
import { eventNames, hear } from '../helper/hear.js'

const ann = { userId: 'ann', operation: 'chat' }
const nine = '2030-01-01T09:00:00.000Z'
const ten = '2030-01-01T10:00:00.000Z'

// The balance in an event, which all have but budget_low.
const balanceIn = (event: object) => (event as { balance: Balance }).balance

const balance = (total: number, used: number, held = 0) => ({ available: total - used - held, total, used, held })

ledgerTest('a deduct is told of as it was made', async (t, { credits }) => {
  const heard = hear(credits)
  const metadata = { words: 7 }
  const deducting = credits.deduct({ ...ann, credits: 30, metadata })
  metadata.words = 8
  const { id, balance: answered } = await deducting
  answered.available = 0
  await credits.deduct({ userId: 'bob', credits: 1, operation: 'video' })
  t.match(await heard(), [
    ['deducted', { ...ann, id, credits: 30, metadata: { words: 7 }, balance: balance(100, 30) }],
    ['deducted', { userId: 'bob', credits: 1, operation: 'video', metadata: {}, balance: balance(100, 1) }]
  ])
})

ledgerTest('a capture is told of with the operation and the metadata of its hold', async (t, { credits }) => {
  const { id: holdId } = await credits.hold({ ...ann, credits: 50, metadata: { model: 'large', tokens: 0 } })
  const heard = hear(credits)
  const part = await credits.capture(holdId, { credits: 10, final: false })
  const [rest, other] = await Promise.all([
    credits.capture(holdId, { userId: 'ann', credits: 60, metadata: { tokens: 600 } }),
    credits.deduct({ ...ann, credits: 1 })
  ])
  const told = await heard()
  told.sort(([, one], [, other]) => balanceIn(other).available - balanceIn(one).available)
  t.strictSame(told, [
    ['deducted', { ...ann, id: part.id, holdId, credits: 10, metadata: { model: 'large', tokens: 0 }, balance: balance(100, 10, 40) }],
    ['deducted', { ...ann, id: rest.id, holdId, credits: 60, metadata: { model: 'large', tokens: 600 }, balance: balance(100, 70) }],
    ['deducted', { ...ann, id: other.id, credits: 1, metadata: {}, balance: balance(100, 71) }]
  ])
})

ledgerTest('a refusal tells what was required and what was there', async (t, { credits }) => {
  const { id } = await credits.hold({ ...ann, credits: 10 })
  const heard = hear(credits)
  await t.rejects(credits.deduct({ ...ann, credits: 101 }))
  await t.rejects(credits.hold({ ...ann, credits: 102, operation: 'video' }))
  await t.rejects(credits.capture(id, { credits: 103, shortfall: 'reject' }))
  t.strictSame(await heard(), [
    ['refused', { ...ann, credits: 101, balance: balance(100, 0, 10) }],
    ['refused', { userId: 'ann', operation: 'video', credits: 102, balance: balance(100, 0, 10) }],
    ['refused', { ...ann, credits: 103, balance: balance(100, 0, 10) }]
  ])
})

ledgerTest('a grant is told of with its terms', async (t, { credits }) => {
  const heard = hear(credits)
  const bought = await credits.grant({ userId: 'ann', credits: 5, reason: 'purchase', expiresAt: ten, priority: 7 })
  const given = await credits.grant({ userId: 'ann', credits: 1 })
  t.strictSame(await heard(), [
    ['granted', { userId: 'ann', id: bought.id, credits: 5, reason: 'purchase', expiresAt: new Date(ten), priority: 7, balance: balance(105, 0) }],
    ['granted', { userId: 'ann', id: given.id, credits: 1, reason: null, expiresAt: null, priority: 50, balance: balance(106, 0) }]
  ])
})

const reads: Array<[title: string, read: (credits: Credits) => Promise<unknown>]> = [
  ['balance', credits => credits.balance('ann')],
  ['history', credits => credits.history('ann')],
  ['statement', credits => credits.statement('ann')],
  ['deduct', credits => credits.deduct({ ...ann, credits: 1 })],
  ['deducts that share a statement', async credits => await Promise.all(
    ['ann', 'bob'].map(userId => credits.deduct({ userId, operation: 'chat', credits: 1 })))],
  ['hold', credits => credits.hold({ ...ann, credits: 1 })],
  ['grant', credits => credits.grant({ userId: 'ann', credits: 1 })],
  ['setOverdraft', credits => credits.setOverdraft('ann', 1)],
  ['setAllowance', credits => credits.setAllowance('ann', null)]
]
for (const [title, read] of reads) {
  ledgerTest(`${title} finds that a hold has lapsed, a grant has expired and a period has ended`, async (t, { credits, at }) => {
    await credits.deduct({ userId: 'bob', credits: 1, operation: 'chat' })
    await credits.grant({ userId: 'ann', credits: 40, expiresAt: ten, priority: 1 })
    const { id: holdId } = await credits.hold({ ...ann, credits: 20, ttl: 9 * 3_600_000 })
    await credits.deduct({ ...ann, credits: 5 })
    const heard = hear(credits, ['lapsed', 'renewed', 'low', 'exhausted', 'granted'])
    await at('2030-01-02T12:00:00.000Z')
    await read(credits)
    const changes = (await heard()).filter(([name, { userId }]) => name !== 'granted' && userId === 'ann')
    t.strictSame(changes.slice(0, 3), [
      ['lapsed', { userId: 'ann', holdId, credits: 20, at: new Date(nine), balance: balance(140, 5) }],
      ['low', { userId: 'ann', threshold: 110, balance: balance(105, 5) }],
      ['renewed', {
        userId: 'ann',
        at: new Date('2030-01-02T00:00:00.000Z'),
        details: { periods: 1, expired: 100, allowance: { credits: 100, every: 'day' } },
        balance: balance(100, 0)
      }]
    ], 'in order, the crossing after what brought it about')
  }, { allowance: { credits: 100, every: 'day' }, low: [110] })
}

ledgerTest('a renewal can cross a threshold too', async (t, { credits, at }) => {
  const heard = hear(credits, ['low', 'exhausted', 'renewed'])
  await credits.setAllowance('ann', { credits: 10, every: 'day' })
  await at('2030-01-03T12:00:00.000Z')
  await credits.balance('ann')
  t.match(await heard(), [
    ['renewed', { at: new Date('2030-01-03T00:00:00.000Z'), details: { periods: 2 } }],
    ['low', { userId: 'ann', threshold: 50, balance: balance(10, 0) }]
  ])
}, { allowance: { credits: 100, every: 'day' }, low: [50] })

ledgerTest('low and exhausted come once for each time that what is available goes down there', async (t, { credits }) => {
  const heard = hear(credits, ['low', 'exhausted'])
  for (const spent of [49, 1, 1, 39, 10]) await credits.deduct({ ...ann, credits: spent })
  t.strictSame(await heard(), [
    ['low', { userId: 'ann', threshold: 50, balance: balance(100, 50) }],
    ['low', { userId: 'ann', threshold: '10%', balance: balance(100, 90) }],
    ['exhausted', { userId: 'ann', balance: balance(100, 100) }]
  ])
  await credits.grant({ userId: 'ann', credits: 100 }) // up
  await credits.deduct({ ...ann, credits: 60 }) // and down again
  await credits.deduct({ ...ann, credits: 20 })
  t.strictSame(await heard(), [
    ['low', { userId: 'ann', threshold: 50, balance: balance(200, 160) }],
    ['low', { userId: 'ann', threshold: '10%', balance: balance(200, 180) }]
  ])
}, { low: [50, '10%'] })

ledgerTest('one change can cross several thresholds, and a debt is told of once', async (t, { credits }) => {
  await credits.setOverdraft('ann', 50)
  const heard = hear(credits, ['low', 'exhausted'])
  await credits.deduct({ ...ann, credits: 110 })
  await credits.deduct({ ...ann, credits: 10 })
  t.match((await heard()).map(([name, event]) => 'threshold' in event ? event.threshold : name), [90, '50%', 0, 'exhausted'])
}, { low: [90, '50%', 0] })

ledgerTest('a hold, a capture beyond it and a revocation go down, what gives back goes up', async (t, { credits }) => {
  const heard = hear(credits, ['low'])
  const { id } = await credits.hold({ ...ann, credits: 60 })
  t.match(await heard(), [['low', { threshold: 50, balance: balance(100, 0, 60) }]])
  await credits.capture(id, { credits: 10 })
  t.strictSame(await heard(), [], 'a capture that gives back')
  const second = await credits.hold({ ...ann, credits: 30 })
  await credits.capture(second.id, { credits: 50 })
  t.match(await heard(), [['low', { balance: balance(100, 60) }]], 'the capture took 20 more')
  const { id: grantId } = await credits.grant({ userId: 'ann', credits: 100 })
  await credits.revoke(grantId)
  t.match(await heard(), [['low', { balance: balance(100, 60) }]])
  await credits.revoke(grantId)
  const { id: usageId } = await credits.deduct({ ...ann, credits: 10 })
  await credits.refund({ usageId })
  t.strictSame(await heard(), [])
}, { low: [50] })

ledgerTest('replays, conflicts and what is not found are not told of', async (t, { credits }) => {
  const key = { userId: 'ann', credits: 100, idempotencyKey: 'one' }
  const charge = { ...key, operation: 'chat' }
  const { id: holdId } = await credits.hold(charge)
  const { id: grantId } = await credits.grant(key)
  await credits.deduct(charge)
  await credits.revoke(grantId)
  await credits.capture(holdId)
  const heard = hear(credits)
  t.match(await credits.hold(charge), { replayed: true })
  t.match(await credits.deduct(charge), { replayed: true })
  t.match(await credits.grant(key), { replayed: true })
  const conflict = { code: 'FST_CREDITS_IDEMPOTENCY_CONFLICT' }
  await t.rejects(credits.hold({ ...charge, credits: 2 }), conflict)
  await t.rejects(credits.deduct({ ...charge, credits: 2 }), conflict)
  await t.rejects(credits.grant({ ...key, credits: 2 }), conflict)
  t.match(await credits.revoke(grantId), { replayed: true })
  t.match(await credits.capture(holdId), { replayed: true })
  await t.rejects(credits.capture(holdId, { credits: 5 }), { code: 'FST_CREDITS_HOLD_CLOSED' })
  await t.rejects(credits.capture('999999'), { code: 'FST_CREDITS_NOT_FOUND' })
  t.strictSame(await heard(), [])
}, { low: [50] })

ledgerTest("what is done on the host's client is not told of", async (t, { credits, at, transaction }) => {
  const { id: holdId } = await credits.hold({ ...ann, credits: 50 })
  const { id: grantId } = await credits.grant({ userId: 'ann', credits: 1 })
  await credits.hold({ ...ann, credits: 1, ttl: 1000 })
  const heard = hear(credits)
  await at('2030-01-01T00:01:00.000Z')
  await transaction('commit', async client => {
    await credits.capture(holdId, { credits: 60, client })
    await credits.grant({ userId: 'ann', credits: 1, client })
    await credits.revoke(grantId, { client })
    await credits.hold({ ...ann, credits: 1, client })
    await credits.deduct({ ...ann, credits: 10, client })
    await t.rejects(credits.deduct({ ...ann, credits: 1000, client }))
  })
  t.strictSame(await heard(), [])
}, { low: [50] })

ledgerTest('calls that share a statement are each told of', async (t, { credits }) => {
  const heard = hear(credits, ['deducted', 'low', 'refused'])
  const calls = Array.from({ length: 60 }, (_, index) => credits.deduct({ ...ann, credits: 2, metadata: { index } }))
  const ids = (await Promise.allSettled(calls)).map(call => call.status === 'fulfilled' ? call.value.id : undefined)
  const told = await heard()
  t.strictSame(told.flatMap(([, event]) => 'metadata' in event ? [[event.metadata.index, event.id]] : []),
    ids.slice(0, 50).map((id, index) => [index, id]))
  t.match(told.filter(([name]) => name === 'low'), [['low', { balance: balance(100, 90) }]])
  t.equal(told.filter(([name]) => name === 'refused').length, 10)
}, { low: ['10%'] })

t.test('listeners hear after the caller, and what they do is theirs alone', async t => {
  const logged: any[] = []
  const stream = new Writable({ write (line, _encoding, done) { logged.push(JSON.parse(line)); done() } })
  const app = await buildGateway(t, { routes: false }, { server: { logger: { level: 'error', stream } } })
  const order: string[] = []
  let finish = () => {}
  app.credits.on('deducted', () => { order.push('throws'); throw new Error('thrown') })
  app.credits.on('deducted', async () => { order.push('rejects'); throw new Error('rejected') })
  app.credits.on('deducted', async () => { order.push('is slow'); await new Promise<void>(resolve => { finish = resolve }) })
  app.credits.on('deducted', () => { order.push('hears') })
  const heard = hear(app.credits, [])
  for (const used of [1, 2]) {
    const answer = await app.credits.deduct({ ...ann, credits: 1 })
    order.push('caller')
    t.match(answer, { credits: 1, balance: { used } })
    await heard()
    t.strictSame(order.splice(0), ['caller', 'throws', 'rejects', 'is slow', 'hears'])
  }
  t.match(logged, ['thrown', 'rejected', 'thrown', 'rejected'].map(message => (
    { level: 50, event: 'deducted', err: { message }, msg: 'A listener of credits failed' })))
  finish()
})

ledgerTest('once hears of the next event, off of none, on twice is on once', async (t, { credits }) => {
  const calls: string[] = []
  const listener = () => calls.push('on')
  const single = () => calls.push('once')
  const removed = () => calls.push('removed')
  credits.on('deducted', listener)
  credits.on('deducted', listener)
  credits.once('deducted', single)
  credits.once('deducted', removed)
  credits.off('deducted', removed)
  credits.off('deducted', () => {})
  const heard = hear(credits, [])
  await credits.deduct({ ...ann, credits: 1 })
  await credits.deduct({ ...ann, credits: 1 })
  await heard()
  t.strictSame(calls, ['on', 'once', 'on'])
  credits.off('deducted', listener)
  await credits.deduct({ ...ann, credits: 1 })
  await heard()
  t.equal(calls.length, 3)
})

ledgerTest('an unknown event and what is no function are refused', async (t, { credits }) => {
  const anything = credits as any
  for (const method of ['on', 'once', 'off']) {
    for (const name of ['deduct', 'toString', undefined, 5]) {
      t.throws(() => anything[method](name, () => {}), { code: 'FST_CREDITS_INVALID', field: 'event' })
    }
  }
  for (const listener of [undefined, null, 'x', {}]) {
    t.throws(() => anything.on('deducted', listener), { code: 'FST_CREDITS_INVALID', field: 'listener' })
  }
})

t.test('subscribers of diagnostics channels hear the same', async t => {
  const app = await buildGateway(t, { low: [9999], allowance: 10_000 })
  const published: unknown[] = []
  const subscribe = (message: unknown, name: string | symbol) => published.push([name, message])
  for (const name of eventNames) diagnosticsChannel.subscribe(`fastify-ai-credits:${name}`, subscribe)
  t.teardown(() => {
    for (const name of eventNames) diagnosticsChannel.unsubscribe(`fastify-ai-credits:${name}`, subscribe)
  })
  const { id } = await app.credits.deduct({ ...ann, credits: 1 })
  await hear(app.credits, [])()
  t.match(published, [
    ['fastify-ai-credits:deducted', { ...ann, id, credits: 1, metadata: {}, balance: balance(10_000, 1) }],
    ['fastify-ai-credits:low', { userId: 'ann', threshold: 9999 }],
    ['fastify-ai-credits:granted', { userId: 'the end' }]
  ])
})

t.test('without Fastify, a listener that fails is a warning; close tells of what was answered, and no more', async t => {
  const pool = createPool(t, await createDatabase(t))
  const ledger = createLedger(pool, { prepare: !pglite })
  await ledger.migrate()
  const heard: number[] = []
  ledger.on('deducted', ({ credits }) => { heard.push(credits); throw new Error('not today') })
  ledger.on('refused', () => { throw 'a word' }) // eslint-disable-line no-throw-literal
  const warnings: Error[] = []
  const warn = (warning: Error) => warnings.push(warning)
  process.on('warning', warn)
  t.teardown(() => { process.off('warning', warn) })
  const warned = once(process, 'warning')
  const { id } = await ledger.hold({ ...ann, credits: 3 })
  const calls = Promise.allSettled([
    ledger.deduct({ ...ann, credits: 1 }), ledger.deduct({ ...ann, credits: 20_000 }), ledger.capture(id)
  ])
  await ledger.close()
  await calls
  t.strictSame(heard, [1, 3])
  await warned
  await new Promise(resolve => setImmediate(resolve))
  t.match(warnings.map(String), [
    /^CreditsListenerWarning: A listener of deducted failed: Error: not today\n/,
    'CreditsListenerWarning: A listener of refused failed: a word',
    /not today/
  ])
})

t.test('captures that cannot be read are reported, and the rest is told of', async t => {
  const logged: any[] = []
  const stream = new Writable({ write (line, _encoding, done) { logged.push(JSON.parse(line)); done() } })
  const app = await buildGateway(t, { routes: false }, { server: { logger: { level: 'error', stream } } })
  const { id } = await app.credits.hold({ ...ann, credits: 3 })
  await app.pg.query('alter function ai_credit_captures rename to ai_credit_captures_gone')
  const heard = hear(app.credits)
  t.match(await app.credits.capture(id), { credits: 3 })
  await app.credits.deduct({ ...ann, credits: 1 })
  t.match(await heard(), [['deducted', { credits: 1 }]])
  t.match(logged, [{ err: { code: 'FST_CREDITS_UNAVAILABLE' }, event: 'deducted' }])
})

t.test('what time has done that cannot be read is reported, and the rest is told of', async t => {
  const { connectionString, setClock: at } = await createClockedLedgerDatabase(t, start)
  const logged: any[] = []
  const stream = new Writable({ write (line, _encoding, done) { logged.push(JSON.parse(line)); done() } })
  const app = await buildGateway(t, { routes: false }, { connectionString, server: { logger: { level: 'error', stream } } })
  await app.credits.hold({ ...ann, credits: 3, ttl: 1000 })
  await app.pg.query('alter function ai_credit_changes rename to ai_credit_changes_gone')
  const heard = hear(app.credits)
  await at('2030-01-01T00:10:00Z')
  await app.credits.deduct({ ...ann, credits: 1 })
  t.match(await heard(), [['deducted', { credits: 1 }]])
  t.match(logged, [{ err: { code: 'FST_CREDITS_UNAVAILABLE' }, event: 'lapsed' }])
})

t.test('a capture that is pruned before listeners are told of it is reported, and the others are told of', { skip: pglite }, async t => {
  const { connectionString, setClock: at } = await createClockedLedgerDatabase(t, start)
  const logged: any[] = []
  const stream = new Writable({ write (line, _encoding, done) { logged.push(JSON.parse(line)); done() } })
  const app = await buildGateway(t, { routes: false, low: [9_999] },
    { connectionString, pool: { max: 1 }, server: { logger: { level: 'error', stream } } })
  const { id } = await app.credits.hold({ ...ann, credits: 3 })
  await at('2030-01-01T00:10:00Z')
  const heard = hear(app.credits)
  await app.credits.capture(id)
  const client = await app.pg.connect() // listeners have to wait
  await at('2030-01-01T00:10:02Z')
  t.match(await createLedger(createPool(t, connectionString)).prune({ before: '2030-01-01T00:10:01Z' }), { records: 1 })
  client.release()
  await app.credits.deduct({ userId: 'bob', credits: 1, operation: 'chat' })
  t.match(await heard(), [['deducted', { userId: 'bob', credits: 1 }]])
  t.match(logged, [{ err: { message: 'A capture was pruned before its events were emitted' }, event: 'deducted' }])
})

t.test('every crossing that a statement shows was told of once, and no other', async t => {
  const { connectionString, setClock: at } = await createClockedLedgerDatabase(t, start)
  const options: FastifyAiCreditsOptions = { allowance: { credits: 60, every: 'day', rollover: { max: 20 } }, low: [40, '30%', 0] }
  const { credits } = await buildGateway(t, options, { connectionString })
  const seed = Number(process.env.EVENTS_SEED ?? 5)
  t.comment(`EVENTS_SEED=${seed}`)
  const random = (limit: number) => Math.floor((state = (state * 48271) % 2147483647) / 2147483647 * limit)
  let state = seed
  const holds: string[] = []
  const grants: string[] = []
  const records: string[] = []
  const operations: Array<(n: number) => Promise<unknown>> = [
    async n => records.push((await credits.deduct({ ...ann, credits: n })).id),
    async n => records.push((await credits.deduct({ ...ann, credits: Math.max(1, (await credits.balance('ann')).available - n) })).id),
    async n => holds.push((await credits.hold({ ...ann, credits: n, ttl: 3_600_000 * n })).id),
    async n => records.push((await credits.capture(holds[random(holds.length)]!, { credits: n, final: n % 2 === 0 })).id),
    () => credits.release(holds[random(holds.length)]!),
    async n => grants.push((await credits.grant({ userId: 'ann', credits: n, priority: n, expiresAt: new Date(now + n * 3_600_000) })).id),
    () => credits.revoke(grants[random(grants.length)]!),
    () => credits.refund({ usageId: records[random(records.length)]! }),
    n => credits.setOverdraft('ann', n),
    () => credits.balance('ann')
  ]
  let now = Date.parse(start)
  const heard = hear(credits, ['low', 'exhausted'])
  for (let step = 0; step < 400; step++) {
    now += random(5) === 0 ? random(40) * 3_600_000 : 0
    await at(new Date(now).toISOString())
    await operations[random(operations.length)]!(1 + random(40)).catch(() => {})
  }
  const { entries } = await credits.statement('ann')
  const expected = entries.slice(1).flatMap(({ balance: after }, index) => {
    const before = entries[index]!.balance
    const falls = (limit: (total: number) => number) => before.available > limit(before.total) && after.available <= limit(after.total)
    return [
      ...falls(() => 40) ? [40] : [], ...falls(total => total * 0.3) ? ['30%'] : [], ...falls(() => 0) ? [0, 'exhausted'] : []
    ].map(name => [name, after])
  })
  t.ok(expected.length > 20, `${expected.length} crossings`)
  t.strictSame((await heard()).map(([name, event]) => ['threshold' in event ? event.threshold : name, balanceIn(event)]), expected)
})
