import type { Test } from 'tap'
import type { CaptureInput, Credits } from '../../src/index.js'
import { ledgerTest, start } from '../helper/clocked-ledger.js'

const request = { userId: 'ann', credits: 40, operation: 'chat' }
const day = 86_400_000
const missing = { statusCode: 404, code: 'FST_CREDITS_NOT_FOUND', message: 'There is no such hold' }
const closed = { statusCode: 409, code: 'FST_CREDITS_HOLD_CLOSED' }
const conflict = { statusCode: 409, code: 'FST_CREDITS_IDEMPOTENCY_CONFLICT' }

/** The instant at which a hold of the default ttl lapses, and the last microsecond before. */
const lapse = '2030-01-01T00:15:00.000000Z'
const beforeLapse = '2030-01-01T00:14:59.999999Z'

async function has (t: Test, credits: Credits, expected: object) {
  t.strictSame(await credits.balance('ann'), expected)
}

// -- hold

ledgerTest('a hold sets credits aside', async (t, { credits }) => {
  const hold = await credits.hold({ ...request, metadata: { model: 'x' } })
  t.match(hold.id, /^\d+$/)
  t.strictSame({ ...hold, id: '' }, {
    id: '',
    userId: 'ann',
    credits: 40,
    operation: 'chat',
    expiresAt: new Date('2030-01-01T00:15:00Z'),
    balance: { available: 60, total: 100, used: 0, held: 40 },
    replayed: false
  })
  await has(t, credits, hold.balance)
})

ledgerTest('a hold without userId is the default user\'s', async (t, { credits }) => {
  t.equal((await credits.hold({ credits: 1, operation: 'chat' })).userId, 'default_user')
  t.equal((await credits.balance()).held, 1)
})

ledgerTest('all that is available can be held, and not one more', async (t, { credits }) => {
  await credits.hold({ ...request, credits: 100 })
  await t.rejects(credits.hold({ ...request, credits: 1 }), {
    statusCode: 402,
    code: 'FST_CREDITS_INSUFFICIENT',
    required: 1,
    credits: { available: 0, total: 100, used: 0, held: 100 }
  })
  await has(t, credits, { available: 0, total: 100, used: 0, held: 100 })
})

ledgerTest('what is held cannot be deducted', async (t, { credits }) => {
  await credits.hold(request)
  await t.rejects(credits.deduct({ ...request, credits: 61 }), { code: 'FST_CREDITS_INSUFFICIENT', required: 61 })
  await credits.deduct({ ...request, credits: 60 })
  await has(t, credits, { available: 0, total: 100, used: 60, held: 40 })
})

ledgerTest('a hold may draw on the overdraft', async (t, { credits }) => {
  await credits.setOverdraft('ann', 20)
  await t.rejects(credits.hold({ ...request, credits: 121 }), { code: 'FST_CREDITS_INSUFFICIENT' })
  const { id } = await credits.hold({ ...request, credits: 120 })
  await has(t, credits, { available: -20, total: 100, used: 0, held: 120 })
  await credits.capture(id)
  await has(t, credits, { available: -20, total: 100, used: 120, held: 0 })
})

ledgerTest('a ttl is from one second to 24 hours', async (t, { credits }) => {
  t.strictSame((await credits.hold({ ...request, credits: 1, ttl: 1000 })).expiresAt, new Date('2030-01-01T00:00:01Z'))
  t.strictSame((await credits.hold({ ...request, credits: 1, ttl: day })).expiresAt, new Date('2030-01-02T00:00:00Z'))
  for (const ttl of [999, day + 1]) {
    await t.rejects(credits.hold({ ...request, ttl }), { statusCode: 400, code: 'FST_CREDITS_INVALID', field: 'ttl' })
  }
  await has(t, credits, { available: 98, total: 100, used: 0, held: 2 })
})

ledgerTest('a repeated hold is answered as the first one was, and holds once', async (t, { credits }) => {
  const keyed = { ...request, metadata: { a: 1, b: 2 }, idempotencyKey: 'k' }
  const first = await credits.hold(keyed)
  await credits.deduct({ ...request, credits: 60 })
  t.strictSame(await credits.hold({ ...keyed, metadata: { b: 2, a: 1 } }), { ...first, replayed: true })
  await has(t, credits, { available: 0, total: 100, used: 60, held: 40 })
})

