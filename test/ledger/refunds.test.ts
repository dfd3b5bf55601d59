import type { Test } from 'tap'
import type { Credits, RefundInput } from '../../src/index.js'
import { ledgerTest } from '../helper/clocked-ledger.js'

const missing = { statusCode: 404, code: 'FST_CREDITS_NOT_FOUND', message: 'There is no such usage record' }
const exceeds = { statusCode: 409, code: 'FST_CREDITS_REFUND_EXCEEDS' }
const conflict = { statusCode: 409, code: 'FST_CREDITS_IDEMPOTENCY_CONFLICT' }
const insufficient = { code: 'FST_CREDITS_INSUFFICIENT' }
const nothing = { allowance: 0 }

/** The instant at which the grants of these tests expire. */
const expiry = '2030-01-01T01:00:00.000Z'

async function has (t: Test, credits: Credits, expected: object) {
  t.strictSame(await credits.balance('ann'), expected)
}

async function spend (credits: Credits, amount: number, more: object = {}) {
  return await credits.deduct({ userId: 'ann', credits: amount, operation: 'chat', ...more })
}

// -- what is refunded

ledgerTest('a refund by usage id gives back the whole record', async (t, { credits }) => {
  const { id: usageId } = await spend(credits, 40)
  const refund = await credits.refund({ usageId })
  t.match(refund.id, /^\d+$/)
  t.not(refund.id, usageId)
  t.strictSame({ ...refund, id: '' }, {
    id: '',
    usageId,
    userId: 'ann',
    credits: 40,
    balance: { available: 100, total: 100, used: 0, held: 0 },
    replayed: false
  })
  await has(t, credits, refund.balance)
})

ledgerTest('a refund by the key of a deduct gives it back', async (t, { credits }) => {
  const { id } = await spend(credits, 40, { idempotencyKey: 'video 7' })
  t.match(await credits.refund({ userId: 'ann', deductKey: 'video 7' }), { usageId: id, userId: 'ann', credits: 40 })
  await has(t, credits, { available: 100, total: 100, used: 0, held: 0 })
})

ledgerTest('the key of a deduct without userId is the default user\'s', async (t, { credits }) => {
  await spend(credits, 40, { idempotencyKey: 'k' })
  await t.rejects(credits.refund({ deductKey: 'k' }), missing)
  await spend(credits, 30, { userId: undefined, idempotencyKey: 'k' })
  t.match(await credits.refund({ deductKey: 'k' }), { userId: 'default_user', credits: 30 })
})

ledgerTest('a refund gives back parts, up to the amount', async (t, { credits }) => {
  const { id: usageId } = await spend(credits, 40)
  t.match(await credits.refund({ usageId, credits: 15 }), { credits: 15, balance: { available: 75, total: 100, used: 25, held: 0 } })
  t.match(await credits.refund({ usageId, credits: 15 }), { credits: 15, balance: { available: 90, used: 10 } })
  await t.rejects(credits.refund({ usageId, credits: 11 }), exceeds)
  t.match(await credits.refund({ usageId, credits: 10 }), { credits: 10, balance: { available: 100, used: 0 } })
  for (const more of [{ credits: 1 }, {}]) await t.rejects(credits.refund({ usageId, ...more }), exceeds)
  await has(t, credits, { available: 100, total: 100, used: 0, held: 0 })
})

ledgerTest('a refund without credits gives back what is left of the record', async (t, { credits }) => {
  const { id: usageId } = await spend(credits, 40)
  await credits.refund({ usageId, credits: 15 })
  t.equal((await credits.refund({ usageId })).credits, 25)
})

ledgerTest('a refund of more than the record is refused, though more was spent', async (t, { credits }) => {
  const { id: usageId } = await spend(credits, 40)
  await spend(credits, 40)
  for (const more of [41, Number.MAX_SAFE_INTEGER]) await t.rejects(credits.refund({ usageId, credits: more }), exceeds)
  await has(t, credits, { available: 20, total: 100, used: 80, held: 0 })
})

ledgerTest('captures are refunded each by itself', async (t, { credits }) => {
  const { id } = await credits.hold({ userId: 'ann', credits: 40, operation: 'chat' })
  const part = await credits.capture(id, { credits: 10, final: false })
  const last = await credits.capture(id, { credits: 20 })
  await t.rejects(credits.refund({ usageId: part.id, credits: 11 }), exceeds)
  t.match(await credits.refund({ usageId: part.id }), { credits: 10, balance: { available: 80, total: 100, used: 20, held: 0 } })
  t.match(await credits.refund({ usageId: last.id }), { credits: 20, balance: { available: 100, total: 100, used: 0, held: 0 } })
})

