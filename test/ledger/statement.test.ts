import t, { type Test } from 'tap'
import type { Balance, Credits, RecurringAllowance, StatementEntry } from '../../src/index.js'
import { buildGateway } from '../helper/app.js'
import { onLedger } from '../helper/clocked-ledger.js'
import { createDatabase, createPool } from '../helper/database.js'
import { originalTables } from '../helper/original-tables.js'

const daily: RecurringAllowance = { credits: 10, every: 'day' }
const start = '2024-05-01T12:00:00.000Z'

t.test('a new account has an opening, and is created for it', onLedger(start, { allowance: 100 }, async (t, { credits }) => {
  t.strictSame(await credits.statement('ann'), {
    entries: [{ seq: 0, kind: 'opening', at: new Date(start), amount: 100, balance: balance(100) }], cursor: null
  })
  t.match(await credits.reconcile('ann'), { accounts: 1 })
}))

t.test('deduct', onLedger(start, { allowance: 100 }, async (t, { credits }) => {
  const { id } = await credits.deduct({ userId: 'ann', credits: 7, operation: 'chat', metadata: { words: 3 } })
  t.strictSame(await latest(t, credits), [{
    ...{ seq: 1, kind: 'deduct', at: new Date(start), amount: -7, balance: balance(100, 7) },
    ...{ id, operation: 'chat', metadata: { words: 3 } }
  }])
}))

t.test('hold and capture', onLedger(start, { allowance: 100 }, async (t, { credits }) => {
  const hold = await credits.hold({ userId: 'ann', credits: 40, operation: 'chat', metadata: { model: 'm' } })
  const part = await credits.capture(hold.id, { credits: 15, metadata: { words: 3 }, final: false })
  const rest = await credits.capture(hold.id, { credits: 20 })
  const common = { at: new Date(start), operation: 'chat' }
  t.strictSame(await latest(t, credits), [
    { seq: 1, kind: 'hold', amount: -40, balance: balance(100, 0, 40), id: hold.id, metadata: { model: 'm' }, ...common },
    {
      ...{ seq: 2, kind: 'capture', amount: 0, balance: balance(100, 15, 25), id: part.id, referenceId: hold.id },
      ...{ metadata: { model: 'm', words: 3 }, ...common }
    },
    {
      ...{ seq: 3, kind: 'capture', amount: 5, balance: balance(100, 35), id: rest.id, referenceId: hold.id },
      ...{ metadata: { model: 'm' }, ...common }
    }
  ])
}))

t.test('a capture of more than was held has the difference as its amount', onLedger(start, { allowance: 100 },
  async (t, { credits }) => {
    const { id } = await credits.hold({ userId: 'ann', credits: 40, operation: 'chat' })
    await credits.capture(id, { credits: 200 })
    t.match((await latest(t, credits)).at(-1), { kind: 'capture', amount: -60, balance: balance(100, 100) })
  }))

t.test('release', onLedger(start, { allowance: 100 }, async (t, { credits, at }) => {
  const { id } = await credits.hold({ userId: 'ann', credits: 40, operation: 'chat' })
  await at('2024-05-01T12:01:00Z')
  await credits.release(id)
  t.strictSame((await latest(t, credits)).at(-1), {
    ...{ seq: 2, kind: 'release', at: new Date('2024-05-01T12:01:00Z'), amount: 40, balance: balance(100) },
    referenceId: id
  })
}))

t.test('lapse, at the instant of it', onLedger(start, { allowance: 100 }, async (t, { credits, at }) => {
  const { id } = await credits.hold({ userId: 'ann', credits: 40, operation: 'chat', ttl: 60_000 })
  await at('2024-05-01T13:00:00Z')
  t.strictSame((await latest(t, credits)).at(-1), {
    ...{ seq: 2, kind: 'lapse', at: new Date('2024-05-01T12:01:00Z'), amount: 40, balance: balance(100) },
    referenceId: id
  })
}))

t.test('a release gives back what the hold did not keep of an ended allowance', onLedger(start, { allowance: daily },
  async (t, { credits, at }) => {
    const { id } = await credits.hold({ userId: 'ann', credits: 4, operation: 'chat', ttl: 86_400_000 })
    await at('2024-05-02T00:00:00Z')
    await credits.release(id)
    t.match((await latest(t, credits)).at(-1), { kind: 'release', amount: 0, balance: balance(10), referenceId: id })
  }))