ledgerTest('a repeated hold is answered the same when it is extended, captured, released or lapsed by then', async (t, { credits, at }) => {
  const ends = {
    extended: (id: string) => credits.extend(id, { ttl: day }),
    captured: (id: string) => credits.capture(id),
    released: (id: string) => credits.release(id),
    lapsed: () => at(lapse)
  }
  for (const [idempotencyKey, end] of Object.entries(ends)) {
    const keyed = { ...request, userId: idempotencyKey, idempotencyKey }
    const first = await credits.hold(keyed)
    await end(first.id)
    const { held } = await credits.balance(idempotencyKey)
    t.strictSame(await credits.hold(keyed), { ...first, replayed: true }, idempotencyKey)
    t.equal((await credits.balance(idempotencyKey)).held, held)
  }
})

ledgerTest('the key of a hold with other content is a conflict', async (t, { credits }) => {
  const keyed = { ...request, metadata: { a: 1 }, ttl: 60_000, idempotencyKey: 'k' }
  await credits.hold(keyed)
  for (const other of [{ credits: 41 }, { operation: 'image' }, { metadata: {} }, { ttl: 61_000 }]) {
    await t.rejects(credits.hold({ ...keyed, ...other }), conflict, JSON.stringify(other))
  }
  await has(t, credits, { available: 60, total: 100, used: 0, held: 40 })
})

ledgerTest('the key of a hold is its account\'s, and no deduct\'s or grant\'s', async (t, { credits }) => {
  const keyed = { ...request, idempotencyKey: 'k' }
  await credits.deduct({ ...keyed, credits: 1 })
  await credits.grant({ userId: 'ann', credits: 1, idempotencyKey: 'k' })
  for (const userId of ['ann', 'bob']) t.equal((await credits.hold({ ...keyed, userId })).replayed, false)
  t.equal((await credits.balance('bob')).held, 40)
})

ledgerTest('holds without a key are never taken for each other', async (t, { credits }) => {
  const ids = [await credits.hold(request), await credits.hold(request)].map(({ id }) => id)
  t.not(ids[0], ids[1])
  await has(t, credits, { available: 20, total: 100, used: 0, held: 80 })
})

ledgerTest('a refused hold is not remembered', async (t, { credits }) => {
  const keyed = { ...request, credits: 101, idempotencyKey: 'k' }
  await t.rejects(credits.hold(keyed), { code: 'FST_CREDITS_INSUFFICIENT' })
  await credits.grant({ userId: 'ann', credits: 1 })
  t.equal((await credits.hold(keyed)).replayed, false)
})

// -- capture

ledgerTest('a capture without credits spends all that is held', async (t, { credits }) => {
  const { id: holdId } = await credits.hold(request)
  const capture = await credits.capture(holdId)
  t.match(capture.id, /^\d+$/)
  t.strictSame({ ...capture, id: '' }, {
    id: '',
    holdId,
    userId: 'ann',
    credits: 40,
    uncollected: 0,
    balance: { available: 60, total: 100, used: 40, held: 0 },
    replayed: false
  })
  await has(t, credits, capture.balance)
})

ledgerTest('a capture is a usage record dated now, with the operation and metadata of the hold', async (t, { pool, credits, at }) => {
  const { id } = await credits.hold({ ...request, metadata: { model: 'x' }, ttl: day })
  await at('2030-01-01T23:00:00Z')
  await credits.capture(id, { credits: 5, final: false })
  await at('2030-01-01T23:59:00Z')
  const capture = await credits.capture(id, { credits: 30 })
  const { rows } = await pool.query(`
    select kind, user_id, credits_used, operation, metadata, created_at, hold_id from ai_credit_usage where id = $1`, [capture.id])
  t.strictSame(rows, [{
    kind: 'capture',
    user_id: 'ann',
    credits_used: '30',
    operation: 'chat',
    metadata: { model: 'x' },
    created_at: new Date('2030-01-01T23:59:00Z'),
    hold_id: id
  }])
  t.strictSame((await credits.history('ann')).entries, [
    { date: '2030-01-01', used: 35, operation: 'chat', metadata: { model: 'x' } }
  ])
})

ledgerTest('a capture is usage of its own day, not of the hold\'s', async (t, { credits, at }) => {
  const { id } = await credits.hold({ ...request, ttl: day })
  await at('2030-01-01T23:59:59.999Z')
  await credits.extend(id, { ttl: day })
  await at('2030-01-02T00:00:00Z')
  await credits.capture(id)
  t.strictSame((await credits.history('ann')).entries, [{ date: '2030-01-02', used: 40, operation: 'chat', metadata: {} }])
})

ledgerTest('a capture of less than is held gives the remainder back', async (t, { credits }) => {
  const { id } = await credits.hold(request)
  t.match(await credits.capture(id, { credits: 15 }), { credits: 15, uncollected: 0 })
  await has(t, credits, { available: 85, total: 100, used: 15, held: 0 })
})

