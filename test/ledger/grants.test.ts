import type { Test } from 'tap'
import type { Credits, GrantInput } from '../../src/index.js'
import { ledgerTest, start } from '../helper/clocked-ledger.js'

const missing = { statusCode: 404, code: 'FST_CREDITS_NOT_FOUND', message: 'There is no such grant' }
const closed = { statusCode: 409, code: 'FST_CREDITS_GRANT_CLOSED' }
const conflict = { statusCode: 409, code: 'FST_CREDITS_IDEMPOTENCY_CONFLICT' }

/** The instant at which the grants of these tests expire, and the last microsecond before. */
const expiry = '2030-01-01T01:00:00.000Z'
const beforeExpiry = '2030-01-01T00:59:59.999999Z'

const request = { userId: 'ann', credits: 50 }
const expiring = { ...request, expiresAt: expiry }
const nothing = { allowance: 0 }

async function has (t: Test, credits: Credits, expected: object) {
  t.strictSame(await credits.balance('ann'), expected)
}

async function spend (credits: Credits, amount: number, userId = 'ann') {
  return await credits.deduct({ userId, credits: amount, operation: 'chat' })
}

// -- grant

ledgerTest('a grant adds credits', async (t, { credits }) => {
  const grant = await credits.grant(request)
  t.match(grant.id, /^\d+$/)
  t.strictSame({ ...grant, id: '' }, {
    id: '',
    userId: 'ann',
    credits: 50,
    expiresAt: null,
    priority: 50,
    balance: { available: 150, total: 150, used: 0, held: 0 },
    replayed: false
  })
  await has(t, credits, grant.balance)
})

ledgerTest('a grant without userId is the default user\'s', async (t, { credits }) => {
  t.equal((await credits.grant({ credits: 1 })).userId, 'default_user')
  t.equal((await credits.balance()).total, 101)
})

ledgerTest('a grant answers its expiry and priority, and its reason is in the statement', async (t, { credits }) => {
  const { id, expiresAt, priority } = await credits.grant({
    ...request, expiresAt: '2030-06-01T02:00:00+02:00', priority: 0, reason: 'June pack'
  })
  t.strictSame({ expiresAt, priority }, { expiresAt: new Date('2030-06-01T00:00:00Z'), priority: 0 })
  t.match((await credits.statement('ann')).entries.at(-1), { kind: 'grant', id, amount: 50, reason: 'June pack' })
})

ledgerTest('an expiry is a Date or an ISO 8601 time, with the zone that it says', async (t, { credits, at }) => {
  await credits.grant({ ...request, expiresAt: new Date(expiry) })
  await credits.grant({ ...request, expiresAt: '2030-01-01T03:00:00+02:00' })
  await at(beforeExpiry)
  await has(t, credits, { available: 200, total: 200, used: 0, held: 0 })
  await at(expiry)
  await has(t, credits, { available: 100, total: 100, used: 0, held: 0 })
})

ledgerTest('a repeated grant is answered as the first one was, and grants once', async (t, { credits }) => {
  const keyed = { ...expiring, reason: 'June pack', priority: 10, idempotencyKey: 'k' }
  const first = await credits.grant(keyed)
  await spend(credits, 20)
  t.strictSame(await credits.grant({ ...keyed, expiresAt: new Date(expiry) }), { ...first, replayed: true })
  await has(t, credits, { available: 130, total: 150, used: 20, held: 0 })
})

ledgerTest('a repeated grant is answered the same when it is revoked or expired by then', async (t, { credits, at }) => {
  const ends = { revoked: (id: string) => credits.revoke(id), expired: () => at(expiry) }
  for (const [userId, end] of Object.entries(ends)) {
    const keyed = { ...expiring, userId, idempotencyKey: 'k' }
    const first = await credits.grant(keyed)
    await end(first.id)
    t.strictSame(await credits.grant(keyed), { ...first, replayed: true }, userId)
    t.equal((await credits.balance(userId)).total, 100)
  }
})

