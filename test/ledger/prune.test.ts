import t, { type Test } from 'tap'
import type { Credits, Statement } from '../../src/index.js'
import { buildGateway } from '../helper/app.js'
import { citus } from '../helper/citus.js'
import { onLedger, type ClockedLedger } from '../helper/clocked-ledger.js'
import { sumUp } from '../helper/sum-up.js'

const january = '2030-01-01T00:00:00.000Z'
const february = '2030-02-01T00:00:00.000Z'
const march = '2030-03-01T00:00:00.000Z'
const before = '2030-01-15T00:00:00Z'

const charge = { userId: 'ann', credits: 7, operation: 'chat' }
const missing = { statusCode: 404, code: 'FST_CREDITS_NOT_FOUND' }

// Declares a test with an allowance of 1000. It begins in January, when the accounts make the records that are pruned later.
function pruneTest (name: string, body: (t: Test, ledger: ClockedLedger) => Promise<void>) {
  t.test(name, onLedger(january, { allowance: 1000 }, body))
}

pruneTest('records from before the time go; balances, daily usage and what reconcile checks stay', async (t, { credits, pool, at }) => {
  for (const metadata of [{}, { words: 3 }, {}]) await credits.deduct({ ...charge, metadata })
  await at(before)
  await credits.deduct(charge)
  await at(february)
  await credits.deduct({ ...charge, credits: 5 })
  const [balance, history, statement] = await everything(credits)

  t.strictSame(await credits.prune({ before }), { accounts: 1, records: 3 })
  t.strictSame(await credits.balance('ann'), balance)
  t.strictSame(await credits.history('ann', { days: 60 }), history)
  t.match(await credits.reconcile(), { ok: true, differences: [] })
  t.strictSame(await rows(pool, 'select seq::int from ai_credit_usage order by seq'), [{ seq: 4 }, { seq: 5 }])
  t.strictSame((await credits.statement('ann')).entries, [opening(statement, 3), ...statement.entries.slice(4)])

  t.strictSame(await credits.prune({ before }), { accounts: 1, records: 0 }, 'a second time')
  t.strictSame(await credits.prune({ before: new Date(february) }), { accounts: 1, records: 1 })
  t.strictSame((await credits.statement('ann')).entries, [opening(statement, 4), ...statement.entries.slice(5)])
})

pruneTest('a statement opens with the balance after the last change that is gone', async (t, { credits, at }) => {
  await credits.grant({ userId: 'ann', credits: 500, expiresAt: '2030-01-10T00:00:00Z' })
  const { id } = await credits.hold({ ...charge, credits: 100 })
  await credits.capture(id, { credits: 30, final: false })
  await credits.release((await credits.hold({ ...charge, credits: 50 })).id)
  await credits.setAllowance('ann', { credits: 40, every: 'week' })
  await at(february)
  await credits.hold({ ...charge, credits: 3 })
  const statement = await credits.statement('ann')
  t.strictSame(statement.entries.map(({ kind }) => kind), [
    'opening', 'grant', 'hold', 'capture', 'hold', 'release', 'renewal', 'lapse', 'renewal', 'expiry', 'renewal', 'hold'])

  for (let seq = 1; seq <= 9; seq++) {
    const [, next] = statement.entries.slice(seq)
    await credits.prune({ before: later(next!.at, -1), batch: 1 })
    const kept = (await credits.statement('ann')).entries
    t.strictSame(kept, [opening(statement, kept[0]!.seq), ...statement.entries.slice(kept[0]!.seq + 1)], `up to ${seq}`)
  }
  t.match((await credits.statement('ann')).entries, [{ seq: 9 }, { seq: 10 }, { seq: 11 }])
  t.strictSame((await credits.statement('ann', { from: february })).entries, statement.entries.slice(11))
  t.strictSame((await credits.statement('ann', { cursor: '3' })).entries[0], opening(statement, 9), 'a cursor of before')
  t.strictSame((await credits.statement('ann', { cursor: '9' })).entries, statement.entries.slice(10))
})