ledgerTest('parts keep the rest held, until the last one', async (t, { credits }) => {
  const { id } = await credits.hold(request)
  const parts: CaptureInput[] = [{ credits: 10, final: false }, { credits: 10, final: false }, { credits: 5 }]
  const balances = []
  for (const part of parts) balances.push((await credits.capture(id, part)).balance)
  t.strictSame(balances, [
    { available: 60, total: 100, used: 10, held: 30 },
    { available: 60, total: 100, used: 20, held: 20 },
    { available: 75, total: 100, used: 25, held: 0 }
  ])
})

ledgerTest('after parts, a capture without credits spends the rest', async (t, { credits }) => {
  const { id } = await credits.hold(request)
  await credits.capture(id, { credits: 10, final: false })
  t.equal((await credits.capture(id)).credits, 30)
  await has(t, credits, { available: 60, total: 100, used: 40, held: 0 })
})

ledgerTest('after parts, a release gives the rest back', async (t, { credits }) => {
  const { id } = await credits.hold(request)
  await credits.capture(id, { credits: 10, final: false })
  t.match(await credits.release(id), { credits: 30, balance: { available: 90, total: 100, used: 10, held: 0 } })
})

ledgerTest('parts that take all leave the hold open, with nothing in it', async (t, { credits }) => {
  const { id } = await credits.hold(request)
  await credits.capture(id, { final: false })
  await has(t, credits, { available: 60, total: 100, used: 40, held: 0 })
  t.match(await credits.capture(id, { credits: 5, final: false }), { credits: 5, uncollected: 0 })
  t.match(await credits.release(id), { credits: 0, replayed: false })
  await has(t, credits, { available: 55, total: 100, used: 45, held: 0 })
})

ledgerTest('the metadata of a part goes over the hold\'s', async (t, { credits }) => {
  const { id } = await credits.hold({ ...request, metadata: { model: 'x', tokens: 0, at: { a: 1 } } })
  await credits.capture(id, { credits: 3, metadata: { tokens: 7, at: { b: 2 } }, final: false })
  await credits.capture(id, { credits: 2, metadata: { done: true } })
  t.strictSame((await credits.history('ann')).entries.map(({ used, metadata }) => ({ used, metadata })), [
    { used: 3, metadata: { model: 'x', tokens: 7, at: { b: 2 } } },
    { used: 2, metadata: { model: 'x', tokens: 0, at: { a: 1 }, done: true } }
  ])
})

ledgerTest('what is captured beyond the hold is drawn from what is available', async (t, { credits }) => {
  const { id } = await credits.hold(request)
  t.match(await credits.capture(id, { credits: 100 }), { credits: 100, uncollected: 0 })
  await has(t, credits, { available: 0, total: 100, used: 100, held: 0 })
})

ledgerTest('a capture that is short takes what is there and tells the rest', async (t, { credits }) => {
  const { id } = await credits.hold(request)
  t.match(await credits.capture(id, { credits: 130 }), { credits: 100, uncollected: 30 })
  await has(t, credits, { available: 0, total: 100, used: 100, held: 0 })
  t.equal((await credits.history('ann')).entries[0]!.used, 100)
})

ledgerTest('a part that is short does so too, and leaves the hold open', async (t, { credits }) => {
  const { id } = await credits.hold(request)
  t.match(await credits.capture(id, { credits: 130, shortfall: 'partial', final: false }), { credits: 100, uncollected: 30 })
  t.match(await credits.release(id), { credits: 0, replayed: false })
})

ledgerTest('a capture never draws on other holds', async (t, { credits }) => {
  const { id } = await credits.hold(request)
  await credits.hold({ ...request, credits: 50 })
  t.match(await credits.capture(id, { credits: 60 }), { credits: 50, uncollected: 10 })
  await has(t, credits, { available: 0, total: 100, used: 50, held: 50 })
})

ledgerTest('a capture that is short may refuse, and leaves the hold as it was', async (t, { credits }) => {
  const { id } = await credits.hold(request)
  for (const final of [true, false]) {
    await t.rejects(credits.capture(id, { credits: 101, shortfall: 'reject', final }), {
      statusCode: 402,
      code: 'FST_CREDITS_INSUFFICIENT',
      required: 101,
      credits: { available: 60, total: 100, used: 0, held: 40 }
    })
  }
  await has(t, credits, { available: 60, total: 100, used: 0, held: 40 })
  t.match(await credits.capture(id, { credits: 100, shortfall: 'reject' }), { credits: 100, uncollected: 0 })
})

