import t from 'tap'
import type { Balance, Credits, RecurringAllowance } from '../../src/index.js'
import { justBefore, onLedger } from '../helper/clocked-ledger.js'
import { createPool } from '../helper/database.js'

const daily: RecurringAllowance = { credits: 10, every: 'day' }
const weekly: RecurringAllowance = { credits: 70, every: 'week' }

t.test('setAllowance begins at once where no allowance renews', onLedger('2024-05-01T12:00:00Z', { allowance: 100 },
  async (t, { credits, at }) => {
    await spend(credits, 30)
    t.strictSame(await credits.setAllowance('ann', daily), {
      userId: 'ann', allowance: daily, renewsAt: new Date('2024-05-02T00:00:00Z'), balance: balance(110, 30)
    })
    await at(justBefore('2024-05-02T00:00:00Z'))
    t.strictSame(await credits.balance('ann'), balance(110, 30))
    await at('2024-05-02T00:00:00Z')
    t.strictSame(await credits.balance('ann'), balance(80), '70 of the one-off allowance and the new 10')
  }))

t.test('what was left of the one-off allowance stays, and burns last', onLedger('2024-05-01T12:00:00Z', { allowance: 100 },
  async (t, { credits, at }) => {
    await credits.setAllowance('ann', daily)
    await credits.grant({ userId: 'ann', credits: 5, priority: 100, expiresAt: '2024-05-03T00:00:00Z' })
    await spend(credits, 14)
    await at('2024-05-02T00:00:00Z')
    t.strictSame(await credits.balance('ann'), balance(111), '10 and 4 of the grant were spent')
    await spend(credits, 12)
    await at('2024-05-03T00:00:00Z')
    t.strictSame(await credits.balance('ann'), balance(109), 'the last of the grant, then 1 of the one-off allowance')
    await at('2024-06-03T00:00:00Z')
    t.strictSame(await credits.balance('ann'), balance(109), 'which never expires')
  }))

t.test('the beginning is an entry of the statement', onLedger('2024-05-01T12:00:00Z', { allowance: 100 },
  async (t, { credits }) => {
    await credits.setAllowance('ann', daily)
    const { entries } = await credits.statement('ann')
    t.strictSame(entries.slice(1), [{
      seq: 1,
      kind: 'renewal',
      at: new Date('2024-05-01T12:00:00Z'),
      amount: 10,
      balance: balance(110),
      details: { periods: 0, expired: 0, allowance: daily }
    }])
  }))

t.test('setAllowance on a new account creates it with the host\'s allowance',
  onLedger('2024-05-01T12:00:00Z', { allowance: 100 }, async (t, { credits }) => {
    t.strictSame((await credits.setAllowance('new', weekly)).balance, balance(170))
  }))

t.test('where an allowance renews, setAllowance begins with the next renewal',
  onLedger('2024-05-01T12:00:00Z', { allowance: daily }, async (t, { credits, at }) => {
    await spend(credits, 4)
    t.strictSame(await credits.setAllowance('ann', weekly), {
      userId: 'ann', allowance: weekly, renewsAt: new Date('2024-05-02T00:00:00Z'), balance: balance(10, 4)
    })
    await at(justBefore('2024-05-02T00:00:00Z'))
    t.strictSame(await credits.balance('ann'), balance(10, 4))
    await at('2024-05-02T00:00:00Z')
    t.strictSame(await credits.balance('ann'), balance(70))
    await spend(credits, 1)
    await at(justBefore('2024-05-06T00:00:00Z'))
    t.strictSame(await credits.balance('ann'), balance(70, 1))
    await at('2024-05-06T00:00:00Z')
    t.strictSame(await credits.balance('ann'), balance(70))
  }))

t.test('the ending allowance is carried by its own rule', onLedger('2024-05-01T12:00:00Z', { allowance: 0 },
  async (t, { credits, at }) => {
    await credits.setAllowance('keeps', { ...daily, rollover: 'all' })
    await credits.setAllowance('keeps', weekly)
    await credits.setAllowance('loses', daily)
    await credits.setAllowance('loses', { ...weekly, rollover: 'all' })
    await at('2024-05-02T00:00:00Z')
    t.strictSame(await credits.balance('keeps'), balance(80))
    t.strictSame(await credits.balance('loses'), balance(70))
    await at('2024-05-06T00:00:00Z')
    t.strictSame(await credits.balance('keeps'), balance(70))
    t.strictSame(await credits.balance('loses'), balance(140))
  }))

t.test('of several settings before a renewal the last counts', onLedger('2024-05-01T12:00:00Z', { allowance: daily },
  async (t, { credits, at }) => {
    await credits.setAllowance('ann', weekly)
    await credits.setAllowance('ann', null)
    await credits.setAllowance('ann', { credits: 33, every: 'month' })
    await at('2024-05-02T00:00:00Z')
    t.strictSame(await credits.balance('ann'), balance(33))
    await at('2024-06-01T00:00:00Z')
    t.strictSame((await credits.statement('ann')).entries.length, 3)
  }))

