import fc from 'fast-check'
import t from 'tap'
import type { Ledger, PricedCaptureInput, PricedDeductInput, Prices, Usage } from '../../src/index.js'
import { buildGateway } from '../helper/app.js'
import { onLedger } from '../helper/clocked-ledger.js'
import { createLedgerDatabase } from '../helper/database.js'

const start = '2024-05-01T12:00:00.000Z'

const prices: Prices = {
  chat: { per: { input: { credits: 1, each: 1000 }, output: { credits: 4, each: 1000 } } },
  video: { per: { seconds: 4, clips: 10 }, base: 3, maximum: 100 }
}
const dearer: Prices = { ...prices, chat: { per: { input: 1, output: 4 } } }

const options = { allowance: 1000, prices, priceVersion: 'may' }
const changed = { ...options, prices: dearer, priceVersion: 'june' }

const chat = (usage: Usage, more: Partial<PricedDeductInput> = {}) => ({ userId: 'ann', operation: 'chat', usage, ...more })

t.test('a deduct by usage charges what it is quoted, and keeps what it was computed from', onLedger(start, options,
  async (t, { credits, pool }) => {
    const usage = { input: 1500, output: 250 }
    t.strictSame(credits.quote('chat', usage), { credits: 3, operation: 'chat', version: 'may', usage })
    const { id, ...deduction } = await credits.deduct(chat(usage, { metadata: { model: 'm' } }))
    const balance = { available: 997, total: 1000, used: 3, held: 0 }
    t.strictSame(deduction, { userId: 'ann', credits: 3, operation: 'chat', balance, replayed: false })
    await credits.deduct({ userId: 'ann', credits: 5, operation: 'chat' })
    const { entries } = await credits.statement('ann')
    t.strictSame(entries[1], {
      ...{ seq: 1, kind: 'deduct', at: new Date(start), amount: -3, balance, id, operation: 'chat', metadata: { model: 'm' } },
      ...{ priceVersion: 'may', usage }
    })
    t.notOk('usage' in entries[2]! || 'priceVersion' in entries[2]!, 'a charge of so many credits has neither')
    const { rows } = await pool.query('select price_version, quantities from ai_credit_usage order by seq')
    t.strictSame(rows.map(row => ({ ...row })), [
      { price_version: 'may', quantities: usage }, { price_version: null, quantities: null }
    ])
  }))

t.test('what the balance does not cover is refused by its credits', onLedger(start, options, async (t, { credits }) => {
  const refused = { code: 'FST_CREDITS_INSUFFICIENT', required: 2000, credits: { available: 1000 } }
  await t.rejects(credits.deduct(chat({ output: 500_000 })), refused)
  const outcomes = await Promise.allSettled([credits.deduct(chat({ output: 500_000 })), credits.deduct(chat({ output: 1 }))])
  t.match(outcomes, [{ status: 'rejected', reason: refused }, { status: 'fulfilled', value: { credits: 1 } }])
}))

t.test('either credits or usage', onLedger(start, options, async (t, { credits }) => {
  const { id } = await credits.hold({ userId: 'ann', credits: 10, operation: 'chat' })
  const usage = { input: 1 }
  const deducts: Array<[field: string, input: object]> = [
    ['credits', { operation: 'chat' }],
    ['credits', { operation: 'chat', usage, credits: 1 }],
    ['operation', { usage }],
    ['usage', { operation: 'chat', usage: null }],
    ['usage', { operation: 'chat', usage: 0 }],
    ['usage.seconds', { operation: 'chat', usage: { seconds: 1 } }]
  ]
  for (const [field, input] of deducts) {
    await t.rejects(credits.deduct(input as PricedDeductInput), { code: 'FST_CREDITS_INVALID', field }, JSON.stringify(input))
  }
  const captures: Array<[field: string, input: object]> = [
    ['credits', { operation: 'chat', usage, credits: 1 }],
    ['operation', { usage }],
    ['usage', { operation: 'chat' }],
    ['usage', { operation: 'chat', credits: 1 }],
    ['usage', { operation: 'chat', usage: [] }],
    ['usage.input', { operation: 'chat', usage: { input: '1' } }]
  ]
  for (const [field, input] of captures) {
    await t.rejects(credits.capture(id, input as PricedCaptureInput), { code: 'FST_CREDITS_INVALID', field }, JSON.stringify(input))
  }
  const noPrice = { code: 'FST_CREDITS_NO_PRICE', statusCode: 400, operation: 'image' }
  await t.rejects(credits.deduct({ ...chat(usage), operation: 'image' }), noPrice)
  await t.rejects(credits.capture(id, { operation: 'image', usage }), noPrice)
  t.match(await credits.balance('ann'), { used: 0, held: 10 })
}))