t.test('grant and revoke', onLedger(start, { allowance: 100 }, async (t, { credits }) => {
  const { id } = await credits.grant({ userId: 'ann', credits: 50, reason: 'bought' })
  await credits.deduct({ userId: 'ann', credits: 20, operation: 'chat' })
  await credits.revoke(id)
  const common = { at: new Date(start) }
  const [granted, , revoked] = await latest(t, credits)
  t.strictSame(granted, { seq: 1, kind: 'grant', amount: 50, balance: balance(150), id, reason: 'bought', ...common })
  t.strictSame(revoked, { seq: 3, kind: 'revoke', amount: -30, balance: balance(120, 20), referenceId: id, ...common })
}))

t.test('expiry, at the instant of it', onLedger(start, { allowance: 100 }, async (t, { credits, at }) => {
  const { id } = await credits.grant({ userId: 'ann', credits: 50, expiresAt: '2024-05-01T12:30:00Z' })
  await credits.deduct({ userId: 'ann', credits: 20, operation: 'chat' })
  await at('2024-05-02T00:00:00Z')
  t.strictSame((await latest(t, credits)).at(-1), {
    ...{ seq: 3, kind: 'expiry', at: new Date('2024-05-01T12:30:00Z'), amount: -30, balance: balance(120, 20) },
    referenceId: id
  })
}))

t.test('renewal, at the instant of it', onLedger(start, { allowance: daily }, async (t, { credits, at }) => {
  await credits.deduct({ userId: 'ann', credits: 7, operation: 'chat' })
  await at('2024-05-02T12:00:00Z')
  t.strictSame((await latest(t, credits)).at(-1), {
    ...{ seq: 2, kind: 'renewal', at: new Date('2024-05-02T00:00:00Z'), amount: 7, balance: balance(10) },
    details: { periods: 1, expired: 3, allowance: daily }
  })
}))

t.test('refund', onLedger(start, { allowance: 100 }, async (t, { credits }) => {
  const { id: usageId } = await credits.deduct({ userId: 'ann', credits: 7, operation: 'chat', metadata: { words: 3 } })
  const { id } = await credits.refund({ usageId, credits: 2, reason: 'failed' })
  t.strictSame((await latest(t, credits)).at(-1), {
    ...{ seq: 2, kind: 'refund', at: new Date(start), amount: 2, balance: balance(100, 5), id, referenceId: usageId },
    ...{ operation: 'chat', metadata: { words: 3 }, reason: 'failed' }
  })
}))

t.test('what changes nothing is no entry', onLedger(start, { allowance: 100 }, async (t, { credits }) => {
  const key = { userId: 'ann', credits: 7, operation: 'chat', idempotencyKey: 'k' }
  const { id } = await credits.hold(key)
  await credits.deduct(key)
  const before = await credits.statement('ann')
  await credits.hold(key)
  await credits.deduct(key)
  await credits.extend(id, { ttl: 86_400_000 })
  await t.rejects(credits.deduct({ userId: 'ann', credits: 1000, operation: 'chat' }), { code: 'FST_CREDITS_INSUFFICIENT' })
  t.strictSame(await credits.statement('ann'), before)
}))

t.test('a busy account: in order, without gaps, and every amount leads to the next balance',
  onLedger(start, { allowance: { ...daily, rollover: 'all' } }, async (t, { credits, at }) => {
    await makeBusy(credits, at)
    const entries = await latest(t, credits)
    t.strictSame(new Set(entries.map(({ kind }) => kind)),
      new Set(['grant', 'deduct', 'hold', 'capture', 'release', 'lapse', 'refund', 'expiry', 'renewal', 'revoke']))
    t.strictSame(entries.at(-1)!.balance, await credits.balance('ann'))
    t.strictSame(entries.map(({ at }) => at), entries.map(({ at }) => at).sort((a, b) => Number(a) - Number(b)), 'in time')
  }))

t.test('pages of every size are the whole, and the last one says so',
  onLedger(start, { allowance: daily }, async (t, { credits, at, open }) => {
    await makeBusy(credits, at)
    const { entries, cursor } = await credits.statement('ann')
    t.equal(cursor, null)
    for (const limit of [1, 2, 5, entries.length - 1, entries.length]) {
      const pages = await readPages(credits, { limit })
      t.strictSame(pages.flat(), entries, `limit ${limit}`)
      t.equal(pages.length, Math.ceil(entries.length / limit))
    }
    t.equal((await open({ historyLimit: 3 }).statement('ann')).entries.length, 3, 'the default is historyLimit')
  }))

t.test('pages are stable while entries arrive', onLedger(start, { allowance: 100 }, async (t, { credits }) => {
  const spend = () => credits.deduct({ userId: 'ann', credits: 1, operation: 'chat' })
  await spend()
  await spend()
  const first = await credits.statement('ann', { limit: 2 })
  await spend()
  await spend()
  const second = await credits.statement('ann', { limit: 2, cursor: first.cursor! })
  await spend()
  const third = await credits.statement('ann', { limit: 10, cursor: second.cursor! })
  t.strictSame([first, second, third].map(({ entries }) => entries.map(({ seq }) => seq)), [[0, 1], [2, 3], [4, 5]])
  t.strictSame(third.cursor, null)
}))