t.test('setting the same allowance twice gives it once', onLedger('2024-05-01T12:00:00Z', { allowance: 100 },
  async (t, { credits, at }) => {
    await credits.setAllowance('ann', daily)
    t.strictSame((await credits.setAllowance('ann', daily)).balance, balance(110))
    await at('2024-05-02T00:00:00Z')
    t.strictSame(await credits.balance('ann'), balance(110))
  }))

t.test('null ends an allowance with its period', onLedger('2024-05-01T12:00:00Z', { allowance: daily },
  async (t, { credits, at }) => {
    await spend(credits, 4)
    t.strictSame(await credits.setAllowance('ann', null), {
      userId: 'ann', allowance: null, renewsAt: new Date('2024-05-02T00:00:00Z'), balance: balance(10, 4)
    })
    await at('2024-05-02T00:00:00Z')
    t.strictSame(await credits.balance('ann'), balance(0))
    t.match((await credits.statement('ann')).entries.at(-1),
      { kind: 'renewal', amount: -6, details: { periods: 1, expired: 6, allowance: null } })
    await at('2025-05-02T00:00:00Z')
    t.strictSame(await credits.balance('ann'), balance(0))
    t.strictSame((await credits.setAllowance('ann', null)).renewsAt, null, 'none is running')
  }))

t.test('what an ended allowance carried stays, and burns last',
  onLedger('2024-05-01T12:00:00Z', { allowance: { ...daily, rollover: 'all' } }, async (t, { credits, at }) => {
    await credits.setAllowance('ann', null)
    await at('2024-05-02T00:00:00Z')
    t.strictSame(await credits.balance('ann'), balance(10))
    await credits.grant({ userId: 'ann', credits: 5, priority: 100, expiresAt: '2024-05-03T00:00:00Z' })
    await spend(credits, 3)
    await at('2024-06-03T00:00:00Z')
    t.strictSame(await credits.balance('ann'), balance(13, 3), '2 of the grant expired')
    await credits.setAllowance('ann', daily)
    t.strictSame(await credits.balance('ann'), balance(23, 3), 'another one begins at once')
    await at('2024-06-04T00:00:00Z')
    t.strictSame(await credits.balance('ann'), balance(20))
  }))

t.test('null where none renews changes nothing', onLedger('2024-05-01T12:00:00Z', { allowance: 100 },
  async (t, { credits, at }) => {
    t.strictSame(await credits.setAllowance('ann', null), {
      userId: 'ann', allowance: null, renewsAt: null, balance: balance(100)
    })
    await at('2025-05-01T12:00:00Z')
    t.strictSame(await credits.balance('ann'), balance(100))
    t.equal((await credits.statement('ann')).entries.length, 1)
  }))

t.test('an account\'s own allowance is not replaced by another option of the host\'s',
  onLedger('2024-05-01T12:00:00Z', { allowance: daily }, async (t, { credits, at, open }) => {
    await credits.setAllowance('ann', weekly)
    await credits.setAllowance('ended', null)
    await credits.balance('bob')
    const changed = open({ allowance: { credits: 500, every: 'month' } })
    await at('2024-05-20T00:00:00Z')
    t.strictSame(await changed.balance('ann'), balance(70))
    t.strictSame(await changed.balance('ended'), balance(0))
    t.strictSame(await changed.balance('bob'), balance(500))
    t.strictSame(await changed.balance('new'), balance(500))
  }))

t.test('debt is paid by an allowance that begins at once', onLedger('2024-05-01T12:00:00Z', { allowance: 5 },
  async (t, { credits, at }) => {
    await credits.setOverdraft('ann', 20)
    await spend(credits, 12)
    t.strictSame((await credits.setAllowance('ann', daily)).balance, balance(15, 12))
    await at('2024-05-02T00:00:00Z')
    t.strictSame(await credits.balance('ann'), balance(10), '7 of it went to debt, 3 expired')
  }))

t.test('setOverdraft lets an account go below zero, to the limit', onLedger('2024-05-01T12:00:00Z', { allowance: 100 },
  async (t, { credits }) => {
    t.strictSame(await credits.setOverdraft('ann', 50), { userId: 'ann', overdraft: 50, balance: balance(100) })
    await t.rejects(spend(credits, 151), { code: 'FST_CREDITS_INSUFFICIENT' })
    t.strictSame((await spend(credits, 150)).balance, balance(100, 150))
    await t.rejects(spend(credits, 1), { code: 'FST_CREDITS_INSUFFICIENT', credits: { available: -50 } })
    await t.rejects(credits.hold({ userId: 'ann', credits: 1, operation: 'chat' }), { code: 'FST_CREDITS_INSUFFICIENT' })
    await t.rejects(spend(credits, 101, 'bob'), { code: 'FST_CREDITS_INSUFFICIENT' }, 'nobody else')
  }))