ledgerTest('a refused capture is not remembered', async (t, { credits }) => {
  const { id } = await credits.hold(request)
  const input: CaptureInput = { credits: 101, shortfall: 'reject', idempotencyKey: 'k' }
  await t.rejects(credits.capture(id, input), { code: 'FST_CREDITS_INSUFFICIENT' })
  await credits.grant({ userId: 'ann', credits: 1 })
  t.match(await credits.capture(id, input), { credits: 101, replayed: false })
})

ledgerTest('what is captured beyond the hold may draw on the overdraft', async (t, { credits }) => {
  await credits.setOverdraft('ann', 20)
  const { id } = await credits.hold(request)
  t.match(await credits.capture(id, { credits: 130 }), { credits: 120, uncollected: 10 })
  await has(t, credits, { available: -20, total: 100, used: 120, held: 0 })
})

// -- keys of captures

ledgerTest('a key tells a retry of a part from the next part', async (t, { credits }) => {
  const { id } = await credits.hold({ ...request, idempotencyKey: 'first' })
  const part = { credits: 10, final: false }
  const first = await credits.capture(id, { ...part, idempotencyKey: 'first' })
  const second = await credits.capture(id, { ...part, idempotencyKey: 'second' })
  t.strictSame(await credits.capture(id, { ...part, idempotencyKey: 'first' }), { ...first, replayed: true })
  t.strictSame(await credits.capture(id, { ...part, idempotencyKey: 'second' }), { ...second, replayed: true })
  await has(t, credits, { available: 60, total: 100, used: 20, held: 20 })
})

ledgerTest('a part is answered again after the hold was closed', async (t, { credits, at }) => {
  const part = { credits: 60, metadata: { a: 1 }, final: false, idempotencyKey: 'k' }
  const ends = [(id: string) => credits.capture(id, { credits: 1 }), (id: string) => credits.release(id), () => at(lapse)]
  for (const [index, end] of ends.entries()) {
    const { id } = await credits.hold({ ...request, userId: `user ${index}` })
    const first = await credits.capture(id, part)
    await end(id)
    t.strictSame(await credits.capture(id, part), { ...first, replayed: true })
  }
})

ledgerTest('a replay tells what was not collected then', async (t, { credits }) => {
  const { id } = await credits.hold(request)
  const input = { credits: 130, idempotencyKey: 'k' }
  const first = await credits.capture(id, input)
  await credits.grant({ userId: 'ann', credits: 1000 })
  t.strictSame(await credits.capture(id, input), { ...first, replayed: true })
  t.equal(first.uncollected, 30)
})

ledgerTest('the key of a capture with other content is a conflict', async (t, { credits }) => {
  const { id } = await credits.hold(request)
  const part = { credits: 10, metadata: { a: 1 }, final: false, idempotencyKey: 'k' }
  await credits.capture(id, part)
  const others: CaptureInput[] = [{ credits: 11 }, { metadata: {} }, { final: true }, { shortfall: 'reject' }]
  for (const other of others) await t.rejects(credits.capture(id, { ...part, ...other }), conflict, JSON.stringify(other))
  const { credits: _credits, ...rest } = part
  await t.rejects(credits.capture(id, rest), conflict)
  await has(t, credits, { available: 60, total: 100, used: 10, held: 30 })
})

ledgerTest('the key of a capture is its hold\'s', async (t, { credits }) => {
  await credits.deduct({ ...request, credits: 1, idempotencyKey: 'k' })
  const holds = [await credits.hold(request), await credits.hold(request)]
  for (const { id } of holds) t.match(await credits.capture(id, { credits: 10, idempotencyKey: 'k' }), { credits: 10, replayed: false })
  await has(t, credits, { available: 79, total: 100, used: 21, held: 0 })
})

// -- closed exactly once

ledgerTest('repeating the capture that closed a hold answers it again', async (t, { credits }) => {
  for (const input of [undefined, {}, { credits: 10 }, { metadata: { a: 1 } }, { credits: 10, idempotencyKey: 'k' }]) {
    const { id } = await credits.hold({ ...request, userId: JSON.stringify(input ?? null) })
    const first = await credits.capture(id, input)
    await credits.deduct({ userId: first.userId, credits: 1, operation: 'chat' })
    t.strictSame(await credits.capture(id, input), { ...first, replayed: true })
  }
})