ledgerTest('the key of a grant with other content is a conflict', async (t, { credits }) => {
  const keyed = { ...expiring, reason: 'June pack', priority: 10, idempotencyKey: 'k' }
  await credits.grant(keyed)
  const others = [
    { credits: 51 }, { reason: 'May pack' }, { reason: undefined }, { priority: 11 }
  ]
  for (const other of others) {
    await t.rejects(credits.grant({ ...keyed, ...other } as GrantInput), conflict, JSON.stringify(other))
  }
  await has(t, credits, { available: 150, total: 150, used: 0, held: 0 })
})

// A grant of credits for 30 days expires at another instant with each repetition.
ledgerTest('the key of a grant with another time of expiry, or none, is a replay, with that of the first', async (t, { credits, at }) => {
  const keyed = { ...expiring, reason: 'June pack', priority: 10, idempotencyKey: 'k' }
  const first = await credits.grant(keyed)
  for (const expiresAt of ['2030-01-01T01:00:00.001Z', new Date('2030-06-01'), undefined]) {
    t.strictSame(await credits.grant({ ...keyed, expiresAt } as GrantInput), { ...first, replayed: true }, String(expiresAt))
  }
  t.strictSame(first.expiresAt, new Date(expiry))
  await has(t, credits, { available: 150, total: 150, used: 0, held: 0 })
  const forever = await credits.grant({ ...request, idempotencyKey: 'forever' })
  t.strictSame(await credits.grant({ ...expiring, idempotencyKey: 'forever' }), { ...forever, replayed: true })
  t.equal(forever.expiresAt, null)
  await at(expiry)
  await has(t, credits, { available: 150, total: 150, used: 0, held: 0 })
  t.strictSame(await credits.grant(keyed), { ...first, replayed: true }, 'once it has expired, too')
})

ledgerTest('the key of a grant is its account\'s, and no deduct\'s or hold\'s', async (t, { credits }) => {
  await credits.deduct({ userId: 'ann', credits: 1, operation: 'chat', idempotencyKey: 'k' })
  await credits.hold({ userId: 'ann', credits: 1, operation: 'chat', idempotencyKey: 'k' })
  for (const userId of ['ann', 'bob']) t.equal((await credits.grant({ ...request, userId, idempotencyKey: 'k' })).replayed, false)
})

ledgerTest('grants without a key are never taken for each other', async (t, { credits }) => {
  const ids = [await credits.grant(request), await credits.grant(request)].map(({ id }) => id)
  t.not(ids[0], ids[1])
  await has(t, credits, { available: 200, total: 200, used: 0, held: 0 })
})

ledgerTest('an expiry that is not in the future is refused', async (t, { credits, at }) => {
  for (const expiresAt of [start, new Date(start), '2029-12-31T23:59:59.999Z', '0001-01-01T00:00:00Z']) {
    await t.rejects(credits.grant({ ...request, expiresAt, idempotencyKey: 'k' }), {
      statusCode: 400, code: 'FST_CREDITS_INVALID', field: 'expiresAt'
    })
  }
  await has(t, credits, { available: 100, total: 100, used: 0, held: 0 })
  await credits.grant({ ...request, expiresAt: '2030-01-01T00:00:00.001Z', idempotencyKey: 'k' })
  await has(t, credits, { available: 150, total: 150, used: 0, held: 0 })
  await at('2030-01-01T00:00:00.001Z')
  await has(t, credits, { available: 100, total: 100, used: 0, held: 0 })
})

ledgerTest('a total beyond 2^53 - 1 is refused', async (t, { credits }) => {
  const most = Number.MAX_SAFE_INTEGER - 100
  await t.rejects(credits.grant({ ...request, credits: most + 1 }), {
    statusCode: 400, code: 'FST_CREDITS_INVALID', field: 'credits'
  })
  await has(t, credits, { available: 100, total: 100, used: 0, held: 0 })
  await credits.grant({ ...request, credits: most })
  await t.rejects(credits.grant({ ...request, credits: 1 }), { code: 'FST_CREDITS_INVALID', field: 'credits' })
  const { MAX_SAFE_INTEGER: total } = Number
  await has(t, credits, { available: total, total, used: 0, held: 0 })
})