ledgerTest('a capture that collected nothing has nothing to give back', async (t, { credits, at }) => {
  const { id } = await credits.hold({ userId: 'ann', credits: 40, operation: 'chat' })
  await at('2030-01-01T00:15:00Z')
  await spend(credits, 100)
  const capture = await credits.capture(id)
  await t.rejects(credits.refund({ usageId: capture.id }), exceeds)
})

ledgerTest('the key of a capture, hold, grant or refund is no deduct\'s', async (t, { credits }) => {
  const keyed = { userId: 'ann', credits: 10, operation: 'chat', idempotencyKey: 'k' }
  const { id } = await credits.hold(keyed)
  const capture = await credits.capture(id, { idempotencyKey: 'k' })
  await credits.grant({ userId: 'ann', credits: 10, idempotencyKey: 'k' })
  await credits.refund({ usageId: capture.id, idempotencyKey: 'k' })
  await t.rejects(credits.refund({ userId: 'ann', deductKey: 'k' }), missing)
})

ledgerTest('a refund is no usage that can be refunded', async (t, { credits }) => {
  const { id: usageId } = await spend(credits, 40)
  const { id } = await credits.refund({ usageId })
  await t.rejects(credits.refund({ usageId: id }), missing)
  await has(t, credits, { available: 100, total: 100, used: 0, held: 0 })
})

ledgerTest('an id or key of no usage record is not found', async (t, { credits }) => {
  const { id } = await spend(credits, 40, { idempotencyKey: 'k' })
  for (const usageId of [`${Number(id) + 1}`, '0', '-1', '', 'x', '1.0', ` ${id}`, '9'.repeat(30)]) {
    await t.rejects(credits.refund({ usageId }), missing, JSON.stringify(usageId))
  }
  for (const deductKey of ['K', 'k ', id]) await t.rejects(credits.refund({ userId: 'ann', deductKey }), missing, deductKey)
})

ledgerTest('the usage record or key of another account is not found', async (t, { credits }) => {
  const { id: usageId } = await spend(credits, 40, { idempotencyKey: 'k' })
  await t.rejects(credits.refund({ userId: 'bob', usageId }), missing)
  await t.rejects(credits.refund({ userId: 'bob', deductKey: 'k' }), missing)
  await has(t, credits, { available: 60, total: 100, used: 40, held: 0 })
  t.equal((await credits.refund({ userId: 'ann', usageId })).userId, 'ann')
})

// -- keys of refunds

ledgerTest('a repeated refund is answered as the first one was, and refunds once', async (t, { credits }) => {
  const { id: usageId } = await spend(credits, 40, { idempotencyKey: 'k' })
  const keyed: RefundInput[] = [
    { usageId, credits: 15, reason: 'failed', idempotencyKey: 'part' }, { userId: 'ann', deductKey: 'k', idempotencyKey: 'rest' }
  ]
  const first = []
  for (const input of keyed) first.push(await credits.refund(input))
  await spend(credits, 1)
  for (const [index, input] of keyed.entries()) t.strictSame(await credits.refund(input), { ...first[index], replayed: true })
  await has(t, credits, { available: 99, total: 100, used: 1, held: 0 })
})

ledgerTest('the key of a refund with other content is a conflict', async (t, { credits }) => {
  const { id: usageId } = await spend(credits, 40)
  const { id: other } = await spend(credits, 40)
  const keyed = { usageId, credits: 15, reason: 'failed', idempotencyKey: 'k' }
  await credits.refund(keyed)
  for (const difference of [{ usageId: other }, { credits: 16 }, { reason: 'late' }, { reason: undefined }, { credits: undefined }]) {
    await t.rejects(credits.refund({ ...keyed, ...difference } as RefundInput), conflict, JSON.stringify(difference))
  }
  await has(t, credits, { available: 35, total: 100, used: 65, held: 0 })
})

ledgerTest('the key of a refund is its account\'s, and no deduct\'s', async (t, { credits }) => {
  for (const userId of ['ann', 'bob']) {
    const { id: usageId } = await spend(credits, 40, { userId, idempotencyKey: 'k' })
    t.match(await credits.refund({ usageId, idempotencyKey: 'k' }), { userId, replayed: false })
  }
})

ledgerTest('refunds without a key are never taken for each other', async (t, { credits }) => {
  const { id: usageId } = await spend(credits, 40)
  const refunds = [await credits.refund({ usageId, credits: 10 }), await credits.refund({ usageId, credits: 10 })]
  t.not(refunds[0]!.id, refunds[1]!.id)
  await has(t, credits, { available: 80, total: 100, used: 20, held: 0 })
})

ledgerTest('a refused refund is not remembered', async (t, { credits }) => {
  const { id: usageId } = await spend(credits, 40)
  await t.rejects(credits.refund({ usageId, credits: 41, idempotencyKey: 'k' }), exceeds)
  t.equal((await credits.refund({ usageId, credits: 40, idempotencyKey: 'k' })).replayed, false)
})