ledgerTest('repeating a release answers it again', async (t, { credits }) => {
  const { id } = await credits.hold(request)
  const first = await credits.release(id)
  t.strictSame(first, {
    id, userId: 'ann', credits: 40, balance: { available: 100, total: 100, used: 0, held: 0 }, replayed: false
  })
  await credits.deduct({ ...request, credits: 1 })
  t.strictSame(await credits.release(id), { ...first, replayed: true })
  await has(t, credits, { available: 99, total: 100, used: 1, held: 0 })
})

ledgerTest('a captured hold is closed to every other call', async (t, { credits }) => {
  const { id } = await credits.hold(request)
  await credits.capture(id, { credits: 10, idempotencyKey: 'k' })
  const others: CaptureInput[] = [
    {}, { credits: 11 }, { credits: 10, metadata: { a: 1 } }, { credits: 10, final: false },
    { credits: 10, shortfall: 'reject' }, { credits: 10, idempotencyKey: 'other' }
  ]
  for (const other of others) await t.rejects(credits.capture(id, other), closed, JSON.stringify(other))
  await t.rejects(credits.release(id), closed)
  await t.rejects(credits.extend(id, { ttl: day }), closed)
  await has(t, credits, { available: 90, total: 100, used: 10, held: 0 })
})

ledgerTest('a released hold is closed to every other call', async (t, { credits }) => {
  const { id } = await credits.hold(request)
  await credits.release(id)
  for (const other of [{}, { credits: 10 }, { final: false }]) await t.rejects(credits.capture(id, other), closed)
  await t.rejects(credits.extend(id, { ttl: day }), closed)
  await has(t, credits, { available: 100, total: 100, used: 0, held: 0 })
})

// -- lapse

ledgerTest('a hold lapses exactly at its instant, without anyone running anything', async (t, { credits, at }) => {
  await credits.hold(request)
  await at(beforeLapse)
  await has(t, credits, { available: 60, total: 100, used: 0, held: 40 })
  await at(lapse)
  await has(t, credits, { available: 100, total: 100, used: 0, held: 0 })
})

ledgerTest('the call that comes at that instant has the credits already', async (t, { credits, at }) => {
  const calls: Array<[string, () => Promise<unknown>]> = [
    ['deduct', () => credits.deduct({ userId: 'deduct', credits: 100, operation: 'chat' })],
    ['hold', () => credits.hold({ userId: 'hold', credits: 100, operation: 'chat' })]
  ]
  for (const [userId, call] of calls) {
    await at(start)
    await credits.hold({ ...request, userId })
    await at(beforeLapse)
    await t.rejects(call(), { code: 'FST_CREDITS_INSUFFICIENT' }, userId)
    await at(lapse)
    await t.resolves(call(), userId)
  }
})

ledgerTest('each hold lapses by itself, and what is captured of one does not come back', async (t, { credits, at }) => {
  const { id } = await credits.hold({ ...request, ttl: 1000 })
  await credits.hold({ ...request, credits: 30, ttl: 2000 })
  await credits.capture(id, { credits: 15, final: false })
  await at('2030-01-01T00:00:01Z')
  await has(t, credits, { available: 55, total: 100, used: 15, held: 30 })
  await at('2030-01-01T00:00:02Z')
  await has(t, credits, { available: 85, total: 100, used: 15, held: 0 })
})

ledgerTest('a lapse is an entry of its instant, though nobody called then', async (t, { credits, at }) => {
  const { id } = await credits.hold(request)
  await at('2030-03-01T00:00:00Z')
  const { entries } = await credits.statement('ann')
  t.match(entries.at(-1), {
    kind: 'lapse', at: new Date(lapse), amount: 40, referenceId: id, balance: { available: 100, total: 100, used: 0, held: 0 }
  })
})

ledgerTest('capturing a lapsed hold charges what it held', async (t, { credits, at }) => {
  const { id } = await credits.hold(request)
  await at(lapse)
  const first = await credits.capture(id)
  t.match(first, { credits: 40, uncollected: 0, balance: { available: 60, total: 100, used: 40, held: 0 }, replayed: false })
  t.strictSame(await credits.capture(id), { ...first, replayed: true })
  await t.rejects(credits.release(id), closed)
  await has(t, credits, first.balance)
})

ledgerTest('capturing a lapsed hold after parts charges what it still held', async (t, { credits, at }) => {
  const { id } = await credits.hold(request)
  await credits.capture(id, { credits: 10, final: false })
  await at(lapse)
  t.equal((await credits.capture(id)).credits, 30)
  await has(t, credits, { available: 60, total: 100, used: 40, held: 0 })
})