t.test('holds draw on the overdraft as well', onLedger('2024-05-01T12:00:00Z', { allowance: 100 },
  async (t, { credits }) => {
    await credits.setOverdraft('ann', 50)
    const { id } = await credits.hold({ userId: 'ann', credits: 120, operation: 'chat' })
    t.strictSame(await credits.balance('ann'), balance(100, 0, 120))
    t.match(await credits.capture(id, { credits: 200 }), { credits: 150, uncollected: 50 })
    t.strictSame(await credits.balance('ann'), balance(100, 150))
  }))

t.test('an overdraft of 0 is none again, and debt stays debt', onLedger('2024-05-01T12:00:00Z', { allowance: 100 },
  async (t, { credits }) => {
    await credits.setOverdraft('ann', 50)
    await spend(credits, 120)
    t.strictSame(await credits.setOverdraft('ann', 0), { userId: 'ann', overdraft: 0, balance: balance(100, 120) })
    await t.rejects(spend(credits, 1), { code: 'FST_CREDITS_INSUFFICIENT' })
    await credits.grant({ userId: 'ann', credits: 21 })
    await t.rejects(spend(credits, 2), { code: 'FST_CREDITS_INSUFFICIENT' })
    t.strictSame((await spend(credits, 1)).balance, balance(121, 121))
  }))

t.test('terms are no entries of the statement where they change no credits',
  onLedger('2024-05-01T12:00:00Z', { allowance: daily }, async (t, { credits }) => {
    await credits.setOverdraft('ann', 50)
    await credits.setAllowance('ann', weekly)
    t.strictSame((await credits.statement('ann')).entries.map(({ kind }) => kind), ['opening'])
  }))

t.test('both take the default user and the host\'s client', onLedger('2024-05-01T12:00:00Z', { allowance: 100 },
  async (t, { credits, connectionString }) => {
    t.equal((await credits.setOverdraft(undefined, 1)).userId, 'default_user')
    t.equal((await credits.setAllowance(undefined, daily)).userId, 'default_user')
    const client = await createPool(t, connectionString).connect()
    await client.query('begin')
    t.strictSame((await credits.setAllowance('ann', daily, { client })).balance, balance(110))
    await credits.setOverdraft('ann', 7, { client })
    await client.query('rollback')
    client.release()
    t.strictSame(await credits.balance('ann'), balance(100))
    await t.rejects(spend(credits, 101), { code: 'FST_CREDITS_INSUFFICIENT' })
  }))

t.test('malformed terms are refused, with the field', onLedger('2024-05-01T12:00:00Z', {}, async (t, { credits }) => {
  const invalid = (field: string) => ({ code: 'FST_CREDITS_INVALID', statusCode: 400, field })
  for (const [allowance, field] of [
    [undefined, 'allowance'], [10, 'allowance'], ['day', 'allowance'], [[], 'allowance'],
    [{ every: 'day' }, 'allowance/credits'], [{ credits: 1.5, every: 'day' }, 'allowance/credits'],
    [{ credits: 2 ** 53, every: 'day' }, 'allowance/credits'], [{ credits: 1 }, 'allowance/every'],
    [{ credits: 1, every: 'year' }, 'allowance/every'], [{ ...daily, rollover: 'max' }, 'allowance/rollover'],
    [{ ...daily, anchor: 'monday' }, 'allowance/anchor'], [{ ...daily, starts: 'now' }, 'allowance/starts']
  ]) {
    await t.rejects(credits.setAllowance('ann', allowance as RecurringAllowance), invalid(field as string),
      JSON.stringify(allowance))
  }
  for (const overdraft of [undefined, null, -1, 0.5, '1', 2 ** 53]) {
    await t.rejects(credits.setOverdraft('ann', overdraft as number), invalid('credits'), String(overdraft))
  }
  await t.rejects(credits.setAllowance('', daily), invalid('userId'))
  await t.rejects(credits.setOverdraft('', 1), invalid('userId'))
  await t.rejects(credits.setAllowance('ann', daily, { client: {} as any }), invalid('client'))
  await t.rejects(credits.setOverdraft('ann', 1, { clients: 1 } as any), invalid('clients'))
  t.match(await credits.reconcile(), { accounts: 0 }, 'no account was made')
}))

function balance (total: number, used = 0, held = 0): Balance {
  return { available: total - used - held, total, used, held }
}

async function spend (credits: Credits, amount: number, userId = 'ann') {
  return await credits.deduct({ userId, credits: amount, operation: 'chat' })
}