// -- the record

ledgerTest('a refund is a negative usage record that points at the original', async (t, { pool, credits, at }) => {
  const { id: usageId } = await spend(credits, 40, { metadata: { model: 'x' } })
  await at('2030-01-05T00:00:00Z')
  const { id } = await credits.refund({ usageId, credits: 15, reason: 'failed' })
  const { rows } = await pool.query(`
    select kind, user_id, credits_used, operation, metadata, refunded_id, reason, created_at from ai_credit_usage where id = $1`, [id])
  t.strictSame(rows, [{
    kind: 'refund',
    user_id: 'ann',
    credits_used: '-15',
    operation: 'chat',
    metadata: { model: 'x' },
    refunded_id: usageId,
    reason: 'failed',
    created_at: new Date('2030-01-05T00:00:00Z')
  }])
  t.match((await credits.statement('ann')).entries.at(-1), {
    kind: 'refund', id, referenceId: usageId, amount: 15, operation: 'chat', metadata: { model: 'x' }, reason: 'failed'
  })
})

ledgerTest('history nets out: a refunded entry is less by the refund, or gone', async (t, { credits }) => {
  const { id: usageId } = await spend(credits, 40, { metadata: { model: 'x' } })
  await spend(credits, 5)
  await credits.refund({ usageId, credits: 15 })
  t.strictSame((await credits.history('ann')).entries.map(({ used, metadata }) => ({ used, metadata })), [
    { used: 25, metadata: { model: 'x' } }, { used: 5, metadata: {} }
  ])
  await credits.refund({ usageId })
  t.strictSame((await credits.history('ann')).entries.map(({ used }) => used), [5])
})

ledgerTest('a refund on a later day is an entry of that day, and the pages of history go on after it', async (t, { credits, at }) => {
  const { id: usageId } = await spend(credits, 40)
  await at('2030-01-02T00:00:00Z')
  await credits.refund({ usageId, credits: 15 })
  const first = await credits.history('ann', { limit: 1 })
  t.match(first.entries, [{ date: '2030-01-02', used: -15 }])
  const second = await credits.history('ann', { limit: 1, cursor: first.cursor! })
  t.match(second.entries, [{ date: '2030-01-01', used: 40 }])
  t.equal(second.cursor, null)
})

// -- where the credits go

ledgerTest('a refund returns to the grants that burnt last, to each at most what it gave', async (t, { credits }) => {
  const first = await credits.grant({ userId: 'ann', credits: 10, priority: 1 })
  const second = await credits.grant({ userId: 'ann', credits: 10, priority: 2 })
  const { id: usageId } = await spend(credits, 25)
  await credits.refund({ usageId, credits: 8 }) // 5 to the allowance, 3 to the second
  t.equal((await credits.revoke(first.id)).credits, 0)
  t.equal((await credits.revoke(second.id)).credits, 3)
  await has(t, credits, { available: 100, total: 117, used: 17, held: 0 })
})

ledgerTest('of grants alike, a refund returns to the younger first, and to the later to expire', async (t, { credits }) => {
  const grants: string[] = []
  for (const expiresAt of ['2031-01-01T00:00:00Z', '2032-01-01T00:00:00Z', '2032-01-01T00:00:00Z']) {
    grants.push((await credits.grant({ userId: 'ann', credits: 10, expiresAt })).id)
  }
  const { id: usageId } = await spend(credits, 30)
  await credits.refund({ usageId, credits: 14 })
  const left = []
  for (const id of grants) left.push((await credits.revoke(id)).credits)
  t.strictSame(left, [0, 4, 10])
}, nothing)

ledgerTest('what was given back to a grant expires with it', async (t, { credits, at }) => {
  await credits.grant({ userId: 'ann', credits: 50, expiresAt: expiry })
  const { id: usageId } = await spend(credits, 50)
  await credits.refund({ usageId, credits: 20 })
  await at(expiry)
  await has(t, credits, { available: 0, total: 30, used: 30, held: 0 })
}, nothing)

ledgerTest('what fits in no living grant becomes a grant of its own that does not expire', async (t, { credits, at }) => {
  await credits.grant({ userId: 'ann', credits: 50, expiresAt: expiry })
  const { id: usageId } = await spend(credits, 50)
  await at(expiry)
  t.strictSame((await credits.refund({ usageId, credits: 30 })).balance, { available: 30, total: 50, used: 20, held: 0 })
  await at('2130-01-01T00:00:00Z')
  await has(t, credits, { available: 30, total: 50, used: 20, held: 0 })
  await spend(credits, 30)
  await t.rejects(spend(credits, 1), insufficient)
}, nothing)