ledgerTest('capturing a lapsed hold may charge more or less than it held', async (t, { credits, at }) => {
  const { id: less } = await credits.hold(request)
  const { id: more } = await credits.hold(request)
  await at(lapse)
  t.match(await credits.capture(less, { credits: 5 }), { credits: 5, uncollected: 0 })
  t.match(await credits.capture(more, { credits: 200 }), { credits: 95, uncollected: 105 })
})

ledgerTest('capturing a lapsed hold takes what is there', async (t, { credits, at }) => {
  const { id: some } = await credits.hold(request)
  const { id: none } = await credits.hold(request)
  await at(lapse)
  await credits.deduct({ ...request, credits: 90 })
  t.match(await credits.capture(some), { credits: 10, uncollected: 30 })
  t.match(await credits.capture(none), { credits: 0, uncollected: 40 })
  await has(t, credits, { available: 0, total: 100, used: 100, held: 0 })
})

ledgerTest('capturing a lapsed hold is always final', async (t, { credits, at }) => {
  const { id } = await credits.hold(request)
  await at(lapse)
  const part = { credits: 10, final: false }
  const first = await credits.capture(id, part)
  t.strictSame(await credits.capture(id, part), { ...first, replayed: true })
  await t.rejects(credits.capture(id, { credits: 11, final: false }), closed)
  await t.rejects(credits.capture(id, { ...part, idempotencyKey: 'next' }), closed)
  await t.rejects(credits.release(id), closed)
  await has(t, credits, { available: 90, total: 100, used: 10, held: 0 })
})

ledgerTest('a refused capture leaves a lapsed hold as it was', async (t, { credits, at }) => {
  const { id } = await credits.hold(request)
  await at(lapse)
  await credits.deduct({ ...request, credits: 90 })
  for (const input of [{}, { credits: 11 }, { credits: 11, final: false }]) {
    await t.rejects(credits.capture(id, { ...input, shortfall: 'reject' }), {
      code: 'FST_CREDITS_INSUFFICIENT', required: input.credits ?? 40, credits: { available: 10, held: 0 }
    })
  }
  await credits.grant({ userId: 'ann', credits: 100 })
  t.match(await credits.capture(id, { shortfall: 'reject' }), { credits: 40, uncollected: 0 })
})

ledgerTest('releasing a lapsed hold answers as if it were released', async (t, { credits, at }) => {
  const { id } = await credits.hold(request)
  await credits.capture(id, { credits: 10, final: false })
  await at(lapse)
  const release = await credits.release(id)
  t.match(release, { id, userId: 'ann', credits: 30, balance: { available: 90, total: 100, used: 10, held: 0 } })
  await credits.deduct({ ...request, credits: 1 })
  t.match(await credits.release(id), { ...release, replayed: true })
  await has(t, credits, { available: 89, total: 100, used: 11, held: 0 })
})

// -- extend

ledgerTest('an extended hold lapses ttl after the extension', async (t, { credits, at }) => {
  const { id } = await credits.hold(request)
  await credits.capture(id, { credits: 10, final: false })
  await at('2030-01-01T00:10:00Z')
  t.strictSame(await credits.extend(id, { ttl: 600_000 }), {
    id,
    userId: 'ann',
    credits: 30,
    expiresAt: new Date('2030-01-01T00:20:00Z'),
    balance: { available: 60, total: 100, used: 10, held: 30 }
  })
  await at('2030-01-01T00:19:59.999999Z')
  t.equal((await credits.balance('ann')).held, 30)
  await at('2030-01-01T00:20:00Z')
  t.equal((await credits.balance('ann')).held, 0)
})

ledgerTest('a hold can be extended again and again', async (t, { credits, at }) => {
  const { id } = await credits.hold({ ...request, ttl: day })
  for (const time of ['2030-01-01T23:00:00Z', '2030-01-02T22:00:00Z', '2030-01-03T21:00:00Z']) {
    await at(time)
    await credits.extend(id, { ttl: day })
  }
  await at('2030-01-04T20:59:59Z')
  t.equal((await credits.balance('ann')).held, 40)
})

ledgerTest('an extension never shortens', async (t, { credits, at }) => {
  const { id, expiresAt } = await credits.hold(request)
  t.strictSame((await credits.extend(id, { ttl: 1000 })).expiresAt, expiresAt)
  await at(beforeLapse)
  t.equal((await credits.balance('ann')).held, 40)
})