t.test('without prices nothing is charged by usage', onLedger(start, {}, async (t, { credits }) => {
  t.throws(() => credits.quote('chat', {}), { code: 'FST_CREDITS_NO_PRICE' })
  await t.rejects(credits.deduct(chat({})), { code: 'FST_CREDITS_NO_PRICE', message: 'There is no price for chat' })
}))

t.test('a capture by usage', onLedger(start, options, async (t, { credits, open }) => {
  const later = open(changed)
  const hold = await credits.hold({ userId: 'ann', credits: 10, operation: 'chat', metadata: { model: 'm' } })
  const operation = 'chat'
  for (const userId of [undefined, 'ann']) {
    const elsewhere = { userId, operation: 'video', usage: { clips: 1 } }
    await t.rejects(credits.capture(hold.id, elsewhere), { code: 'FST_CREDITS_INVALID', field: 'operation' })
  }
  const part = { operation, usage: { input: 1 }, final: false, idempotencyKey: 'part' }
  const first = await credits.capture(hold.id, part)
  t.match(first, { credits: 1, balance: { used: 1, held: 9 }, replayed: false })
  t.strictSame(await later.capture(hold.id, part), { ...first, replayed: true }, 'at the price of then')
  t.strictSame(await later.capture(hold.id, { ...part, userId: 'ann' }), { ...first, replayed: true }, 'with its account named')
  await t.rejects(credits.capture(hold.id, { ...part, usage: { input: 2 } }), { code: 'FST_CREDITS_IDEMPOTENCY_CONFLICT' })
  const rest = { operation, usage: { output: 3000 }, metadata: { words: 9 } }
  const second = await credits.capture(hold.id, rest)
  t.match(second, { credits: 12, uncollected: 0, balance: { used: 13, held: 0 } })
  t.strictSame(await later.capture(hold.id, rest), { ...second, replayed: true }, 'the capture that closed it')
  await t.rejects(later.capture(hold.id, { ...rest, usage: {} }), { code: 'FST_CREDITS_HOLD_CLOSED' })
  t.match((await credits.statement('ann')).entries.slice(2), [
    { kind: 'capture', amount: 0, metadata: { model: 'm' }, priceVersion: 'may', usage: { input: 1 } },
    { kind: 'capture', amount: -3, metadata: { model: 'm', words: 9 }, priceVersion: 'may', usage: { output: 3000 } }
  ])
}))

t.test('a shortfall counts in credits', onLedger(start, { ...options, allowance: 5 }, async (t, { credits }) => {
  const { id } = await credits.hold({ userId: 'ann', credits: 5, operation: 'chat' })
  const usage = { output: 2000 }
  await t.rejects(credits.capture(id, { operation: 'chat', usage, shortfall: 'reject' }), {
    code: 'FST_CREDITS_INSUFFICIENT', required: 8
  })
  t.match(await credits.capture(id, { operation: 'chat', usage }), { credits: 5, uncollected: 3 })
}))