t.test('from is the first instant shown, to the first that is not', onLedger(start, { allowance: 100 },
  async (t, { credits, at }) => {
    await credits.balance('ann')
    for (const minute of [1, 2, 3]) {
      await at(`2024-05-01T12:0${minute}:00Z`)
      await credits.deduct({ userId: 'ann', credits: minute, operation: 'chat' })
    }
    const seqs = async (input: object) => (await credits.statement('ann', input)).entries.map(({ seq }) => seq)
    t.strictSame(await seqs({ from: '2024-05-01T12:02:00Z' }), [2, 3])
    t.strictSame(await seqs({ from: new Date('2024-05-01T12:02:00.001Z') }), [3])
    t.strictSame(await seqs({ to: '2024-05-01T12:02:00Z' }), [0, 1])
    t.strictSame(await seqs({ to: '2024-05-01T14:02:00.001+02:00' }), [0, 1, 2])
    t.strictSame(await seqs({ from: '2024-05-01T12:01:00Z', to: '2024-05-01T12:03:00Z' }), [1, 2])
    t.strictSame(await seqs({ from: '2024-05-01T12:03:00Z', to: '2024-05-01T12:01:00Z' }), [])
    t.strictSame((await readPages(credits, { limit: 1, from: '2024-05-01T12:01:00Z', to: '2024-05-01T12:03:00Z' }))
      .map(entries => entries.map(({ seq }) => seq)), [[1], [2]])
  }))

t.test('an entry\'s own time finds it, whatever its microseconds', onLedger('2024-05-01T12:00:00.123999Z', { allowance: 100 },
  async (t, { credits }) => {
    await credits.deduct({ userId: 'ann', credits: 1, operation: 'chat' })
    const [, { at }] = (await credits.statement('ann')).entries as [StatementEntry, StatementEntry]
    t.equal(at.toISOString(), '2024-05-01T12:00:00.123Z')
    t.equal((await credits.statement('ann', { from: at })).entries.length, 2)
    t.equal((await credits.statement('ann', { to: at })).entries.length, 0)
  }))

t.test('one account\'s statement is nobody else\'s', onLedger(start, { allowance: 100 }, async (t, { credits }) => {
  for (const userId of ['ann', 'ann2', 'an']) {
    await credits.deduct({ userId, credits: 1, operation: userId })
    await credits.grant({ userId, credits: 1, reason: userId })
    await credits.hold({ userId, credits: 1, operation: userId })
  }
  for (const { operation, reason } of (await credits.statement('ann')).entries.slice(1)) t.equal(operation ?? reason, 'ann')
  t.equal((await credits.statement('ann')).entries.length, 4)
}))

t.test('the default user\'s statement, and on the host\'s client what it has not committed',
  onLedger(start, { allowance: 100 }, async (t, { credits, connectionString }) => {
    const client = await createPool(t, connectionString).connect()
    await client.query('begin')
    await credits.deduct({ credits: 1, operation: 'chat', client })
    t.equal((await credits.statement(undefined, { client })).entries.length, 2)
    await client.query('rollback')
    client.release()
    t.equal((await credits.statement()).entries.length, 1)
  }))

t.test('malformed input is refused, with the field', onLedger(start, {}, async (t, { credits }) => {
  for (const [field, value] of [
    ['from', 'yesterday'], ['from', '2024-05-01'], ['from', '2024-05-01T12:00:00'], ['from', 1714564800000],
    ['from', new Date(NaN)], ['to', null], ['to', '2024-13-01T00:00:00Z'], ['limit', 0], ['limit', 1.5],
    ['limit', 100_001], ['limit', '10'], ['cursor', ''], ['cursor', '-1'], ['cursor', 'abc'], ['cursor', 3], ['page', 2]
  ] as const) {
    await t.rejects(credits.statement('ann', { [field]: value }), { code: 'FST_CREDITS_INVALID', field }, `${field} ${value}`)
  }
  await t.rejects(credits.statement(''), { code: 'FST_CREDITS_INVALID', field: 'userId' })
}))

t.test('the sample data has a statement', async t => {
  const { credits } = await buildGateway(t, { sampleData: true })
  const { entries } = await credits.statement()
  checkEntries(t, entries)
  t.strictSame(entries.map(({ kind, amount }) => [kind, amount]),
    [['opening', 10000], ['deduct', -300], ['deduct', -200], ['deduct', -500], ['deduct', -400], ['deduct', -100]])
  t.match(await credits.reconcile(), { ok: true, accounts: 1, differences: [] })
})