ledgerTest('the ttl of an extension is from one second to 24 hours', async (t, { credits }) => {
  const { id } = await credits.hold({ ...request, ttl: 1000 })
  for (const ttl of [999, day + 1]) {
    await t.rejects(credits.extend(id, { ttl }), { statusCode: 400, code: 'FST_CREDITS_INVALID', field: 'ttl' })
  }
  t.strictSame((await credits.extend(id, { ttl: day })).expiresAt, new Date('2030-01-02T00:00:00Z'))
})

for (const settled of ['before', 'by']) {
  ledgerTest(`a lapsed hold is captured after a release too: the work was done (settled ${settled} the release)`, async (t, { credits, at }) => {
    const { id } = await credits.hold(request)
    await at(lapse)
    if (settled === 'before') await credits.balance('ann')
    t.match(await credits.release(id), { credits: 40, balance: { available: 100, held: 0 } })
    t.match(await credits.capture(id, { credits: 25 }), { credits: 25, balance: { available: 75, used: 25 } })
    t.match(await credits.capture(id, { credits: 25 }), { replayed: true })
    await t.rejects(credits.release(id), closed)
  })
}

ledgerTest('a lapsed hold cannot be extended', async (t, { credits, at }) => {
  const { id } = await credits.hold(request)
  await at(lapse)
  await t.rejects(credits.extend(id, { ttl: day }), closed)
  await has(t, credits, { available: 100, total: 100, used: 0, held: 0 })
})

// -- ids

function callsOnHold (credits: Credits, id: string, userId?: string): Array<() => Promise<unknown>> {
  const input = userId === undefined ? {} : { userId }
  return [() => credits.capture(id, input), () => credits.release(id, input), () => credits.extend(id, { ...input, ttl: 1000 })]
}

ledgerTest('an id of no hold is not found', async (t, { credits }) => {
  const { id } = await credits.hold(request)
  const ids = [`${Number(id) + 1}`, '0', '-1', '1.0', ` ${id}`, `${id}x`, '', 'null', '1e3', '9'.repeat(18), '9'.repeat(30), '١', 'a\0']
  for (const unknown of ids) {
    for (const call of callsOnHold(credits, unknown)) await t.rejects(call(), missing, JSON.stringify(unknown))
  }
})

ledgerTest('the id of another account\'s hold is not found', async (t, { credits }) => {
  const { id } = await credits.hold(request)
  for (const userId of ['bob', 'Ann', 'default_user']) {
    for (const call of callsOnHold(credits, id, userId)) await t.rejects(call(), missing, userId)
  }
  await has(t, credits, { available: 60, total: 100, used: 0, held: 40 })
})

ledgerTest('the id of the account\'s own hold is found', async (t, { credits }) => {
  const [captured, released] = [await credits.hold(request), await credits.hold(request)]
  await credits.extend(captured.id, { userId: 'ann', ttl: day })
  t.equal((await credits.capture(captured.id, { userId: 'ann' })).userId, 'ann')
  t.equal((await credits.release(released.id, { userId: 'ann' })).userId, 'ann')
})

// -- holds and grants that expire

/** One grant of 100 that expires at one o'clock, after the hold has taken `held` of it. */
async function pinned (credits: Credits, at: (time: string) => Promise<void>, held: number) {
  await credits.grant({ userId: 'ann', credits: 100, expiresAt: '2030-01-01T01:00:00Z' })
  const { id } = await credits.hold({ ...request, credits: held, ttl: day })
  await at('2030-01-01T01:00:00Z')
  return id
}
const nothing = { allowance: 0 }

ledgerTest('a hold that is open when a grant expires keeps what it holds', async (t, { credits, at }) => {
  await pinned(credits, at, 60)
  await has(t, credits, { available: 0, total: 60, used: 0, held: 60 })
}, nothing)

ledgerTest('what it keeps can be captured', async (t, { credits, at }) => {
  const id = await pinned(credits, at, 60)
  t.match(await credits.capture(id), { credits: 60, uncollected: 0 })
  await has(t, credits, { available: 0, total: 60, used: 60, held: 0 })
}, nothing)

ledgerTest('what it keeps and does not capture leaves the total', async (t, { credits, at }) => {
  const id = await pinned(credits, at, 60)
  await credits.capture(id, { credits: 5, final: false })
  await has(t, credits, { available: 0, total: 60, used: 5, held: 55 })
  await credits.capture(id, { credits: 15 })
  await has(t, credits, { available: 0, total: 20, used: 20, held: 0 })
}, nothing)

ledgerTest('what it keeps and releases leaves the total', async (t, { credits, at }) => {
  const id = await pinned(credits, at, 60)
  t.equal((await credits.release(id)).credits, 0, 'nothing of it is available again')
  await has(t, credits, { available: 0, total: 0, used: 0, held: 0 })
}, nothing)