ledgerTest('so is an overdraft that goes beyond it with the total, and a total that does with the overdraft', async (t, { credits }) => {
  const most = Number.MAX_SAFE_INTEGER - 100
  const refused = { statusCode: 400, code: 'FST_CREDITS_INVALID', field: 'credits' }
  await t.rejects(credits.setOverdraft('ann', most + 1), refused)
  await t.rejects(credits.deduct({ userId: 'ann', credits: 101, operation: 'chat' }), { code: 'FST_CREDITS_INSUFFICIENT' }, 'it was not set')
  t.strictSame(await credits.setOverdraft('ann', most), {
    userId: 'ann', overdraft: most, balance: { available: 100, total: 100, used: 0, held: 0 }
  })
  await t.rejects(credits.grant({ ...request, credits: 1 }), refused)
  await credits.setOverdraft('ann', most - 1)
  await credits.grant({ ...request, credits: 1 })
  await credits.deduct({ userId: 'ann', credits: Number.MAX_SAFE_INTEGER, operation: 'chat' })
  await has(t, credits, { available: 101 - Number.MAX_SAFE_INTEGER, total: 101, used: Number.MAX_SAFE_INTEGER, held: 0 })
})

// -- burn order

const grantsInOrder: GrantInput[] = [
  { credits: 10, priority: 0 },
  { credits: 10, priority: 50, expiresAt: '2031-01-01T00:00:00Z' },
  { credits: 10, priority: 50, expiresAt: '2032-01-01T00:00:00Z' },
  { credits: 10, priority: 50, reason: 'older' },
  { credits: 10, priority: 50, reason: 'younger' },
  { credits: 10, priority: 100, expiresAt: '2031-01-01T00:00:00Z' }
]
// Of the grants that are alike, the older must burn first. All others are given out of their burn order.
const orderOfGranting = [5, 3, 2, 4, 0, 1]

ledgerTest('grants burn by priority, then expiry, then age, and a one-off allowance last', async (t, { credits }) => {
  for (let spent = 0; spent <= grantsInOrder.length; spent++) {
    const userId = `user ${spent}`
    const ids: string[] = []
    for (const index of orderOfGranting) ids[index] = (await credits.grant({ ...grantsInOrder[index]!, userId })).id
    await spend(credits, 10 * spent + 4, userId)
    const left = []
    for (const id of ids) left.push((await credits.revoke(id)).credits)
    left.push((await credits.balance(userId)).available)
    t.strictSame(left, [...grantsInOrder.map(() => 10), 10].fill(0, 0, spent).fill(6, spent, spent + 1), `${spent} grants spent`)
  }
}, { allowance: 10 })

ledgerTest('what was spent before a grant is not laid on it', async (t, { credits, at }) => {
  await spend(credits, 30)
  await credits.grant({ ...expiring, priority: 0 })
  await at(expiry)
  await has(t, credits, { available: 70, total: 100, used: 30, held: 0 })
})

// -- expiry

ledgerTest('a grant expires exactly at its instant, without anyone running anything', async (t, { credits, at }) => {
  await credits.grant(expiring)
  await at(beforeExpiry)
  await has(t, credits, { available: 150, total: 150, used: 0, held: 0 })
  await at(expiry)
  await has(t, credits, { available: 100, total: 100, used: 0, held: 0 })
})

ledgerTest('the last instant of a grant still spends it, the next one does not', async (t, { credits, at }) => {
  await credits.grant(expiring)
  await credits.grant({ ...expiring, userId: 'bob' })
  await at(beforeExpiry)
  await spend(credits, 150)
  await at(expiry)
  await t.rejects(spend(credits, 150, 'bob'), { code: 'FST_CREDITS_INSUFFICIENT', credits: { available: 100 } })
  await has(t, credits, { available: 0, total: 150, used: 150, held: 0 })
})

ledgerTest('when a grant expires, only its unspent rest leaves the total', async (t, { credits, at }) => {
  await credits.grant(expiring)
  await spend(credits, 20)
  await at(expiry)
  await has(t, credits, { available: 100, total: 120, used: 20, held: 0 })
})

ledgerTest('a grant that is spent leaves nothing to expire', async (t, { credits, at }) => {
  await credits.grant(expiring)
  await spend(credits, 70)
  await at(expiry)
  await has(t, credits, { available: 80, total: 150, used: 70, held: 0 })
})