t.test('priced and plain calls share a statement, each with its own verdict and record', async t => {
  const app = await buildGateway(t, options, { connectionString: await createLedgerDatabase(t) })
  const { credits } = app
  const userId = 'ann'
  const hold = () => credits.hold({ userId, credits: 10, operation: 'chat' })
  const [one, two, three] = [await hold(), await hold(), await hold()]
  const told = await Promise.allSettled([
    credits.deduct({ userId, credits: 7, operation: 'chat', idempotencyKey: 'plain' }),
    credits.deduct(chat({ input: 1 }, { idempotencyKey: 'priced' })),
    credits.deduct({ userId, credits: 8, operation: 'chat' }),
    credits.capture(one.id, { userId, operation: 'chat', usage: { input: 2000 } }),
    credits.capture(two.id, { userId, credits: 4 }),
    credits.capture(three.id, { userId, operation: 'video', usage: {} }),
    credits.deduct({ userId, operation: 'video', usage: { seconds: 2 } }),
    credits.deduct(chat({ output: 1_000_000 }))
  ])
  t.match(told.map(outcome => outcome.status === 'fulfilled' ? outcome.value.credits : outcome.reason), [
    7, 1, 8, 2, 4, { field: 'operation' }, 11, { code: 'FST_CREDITS_INSUFFICIENT', required: 4000 }
  ])
  const { entries } = await credits.statement(userId)
  t.strictSame(entries.slice(4).map(({ amount, kind, usage, priceVersion }) => [kind, amount, usage, priceVersion]), [
    ['deduct', -7, undefined, undefined],
    ['deduct', -1, { input: 1 }, 'may'],
    ['deduct', -8, undefined, undefined],
    ['capture', 8, { input: 2000 }, 'may'],
    ['capture', 6, undefined, undefined],
    ['deduct', -11, { seconds: 2 }, 'may']
  ])
  t.match(await credits.reconcile(), { ok: true })
})

t.test('an idempotency key stands for the quantities, whatever they cost since', onLedger(start, options,
  async (t, { credits, open }) => {
    const later = open(changed)
    const request = chat({ input: 1500, output: 1 }, { metadata: { a: 1 }, idempotencyKey: 'one' })
    const first = await credits.deduct(request)
    t.equal(first.credits, 2)
    const conflict = { code: 'FST_CREDITS_IDEMPOTENCY_CONFLICT' }
    // Alone, then with others in one statement, then with duplicates of itself.
    const alone: PricedDeductInput[] = []
    for (const others of [alone, [chat({ input: 1 })]]) {
      const [again] = await Promise.all([request, ...others].map(input => later.deduct(input)))
      t.strictSame(again, { ...first, replayed: true })
      for (const other of [
        { ...request, usage: { input: 1500 } }, { ...request, metadata: {} }, { ...request, operation: 'video', usage: {} as Usage },
        { userId: 'ann', operation: 'chat', credits: 2, metadata: { a: 1 }, idempotencyKey: 'one' }
      ]) {
        const outcomes = await Promise.allSettled([other, ...others].map(input => later.deduct(input)))
        t.match(outcomes[0], { status: 'rejected', reason: conflict })
      }
    }
    await credits.deduct({ userId: 'ann', credits: 2, operation: 'chat', idempotencyKey: 'plain' })
    await t.rejects(credits.deduct(chat({ input: 1500 }, { idempotencyKey: 'plain' })), conflict)
    const both = chat({ input: 1 }, { idempotencyKey: 'two' })
    const answers = await Promise.all(Array.from({ length: 20 }, (_, i) => (i % 2 ? credits : later).deduct(both)))
    t.equal(answers.filter(({ replayed }) => !replayed).length, 1)
    t.equal(new Set(answers.map(({ id, credits }) => `${id} ${credits}`)).size, 1)
  }))

t.test('what costs nothing succeeds and is on record', onLedger(start, options, async (t, { credits, pool }) => {
  const free = await credits.deduct(chat({}, { idempotencyKey: 'free' }))
  t.match(free, { credits: 0, balance: { available: 1000, used: 0 }, replayed: false })
  t.strictSame(await credits.deduct(chat({}, { idempotencyKey: 'free' })), { ...free, replayed: true })
  const { id } = await credits.hold({ userId: 'ann', credits: 10, operation: 'chat' })
  t.match(await credits.capture(id, { operation: 'chat', usage: { input: 0 } }), { credits: 0, uncollected: 0, balance: { held: 0 } })
  t.strictSame((await credits.statement('ann')).entries.slice(1).map(({ kind, amount, usage }) => [kind, amount + 0, usage]), [
    ['deduct', 0, {}], ['hold', -10, undefined], ['capture', 10, { input: 0 }]
  ])
  t.strictSame((await credits.history('ann')).entries, [], 'the history shows what was spent')
  await t.rejects(credits.refund({ usageId: free.id }), { code: 'FST_CREDITS_REFUND_EXCEEDS' })
  await pool.query("update ai_credits set total_credits = -5, opening_total = -5 where user_id = 'ann'")
  t.match(await credits.deduct(chat({})), { credits: 0, balance: { available: -5 } }, 'in debt too')
  const calls = [chat({}), chat({ input: 1 })].map(input => credits.deduct(input))
  t.match(await Promise.allSettled(calls), [{ value: { credits: 0 } }, { reason: { required: 1 } }])
  await pool.query("update ai_credits set total_credits = 1000, opening_total = 1000 where user_id = 'ann'")
}))