pruneTest('a key is answered until its record is gone, and charged anew afterwards', async (t, { credits, at }) => {
  const keyed = { ...charge, idempotencyKey: 'k' }
  const first = await credits.deduct(keyed)
  await at(february)
  await credits.prune({ before: january })
  t.strictSame(await credits.deduct(keyed), { ...first, replayed: true })
  await credits.prune({ before })
  t.match(await credits.deduct({ ...keyed, credits: 8 }), { replayed: false, balance: { used: 15 } })
})

t.test('charges by usage go, too, and those that stay keep what they were computed from', onLedger(january,
  { allowance: 1000, prices: { chat: { per: { words: 2 } } }, priceVersion: 'may' }, async (t, { credits, at }) => {
    const priced = (words: number, idempotencyKey?: string) =>
      credits.deduct({ userId: 'ann', operation: 'chat', usage: { words }, idempotencyKey })
    await priced(0)
    await priced(5, 'k')
    const hold = await credits.hold({ ...charge, credits: 20 })
    await credits.capture(hold.id, { operation: 'chat', usage: { words: 3 } })
    await at(february)
    await priced(4)
    const statement = await credits.statement('ann')
    t.strictSame(await credits.prune({ before }), { accounts: 1, records: 3 })
    t.strictSame((await credits.statement('ann')).entries, [opening(statement, 4), statement.entries[5]])
    t.match(statement.entries[5], { priceVersion: 'may', usage: { words: 4 } })
    await t.rejects(credits.capture(hold.id, { operation: 'chat', usage: { words: 3 } }), missing)
    t.match(await priced(6, 'k'), { replayed: false, credits: 12, balance: { used: 36 } })
  }))

pruneTest('a record that is gone cannot be refunded', async (t, { credits, at }) => {
  const { id } = await credits.deduct({ ...charge, idempotencyKey: 'k' })
  await at(february)
  await credits.prune({ before })
  await t.rejects(credits.refund({ usageId: id }), missing)
  await t.rejects(credits.refund({ userId: 'ann', deductKey: 'k' }), missing)
})

pruneTest('a record stays with its refunds until all of them are old, and so does their limit', async (t, { credits, pool, at }) => {
  const { id: usageId } = await credits.deduct({ ...charge, credits: 100 })
  await credits.refund({ usageId, credits: 30, idempotencyKey: 'first' })
  await credits.deduct(charge)
  await at(february)
  const refund = { usageId, credits: 30, idempotencyKey: 'second' }
  const second = await credits.refund(refund)

  t.match(await credits.prune({ before }), { records: 1 })
  t.match(await credits.reconcile(), { ok: true })
  t.strictSame((await credits.statement('ann')).entries.map(({ seq }) => seq), [3, 4])
  t.strictSame(await credits.refund(refund), { ...second, replayed: true })
  t.match(await credits.refund({ ...refund, idempotencyKey: 'first' }), { replayed: true })
  await t.rejects(credits.refund({ usageId, credits: 41 }), { code: 'FST_CREDITS_REFUND_EXCEEDS' })
  await at(march)
  await credits.refund({ usageId, credits: 40 })

  t.match(await credits.prune({ before: '2030-02-15T00:00:00Z' }), { records: 0 })
  await at('2030-04-01T00:00:00Z')
  t.match(await credits.prune({ before: '2030-03-15T00:00:00Z', batch: 1 }), { records: 4 })
  t.strictSame(await rows(pool, 'select from ai_credit_usage'), [])
})

pruneTest('holds that were closed go with their captures and releases', async (t, { credits, pool, at }) => {
  const [captured, released, lapsed, late] = [1, 2, 3, 4].map(credits => ({ ...charge, credits, idempotencyKey: `${credits}` }))
  const ids = []
  for (const hold of [captured!, released!, lapsed!, late!]) ids.push((await credits.hold(hold)).id)
  await credits.capture(ids[0]!)
  await credits.release(ids[1]!)
  await at('2030-01-02T00:00:00Z')
  await credits.balance('ann') // two lapse
  await at(february)
  const capture = await credits.capture(ids[3]!)

  t.match(await credits.prune({ before }), { records: 1 })
  t.match(await credits.reconcile(), { ok: true })
  for (const id of ids.slice(0, 3)) {
    await t.rejects(credits.capture(id), missing)
    await t.rejects(credits.release(id), missing)
  }
  t.strictSame(await credits.capture(ids[3]!), { ...capture, replayed: true }, 'one that was captured since')
  t.match(await credits.hold(late!), { id: ids[3]!, replayed: true })
  t.match(await credits.hold(captured!), { replayed: false })
  await at(march)
  await credits.prune({ before: '2030-02-15T00:00:00Z' })
  t.strictSame(await rows(pool, 'select state from ai_credit_holds'), [{ state: 'open' }], 'only the newest')
  t.strictSame(await rows(pool, 'select 1 from ai_credit_usage union all select 1 from ai_credit_events'), [])
})