t.test('an account of the original tables has one, from the balance that its records leave', async t => {
  const connectionString = await createDatabase(t)
  await createPool(t, connectionString).query(`${originalTables}
    insert into ai_credits values
      ('ann', 5000, 300, '2024-01-02', '2024-02-03'), ('more', 100, 70, '2024-01-02', '2024-02-03'),
      ('less', 100, 5, '2024-01-02', '2024-02-03'), ('below', 10, 25, '2024-01-02', '2024-02-03');
    insert into ai_credit_usage (user_id, credits_used, operation, metadata, created_at) values
      ('ann', 100, 'chat', '{"words": 7}', '2024-02-01 10:00:00'), ('ann', 200, 'image', null, '2024-02-03 04:05:06'),
      ('more', 20, 'chat', '{}', '2024-02-01'), ('less', 20, 'chat', '{}', '2024-02-01'),
      ('below', 25, 'chat', '{}', '2024-02-01')`)
  const { credits } = await buildGateway(t, {}, { connectionString })

  const { entries } = await credits.statement('ann')
  t.match(entries, [
    { seq: 0, kind: 'opening', amount: 5000, balance: balance(5000) },
    { seq: 1, kind: 'deduct', amount: -100, balance: balance(5000, 100), operation: 'chat', metadata: { words: 7 } },
    { seq: 2, kind: 'deduct', amount: -200, balance: balance(5000, 300), operation: 'image', metadata: {} }
  ])
  t.match((await credits.statement('more')).entries,
    [{ amount: 50, balance: balance(100, 50) }, { balance: balance(100, 70) }])
  t.match((await credits.statement('less')).entries,
    [{ amount: 115, balance: balance(100, -15) }, { balance: balance(100, 5) }])
  t.match(await credits.reconcile(), { ok: true, accounts: 4, differences: [] })

  for (const userId of ['ann', 'more', 'less', 'below']) {
    const { id } = await credits.grant({ userId, credits: 40 })
    await credits.deduct({ userId, credits: 12, operation: 'chat' })
    await credits.hold({ userId, credits: 3, operation: 'chat' })
    await credits.revoke(id)
    checkEntries(t, (await credits.statement(userId)).entries)
  }
  t.match(await credits.reconcile(), { ok: true, accounts: 4, differences: [] })
})

// Makes every kind of change, over several periods.
async function makeBusy (credits: Credits, at: (time: string) => Promise<void>) {
  const userId = 'ann'
  const charge = (amount: number) => ({ userId, credits: amount, operation: 'chat' })
  const { id: usageId } = await credits.deduct(charge(6))
  const bought = await credits.grant({ userId, credits: 30 })
  await credits.grant({ userId, credits: 8, expiresAt: '2024-05-02T18:00:00Z', priority: 60 })
  const open = await credits.hold({ ...charge(20), ttl: 86_400_000 })
  await credits.hold({ ...charge(5), ttl: 60_000 })
  await at('2024-05-02T06:00:00Z')
  await credits.capture(open.id, { credits: 7, final: false })
  await credits.release((await credits.hold(charge(2))).id)
  await credits.refund({ usageId, credits: 4 })
  await at('2024-05-02T23:00:00Z')
  await credits.capture(open.id, { credits: 15 })
  await credits.revoke(bought.id)
  await at('2024-05-10T12:00:00Z')
  await credits.refund({ usageId })
  await credits.deduct(charge(1))
}

async function readPages (credits: Credits, input: object): Promise<StatementEntry[][]> {
  const pages: StatementEntry[][] = []
  for (let cursor: string | null | undefined; cursor !== null;) {
    const page = await credits.statement('ann', { ...input, ...cursor !== undefined && { cursor } })
    pages.push(page.entries)
    if (pages.length > 100) throw new Error('The pages do not end')
    cursor = page.cursor
  }
  return pages
}

// Asserts that the account's entries are a valid statement, and returns them without the opening.
async function latest (t: Test, credits: Credits) {
  const { entries } = await credits.statement('ann')
  checkEntries(t, entries)
  t.strictSame(entries.at(-1)!.balance, await credits.balance('ann'))
  return entries.slice(1)
}

function checkEntries (t: Test, entries: StatementEntry[]) {
  t.strictSame(entries.map(({ seq }) => seq), entries.map((_, index) => index), 'numbered without a gap')
  let available = 0
  const sums = entries.map(({ amount }) => (available += amount))
  t.strictSame(entries.map(({ balance }) => balance.available), sums, 'the amounts add up to every balance')
}

function balance (total: number, used = 0, held = 0): Balance {
  return { available: total - used - held, total, used, held }
}