t.test('it is refunded as any other charge, and its refund has no quantities', onLedger(start, options,
  async (t, { credits }) => {
    const { id } = await credits.deduct(chat({ output: 2500 }, { idempotencyKey: 'one' }))
    t.match(await credits.refund({ userId: 'ann', deductKey: 'one', credits: 4 }), { credits: 4, usageId: id })
    t.match(await credits.refund({ usageId: id }), { credits: 6, balance: { used: 0 } })
    const { entries } = await credits.statement('ann')
    t.strictSame(entries.map(({ kind, usage, priceVersion }) => [kind, usage, priceVersion]), [
      ['opening', undefined, undefined], ['deduct', { output: 2500 }, 'may'],
      ['refund', undefined, undefined], ['refund', undefined, undefined]
    ])
  }))

t.test('it commits or rolls back with the host\'s transaction', onLedger(start, options, async (t, { credits, pool }) => {
  const client = await pool.connect()
  for (const end of ['rollback', 'commit']) {
    await client.query('begin')
    t.match(await credits.deduct({ ...chat({ output: 1000 }), client }), { credits: 4 })
    await client.query(end)
  }
  client.release()
  t.match(await credits.balance('ann'), { used: 4 })
}))

t.test('every charge of a random run can be computed again', onLedger(start, { allowance: 1_000_000 },
  async (t, { open, pool }) => {
    const books = new Map<string, Ledger>()
    await fc.assert(fc.asyncProperty(randomBooks, calls, async (book, calls) => {
      const ledger = open({ allowance: 1_000_000, prices: book })
      books.set(ledger.quote('chat', {}).version, ledger)
      await Promise.all(calls.map(async ({ userId, usage, held }) => {
        if (!held) return await ledger.deduct({ userId, operation: 'chat', usage })
        const { id } = await ledger.hold({ userId, credits: 1_000, operation: 'chat' })
        return await ledger.capture(id, { operation: 'chat', usage })
      }))
    }), { numRuns: 15 })
    const { rows } = await pool.query(`
      select credits_used::int as charged, operation, price_version, quantities from ai_credit_usage`)
    t.ok(rows.length > 15)
    const recomputed = rows.map(({ operation, price_version: version, quantities }) =>
      books.get(version)!.quote(operation, quantities).credits)
    t.strictSame(recomputed, rows.map(({ charged }) => charged))
  }))

const rate = fc.record({ credits: fc.nat(9), each: fc.integer({ min: 1, max: 9 }) })
const randomBooks = fc.record({ input: rate, output: rate }).map((per): Prices => ({ chat: { per } }))
const calls = fc.array(fc.record({
  userId: fc.constantFrom('ann', 'bob', 'eve'),
  usage: fc.record({ input: fc.nat(99), output: fc.nat(99) }, { requiredKeys: [] }),
  held: fc.boolean()
}), { minLength: 1, maxLength: 20 })

t.test('the statement route says it in snake_case', async t => {
  const app = await buildGateway(t, { ...options, management: { authorize: () => true } })
  await app.credits.deduct(chat({ input: 2500 }))
  const reply = await app.inject({ url: '/api/credits/statement', query: { user_id: 'ann' } })
  const [opening, deduct] = reply.json().entries
  t.match(deduct, { kind: 'deduct', amount: -3, price_version: 'may', usage: { input: 2500 } })
  t.notOk('usage' in opening || 'price_version' in opening)
})