ledgerTest('a refund fills the living grants first, and only the rest becomes its own', async (t, { pool, credits, at }) => {
  await credits.grant({ userId: 'ann', credits: 50, expiresAt: expiry })
  const kept = await credits.grant({ userId: 'ann', credits: 20 })
  const { id: usageId } = await spend(credits, 70)
  await at(expiry)
  await credits.refund({ usageId })
  t.strictSame((await pool.query("select credits::integer, expires_at::text from ai_credit_grants where kind = 'refund'")).rows, [
    { credits: 50, expires_at: 'infinity' }
  ])
  t.equal((await credits.revoke(kept.id)).credits, 20)
  await has(t, credits, { available: 50, total: 50, used: 0, held: 0 })
}, nothing)

ledgerTest('a refund of what a revoked grant gave becomes its own', async (t, { credits }) => {
  const { id } = await credits.grant({ userId: 'ann', credits: 50 })
  const { id: usageId } = await spend(credits, 20)
  await credits.revoke(id)
  await credits.refund({ usageId })
  await has(t, credits, { available: 20, total: 20, used: 0, held: 0 })
}, nothing)

ledgerTest('a refund of what a hold kept of an expired grant becomes its own', async (t, { credits, at }) => {
  await credits.grant({ userId: 'ann', credits: 50, expiresAt: expiry })
  const { id } = await credits.hold({ userId: 'ann', credits: 30, operation: 'chat', ttl: 86_400_000 })
  await at(expiry)
  const { id: usageId } = await credits.capture(id)
  await credits.refund({ usageId, credits: 10 })
  await has(t, credits, { available: 10, total: 30, used: 20, held: 0 })
  await spend(credits, 10)
}, nothing)

ledgerTest('a refund pays debt first', async (t, { credits }) => {
  await credits.setOverdraft('ann', 50)
  await spend(credits, 90)
  const { id: usageId } = await spend(credits, 30)
  await credits.refund({ usageId, credits: 15 })
  await has(t, credits, { available: -5, total: 100, used: 105, held: 0 })
  const { id } = await credits.grant({ userId: 'ann', credits: 20, priority: 0 })
  t.equal((await credits.revoke(id)).credits, 15, 'the grant had 5 of debt left to pay')
  await has(t, credits, { available: 0, total: 105, used: 105, held: 0 })
})

ledgerTest('what a refund has beyond the debt returns to the grants, and no more', async (t, { credits, at }) => {
  await credits.setOverdraft('ann', 50)
  await credits.grant({ userId: 'ann', credits: 40, expiresAt: expiry })
  const { id: usageId } = await spend(credits, 60)
  await credits.refund({ usageId })
  await has(t, credits, { available: 40, total: 40, used: 0, held: 0 })
  await at(expiry)
  await has(t, credits, { available: 0, total: 0, used: 0, held: 0 })
}, nothing)

ledgerTest('a refund of what was spent in an earlier period adds to the total', async (t, { credits, at }) => {
  const { id: usageId } = await spend(credits, 40)
  await at('2030-01-02T00:00:00Z')
  await spend(credits, 10)
  t.strictSame((await credits.refund({ usageId })).balance, { available: 130, total: 130, used: 0, held: 0 })
}, { allowance: { credits: 100, every: 'day' } })

ledgerTest('a refund that would take the total beyond 2^53 - 1 is refused', async (t, { credits, at }) => {
  const { id: usageId } = await spend(credits, 40)
  await at('2030-01-02T00:00:00Z')
  await t.rejects(credits.refund({ usageId }), { statusCode: 400, code: 'FST_CREDITS_INVALID', field: 'credits' })
  await has(t, credits, { available: Number.MAX_SAFE_INTEGER, total: Number.MAX_SAFE_INTEGER, used: 0, held: 0 })
}, { allowance: { credits: Number.MAX_SAFE_INTEGER, every: 'day' } })

// -- the host's own transaction

ledgerTest('a refund commits with the host\'s writes', async (t, { credits, transaction }) => {
  const usageId = await transaction('commit', async client => {
    const { id: usageId } = await spend(credits, 40, { client })
    await t.rejects(credits.refund({ usageId, credits: 41, client }), exceeds)
    await credits.refund({ usageId, credits: 15, client })
    return usageId
  })
  await has(t, credits, { available: 75, total: 100, used: 25, held: 0 })
  t.equal((await credits.refund({ usageId })).credits, 25)
})

ledgerTest('a refund goes with the host\'s rollback', async (t, { credits, transaction }) => {
  const { id: usageId } = await spend(credits, 40)
  await transaction('rollback', client => credits.refund({ usageId, idempotencyKey: 'k', client }))
  await has(t, credits, { available: 60, total: 100, used: 40, held: 0 })
  t.equal((await credits.refund({ usageId, idempotencyKey: 'k' })).replayed, false)
})