pruneTest('an open hold stays, with what answers its captures', async (t, { credits, pool, at }) => {
  const { id } = await credits.hold({ ...charge, credits: 90 })
  const part = { credits: 10, final: false, idempotencyKey: 'part' }
  const first = await credits.capture(id, part)
  await credits.capture(id, { credits: 5, final: false })
  for (let day = 1; day <= 20; day++) {
    await at(`2030-01-${String(day).padStart(2, '0')}T00:00:00Z`)
    await credits.extend(id, { ttl: 86_400_000 })
    await at(`2030-01-${String(day).padStart(2, '0')}T12:00:00Z`)
    await credits.extend(id, { ttl: 86_400_000 })
  }

  t.match(await credits.prune({ before }), { records: 1 }, 'the part without a key')
  t.match(await credits.reconcile(), { ok: true })
  t.strictSame(await credits.capture(id, part), { ...first, replayed: true })
  t.match(await credits.capture(id, { idempotencyKey: 'rest' }), { credits: 75, replayed: false })
  await at(february)
  t.match(await credits.prune({ before: '2030-01-21T00:00:00Z' }), { records: 2 })
  t.strictSame(await rows(pool, 'select 1 from ai_credit_holds union all select 1 from ai_credit_usage'), [])
})

pruneTest('a capture that was refunded since stays, though its hold goes', async (t, { credits, pool, at }) => {
  const { id } = await credits.hold({ ...charge, credits: 90 })
  const { id: usageId } = await credits.capture(id, { idempotencyKey: 'k' })
  await at(february)
  await credits.refund({ usageId, credits: 50 })
  t.match(await credits.prune({ before }), { records: 0 })
  await t.rejects(credits.capture(id, { idempotencyKey: 'k' }), missing)
  await t.rejects(credits.refund({ usageId, credits: 41 }), { code: 'FST_CREDITS_REFUND_EXCEEDS' })
  await at(march)
  t.match(await credits.prune({ before: '2030-02-15T00:00:00Z' }), { records: 2 })
  t.strictSame(await rows(pool, 'select from ai_credit_usage'), [])
})

pruneTest('grants stay, and so do the keys of purchases', async (t, { credits, at }) => {
  const purchase = { userId: 'ann', credits: 50, idempotencyKey: 'payment 1' }
  const living = await credits.grant(purchase)
  const expiring = { ...purchase, expiresAt: '2030-01-02T00:00:00Z', idempotencyKey: 'payment 2' }
  const expired = await credits.grant(expiring)
  const { id } = await credits.grant({ userId: 'ann', credits: 20 })
  const revocation = await credits.revoke(id)
  await credits.deduct({ ...charge, credits: 60 })
  await at(february)
  await credits.balance('ann')
  await credits.prune({ before })

  t.strictSame((await credits.statement('ann')).entries, [{
    seq: 6, kind: 'opening', at: new Date('2030-01-02T00:00:00Z'), amount: 1040, balance: await credits.balance('ann')
  }])
  t.strictSame(await credits.grant(purchase), { ...living, replayed: true })
  t.strictSame(await credits.grant(expiring), { ...expired, replayed: true })
  t.strictSame(await credits.revoke(id), { ...revocation, replayed: true })
  t.match(await credits.revoke(living.id), { replayed: false, credits: 40 })
})