ledgerTest('grants expire each at its own instant, also when nobody looks between', async (t, { credits, at }) => {
  const { id: first } = await credits.grant({ ...request, credits: 10, expiresAt: '2030-01-02T00:00:00Z' })
  const { id: second } = await credits.grant({ ...request, credits: 20, expiresAt: '2030-01-03T00:00:00Z' })
  const { id: third } = await credits.grant({ ...request, credits: 30, expiresAt: '2030-01-03T00:00:00Z', priority: 60 })
  await at('2030-02-01T00:00:00Z')
  const { entries } = await credits.statement('ann')
  t.strictSame(entries.slice(-3).map(({ kind, at, amount, referenceId, balance }) => [kind, at.toISOString(), amount, referenceId, balance.total]), [
    ['expiry', '2030-01-02T00:00:00.000Z', -10, first, 150],
    ['expiry', '2030-01-03T00:00:00.000Z', -20, second, 130],
    ['expiry', '2030-01-03T00:00:00.000Z', -30, third, 100]
  ])
})

// -- revoke

ledgerTest('revoking a grant takes back what is unspent of it', async (t, { credits }) => {
  const { id } = await credits.grant(request)
  await spend(credits, 20)
  t.strictSame(await credits.revoke(id), {
    id, userId: 'ann', credits: 30, balance: { available: 100, total: 120, used: 20, held: 0 }, replayed: false
  })
  await has(t, credits, { available: 100, total: 120, used: 20, held: 0 })
})

ledgerTest('revoking a spent grant takes nothing', async (t, { credits }) => {
  const { id } = await credits.grant(request)
  await spend(credits, 60)
  t.strictSame((await credits.revoke(id)).credits, 0)
  await has(t, credits, { available: 90, total: 150, used: 60, held: 0 })
})

ledgerTest('repeating a revoke answers it again, also after the grant would have expired', async (t, { credits, at }) => {
  const { id } = await credits.grant(expiring)
  const first = await credits.revoke(id)
  await spend(credits, 20)
  t.strictSame(await credits.revoke(id), { ...first, replayed: true })
  await at(expiry)
  t.strictSame(await credits.revoke(id), { ...first, replayed: true })
  await has(t, credits, { available: 80, total: 100, used: 20, held: 0 })
})

ledgerTest('an expired grant cannot be revoked', async (t, { credits, at }) => {
  const { id } = await credits.grant(expiring)
  await at(expiry)
  await t.rejects(credits.revoke(id), closed)
  await has(t, credits, { available: 100, total: 100, used: 0, held: 0 })
})

ledgerTest('a grant can be revoked up to its last instant', async (t, { credits, at }) => {
  const { id } = await credits.grant(expiring)
  await at(beforeExpiry)
  t.equal((await credits.revoke(id)).credits, 50)
})

ledgerTest('an open hold keeps what it holds of a revoked grant', async (t, { credits }) => {
  const { id } = await credits.grant(request)
  const hold = { userId: 'ann', credits: 20, operation: 'chat' }
  const [captured, released] = [await credits.hold(hold), await credits.hold(hold)]
  t.match(await credits.revoke(id), { credits: 10, balance: { available: 100, total: 140, used: 0, held: 40 } })
  await credits.capture(captured.id)
  await has(t, credits, { available: 100, total: 140, used: 20, held: 20 })
  await credits.release(released.id)
  await has(t, credits, { available: 100, total: 120, used: 20, held: 0 })
})

ledgerTest('an id of no grant is not found', async (t, { credits }) => {
  const { id } = await credits.grant(request)
  for (const unknown of [`${Number(id) + 1}`, '0', '-1', '', 'x', '1.0', ` ${id}`, '9'.repeat(30)]) {
    await t.rejects(credits.revoke(unknown), missing, JSON.stringify(unknown))
  }
})

ledgerTest('the id of another account\'s grant is not found', async (t, { credits }) => {
  const { id } = await credits.grant(request)
  await t.rejects(credits.revoke(id, { userId: 'bob' }), missing)
  await has(t, credits, { available: 150, total: 150, used: 0, held: 0 })
  t.equal((await credits.revoke(id, { userId: 'ann' })).credits, 50)
})