ledgerTest('what it keeps when it lapses leaves the total, and cannot be captured any more', async (t, { credits, at }) => {
  const id = await pinned(credits, at, 60)
  await at('2030-01-02T00:00:00Z')
  await has(t, credits, { available: 0, total: 0, used: 0, held: 0 })
  t.match(await credits.capture(id), { credits: 0, uncollected: 60 })
}, nothing)

ledgerTest('a hold that lapses at the instant at which the grant expires keeps nothing', async (t, { credits, at }) => {
  await credits.grant({ userId: 'ann', credits: 100, expiresAt: '2030-01-01T00:15:00Z' })
  await credits.hold(request)
  await at(lapse)
  await has(t, credits, { available: 0, total: 0, used: 0, held: 0 })
}, nothing)

ledgerTest('spending is laid on the expiring grant first, then the holds by age', async (t, { credits, at }) => {
  await credits.grant({ userId: 'ann', credits: 50, expiresAt: '2030-01-01T01:00:00Z' }) // the allowance burns after it
  const holds = [await credits.hold({ ...request, credits: 20, ttl: day }), await credits.hold({ ...request, credits: 30, ttl: day })]
  await credits.deduct({ ...request, credits: 10 })
  await at('2030-01-01T01:00:00Z')
  await has(t, credits, { available: 90, total: 150, used: 10, held: 50 })
  t.equal((await credits.release(holds[1]!.id)).credits, 10, 'of its 30, 20 lay on the grant')
  await has(t, credits, { available: 100, total: 130, used: 10, held: 20 })
  t.equal((await credits.release(holds[0]!.id)).credits, 0)
  await has(t, credits, { available: 100, total: 110, used: 10, held: 0 })
})

ledgerTest('a capture spends first what was kept', async (t, { credits, at }) => {
  await credits.grant({ userId: 'ann', credits: 20, expiresAt: '2030-01-01T01:00:00Z' })
  const { id } = await credits.hold({ ...request, ttl: day })
  await at('2030-01-01T01:00:00Z')
  await credits.capture(id, { credits: 15, final: false })
  t.equal((await credits.release(id)).credits, 20, 'of the 25 left, 5 are the expired grant\'s')
  await has(t, credits, { available: 100, total: 115, used: 15, held: 0 })
})

// -- the host's own transaction

ledgerTest('hold, capture, extend and release commit with the host\'s writes', async (t, { credits, transaction }) => {
  const { id } = await transaction('commit', client => credits.hold({ ...request, client }))
  t.equal((await credits.balance('ann')).held, 40)
  await transaction('commit', client => credits.extend(id, { ttl: day, client }))
  t.strictSame((await credits.extend(id, { ttl: 1000 })).expiresAt, new Date('2030-01-02T00:00:00Z'))
  await transaction('commit', client => credits.capture(id, { credits: 10, final: false, client }))
  await transaction('commit', client => credits.release(id, { client }))
  await has(t, credits, { available: 90, total: 100, used: 10, held: 0 })
})

ledgerTest('hold, capture, extend and release go with the host\'s rollback', async (t, { credits, transaction }) => {
  await transaction('rollback', client => credits.hold({ ...request, userId: 'bob', idempotencyKey: 'k', client }))
  t.equal((await credits.hold({ ...request, userId: 'bob', idempotencyKey: 'k' })).replayed, false)
  const { id, expiresAt } = await credits.hold(request)
  await transaction('rollback', client => credits.extend(id, { ttl: day, client }))
  await transaction('rollback', client => credits.release(id, { client }))
  await transaction('rollback', client => credits.capture(id, { credits: 1, idempotencyKey: 'k', client }))
  t.strictSame((await credits.extend(id, { ttl: 1000 })).expiresAt, expiresAt)
  await has(t, credits, { available: 60, total: 100, used: 0, held: 40 })
  t.match(await credits.capture(id, { credits: 2, idempotencyKey: 'k' }), { credits: 2, replayed: false })
})

ledgerTest('one transaction may hold, capture and release', async (t, { credits, transaction }) => {
  await transaction('commit', async client => {
    const { id } = await credits.hold({ ...request, client })
    await t.rejects(credits.capture(id, { credits: 101, shortfall: 'reject', client }), { code: 'FST_CREDITS_INSUFFICIENT' })
    await credits.capture(id, { credits: 10, final: false, client })
    await credits.release(id, { client })
    await t.rejects(credits.capture(id, { client }), closed)
  })
  await has(t, credits, { available: 90, total: 100, used: 10, held: 0 })
})