pruneTest('in batches of any size, of any number of accounts, and from anywhere on', async (t, { credits, pool, at }) => {
  const users = ['a', 'b', 'Z', 'ä', '🙂']
  for (const [index, userId] of users.entries()) {
    for (let record = 0; record <= index; record++) await credits.deduct({ ...charge, userId })
  }
  await credits.balance('new')
  await at(february)
  await credits.deduct({ ...charge, userId: 'late' })
  const copies = await rows(pool, 'select * from ai_credit_usage')
  t.equal(copies.length, 16)

  const progress: Array<{ accounts: number, records: number }> = []
  await t.rejects(credits.prune({
    before,
    batch: 4,
    onProgress: async step => {
      await Promise.resolve()
      progress.push(step)
      if (progress.length === 2) throw new Error('enough')
    }
  }), { message: 'enough' })
  t.strictSame(progress.map(({ records }) => records), [4, 8])
  t.match(await credits.reconcile(), { ok: true })
  t.strictSame(await credits.prune({ before, batch: 2, onProgress: step => { progress.push(step) } }), { accounts: 7, records: 7 })
  t.strictSame(progress.at(-1), { accounts: 7, records: 7 })
  t.ok(progress.slice(2).every(({ records }, index, all) => records <= 2 * (index + 1) && records <= all.at(-1)!.records))
  t.strictSame(await rows(pool, 'select user_id from ai_credit_usage'), [{ user_id: 'late' }])
})

pruneTest('more accounts than one statement looks at', async (t, { credits, pool, at }) => {
  await credits.deduct({ ...charge, userId: 'user 2500' })
  await pool.query("insert into ai_credits (user_id) select 'user ' || n from generate_series(1, 2499) n")
  await at(february)
  const progress: number[] = []
  t.strictSame(await credits.prune({ before, onProgress: ({ accounts }) => { progress.push(accounts) } }),
    { accounts: 2500, records: 1 })
  if (citus === undefined) t.strictSame(progress, [1000, 2000, 2500]) // on a cluster, those of each node
})

pruneTest('records that belong to nobody go too', async (t, { credits, pool, at }) => {
  if (citus !== undefined) {
    t.pass('a record changes hands', { skip: 'not on a cluster' })
    return
  }
  await credits.deduct(charge)
  await pool.query("update ai_credit_usage set user_id = ''; update ai_credits set user_id = ''; update ai_credit_daily_usage set user_id = ''")
  await at(february)
  t.strictSame(await credits.prune({ before }), { accounts: 1, records: 1 })
})

t.test('an account that does not reconcile is pruned all the same', async t => {
  await onLedger(january, { allowance: 1000 }, async (t, { credits, pool, at }) => {
    for (let record = 1; record <= 6; record++) await credits.deduct(charge)
    await at(february)
    await credits.deduct(charge)
    await sumUp(pool)
    await pool.query('delete from ai_credit_usage where seq in (1, 4)')
    const { differences } = await credits.reconcile('ann')
    t.strictSame(differences.map(({ expected, actual }) => expected - actual), [14, 2])
    for (const batch of [1, 2, 3]) {
      await credits.prune({ before, batch })
    }
    t.strictSame((await credits.statement('ann')).entries.map(({ seq }) => seq), [6, 7])
    t.match((await credits.reconcile('ann')).differences, [{ identity: 'records', expected: 49, actual: 35 }])
    await pool.query('truncate ai_credits')
  })(t)
})

pruneTest('only what is in the past can go', async (t, { credits, at }) => {
  const refusal = { code: 'FST_CREDITS_INVALID', statusCode: 400, field: 'before', message: 'before must be in the past' }
  await t.rejects(credits.prune({ before: later(new Date(january), 1) }), refusal)
  t.strictSame(await credits.prune({ before: january }), { accounts: 0, records: 0 })
  await at(february)
  await credits.prune({ before: later(new Date(january), 1) })
})

t.test('no route prunes', async t => {
  const app = await buildGateway(t, { management: { authorize: () => true } })
  t.notMatch(app.printRoutes(), /prune/)
})

async function everything (credits: Credits) {
  return [await credits.balance('ann'), await credits.history('ann', { days: 60 }), await credits.statement('ann')] as const
}

// Returns the opening of a statement whose entries up to this one were pruned.
function opening ({ entries }: Statement, seq: number) {
  const { at, balance } = entries.find(entry => entry.seq === seq)!
  return { seq, kind: 'opening', at, amount: balance.available, balance }
}

async function rows (pool: ClockedLedger['pool'], query: string) {
  return (await pool.query(query)).rows
}

function later (time: Date, milliseconds: number) {
  return new Date(time.getTime() + milliseconds)
}