ledgerTest('an allowance is no grant that can be revoked', async (t, { pool, credits }) => {
  await credits.grant(request)
  const { rows } = await pool.query("select id from ai_credit_grants where kind = 'allowance'")
  t.equal(rows.length, 1)
  await t.rejects(credits.revoke(rows[0].id), missing)
  await has(t, credits, { available: 150, total: 150, used: 0, held: 0 })
})

// -- debt

ledgerTest('debt is paid by the next grant', async (t, { credits, at }) => {
  await credits.setOverdraft('ann', 30)
  await spend(credits, 130)
  await has(t, credits, { available: -30, total: 100, used: 130, held: 0 })
  t.strictSame((await credits.grant(expiring)).balance, { available: 20, total: 150, used: 130, held: 0 })
  await at(expiry)
  await has(t, credits, { available: 0, total: 130, used: 130, held: 0 })
})

ledgerTest('what a grant has paid of debt is not taken back by revoking it', async (t, { credits }) => {
  await credits.setOverdraft('ann', 30)
  await spend(credits, 130)
  const { id } = await credits.grant(request)
  t.equal((await credits.revoke(id)).credits, 20)
  await has(t, credits, { available: 0, total: 130, used: 130, held: 0 })
})

ledgerTest('debt larger than a grant is paid by the next ones', async (t, { credits }) => {
  await credits.setOverdraft('ann', 80)
  await spend(credits, 180)
  const [first, second] = [await credits.grant(request), await credits.grant(request)]
  await has(t, credits, { available: 20, total: 200, used: 180, held: 0 })
  t.equal((await credits.revoke(first.id)).credits, 0)
  t.equal((await credits.revoke(second.id)).credits, 20)
})

ledgerTest('an account never goes further below zero than its overdraft', async (t, { credits }) => {
  await t.rejects(spend(credits, 101), { code: 'FST_CREDITS_INSUFFICIENT' })
  t.strictSame(await credits.setOverdraft('ann', 30), {
    userId: 'ann', overdraft: 30, balance: { available: 100, total: 100, used: 0, held: 0 }
  })
  await t.rejects(spend(credits, 131), { code: 'FST_CREDITS_INSUFFICIENT' })
  await spend(credits, 130)
  await credits.setOverdraft('ann', 0)
  await t.rejects(spend(credits, 1), { code: 'FST_CREDITS_INSUFFICIENT', credits: { available: -30 } })
})

// -- the host's own transaction

ledgerTest('grant, revoke and setOverdraft commit with the host\'s writes', async (t, { credits, transaction }) => {
  const { id } = await transaction('commit', client => credits.grant({ ...request, client }))
  await has(t, credits, { available: 150, total: 150, used: 0, held: 0 })
  await transaction('commit', client => credits.revoke(id, { client }))
  await has(t, credits, { available: 100, total: 100, used: 0, held: 0 })
  await transaction('commit', client => credits.setOverdraft('ann', 1, { client }))
  await spend(credits, 101)
})

ledgerTest('grant, revoke and setOverdraft go with the host\'s rollback', async (t, { credits, transaction }) => {
  await transaction('rollback', client => credits.grant({ ...request, idempotencyKey: 'k', client }))
  const { id, replayed } = await credits.grant({ ...request, idempotencyKey: 'k' })
  t.equal(replayed, false)
  await transaction('rollback', client => credits.revoke(id, { client }))
  await transaction('rollback', client => credits.setOverdraft('ann', 1, { client }))
  await has(t, credits, { available: 150, total: 150, used: 0, held: 0 })
  t.match(await credits.revoke(id), { credits: 50, replayed: false })
  await t.rejects(spend(credits, 101), { code: 'FST_CREDITS_INSUFFICIENT' })
})

ledgerTest('a refusal leaves the host\'s transaction usable', async (t, { credits, transaction }) => {
  await transaction('commit', async client => {
    await t.rejects(credits.grant({ ...request, expiresAt: start, client }), { code: 'FST_CREDITS_INVALID' })
    await t.rejects(credits.revoke('999', { client }), missing)
    await credits.grant({ ...request, client })
  })
  await has(t, credits, { available: 50, total: 50, used: 0, held: 0 })
}, nothing)
