// Budgets: limits on parts of an account's spending.
import t, { type Test } from 'tap'
import type { Credits, DeductInput } from '../../src/index.js'
import { justBefore, ledgerTest, onLedger, start } from '../helper/clocked-ledger.js'

const charge = { userId: 'acme', credits: 1, operation: 'chat' }

// A team, a member of it, and the member's keys.
async function setThree (credits: Credits, [team, member, key] = [{ month: 100 }, { day: 50 }, { day: 20 }] as object[]) {
  await credits.setBudget('acme', 'team:ml', { ...team })
  await credits.setBudget('acme', 'member:ann', { within: 'team:ml', ...member })
  await credits.setBudget('acme', 'key:*', { within: 'member:ann', ...key })
}

async function budgetOf (credits: Credits, name: string) {
  const { entries } = await credits.budgets('acme', { limit: 1000 })
  return entries.find(({ budget }) => budget === name)
}

// What is used of the one limit that a budget has, and held.
async function counts (credits: Credits, ...names: string[]) {
  const found = await Promise.all(names.map(async name => await budgetOf(credits, name)))
  return found.map(budget => budget && [...Object.values(budget.used), budget.held])
}

async function exceeds (t: Test, call: Promise<unknown>, expected: object) {
  await t.rejects(call, { statusCode: 402, code: 'FST_CREDITS_BUDGET_EXCEEDED', ...expected })
}

const spend = (credits: Credits, input: Partial<DeductInput>) => credits.deduct({ ...charge, ...input })

ledgerTest('a charge counts in its budget and in all above it, up to the last credit of each', async (t, { credits }) => {
  await setThree(credits)
  await spend(credits, { budget: 'key:k1', credits: 20 })
  t.strictSame(await counts(credits, 'key:k1', 'member:ann', 'team:ml'), [[20, 0], [20, 0], [20, 0]])
  await exceeds(t, spend(credits, { budget: 'key:k1' }), {
    message: 'Budget key:k1 is exceeded: 1 required, 0 left',
    budget: 'key:k1',
    period: 'day',
    limit: 20,
    used: 20,
    held: 0,
    required: 1,
    resetsAt: new Date('2030-01-02'),
    credits: { available: 980, total: 1000, used: 20, held: 0 }
  })
  await credits.hold({ ...charge, budget: 'key:k2', credits: 20 })
  await exceeds(t, spend(credits, { budget: 'key:k3', credits: 11 }), {
    budget: 'member:ann', period: 'day', limit: 50, used: 20, held: 20, required: 11, resetsAt: new Date('2030-01-02')
  })
  t.equal(await budgetOf(credits, 'key:k3'), undefined, 'a call that is refused makes no budget')
  await spend(credits, { budget: 'key:k3', credits: 10 })
  await spend(credits, { budget: 'team:ml', credits: 50 })
  await exceeds(t, credits.hold({ ...charge, budget: 'team:ml' }), {
    budget: 'team:ml', period: 'month', limit: 100, used: 80, held: 20, resetsAt: new Date('2030-02-01')
  })
  await spend(credits, { credits: 100 })
  t.equal((await credits.balance('acme')).available, 800, 'what names no budget is not limited')
}, { allowance: 1000 })

ledgerTest('of several limits that do not fit, a 402 names the one that resets last', async (t, { credits }) => {
  await setThree(credits, [{ month: 5 }, { week: 5, total: 9 }, { day: 5 }])
  const { period, limit } = await spend(credits, { budget: 'key:k', credits: 10 }).catch(error => error)
  t.strictSame([period, limit], ['total', 9])
  await exceeds(t, spend(credits, { budget: 'key:k', credits: 10 }), { budget: 'member:ann', resetsAt: null })
  await exceeds(t, spend(credits, { budget: 'key:k', credits: 6 }), { budget: 'team:ml', period: 'month', limit: 5 })
  await credits.setBudget('acme', 'team:ml', { month: 6 })
  await exceeds(t, spend(credits, { budget: 'key:k', credits: 6 }), { budget: 'member:ann', period: 'week', resetsAt: new Date('2030-01-07') })
})

ledgerTest('where the account is short, too, that is what a call is told', async (t, { credits }) => {
  await credits.setBudget('acme', 'a', { day: 10 })
  await t.rejects(spend(credits, { budget: 'a', credits: 101 }), { code: 'FST_CREDITS_INSUFFICIENT' })
  await exceeds(t, spend(credits, { budget: 'a', credits: 100 }), { budget: 'a' })
  await t.rejects(spend(credits, { budget: 'b', credits: 101 }), { code: 'FST_CREDITS_NOT_FOUND' })
})

ledgerTest('a budget that there is not is not free', async (t, { credits }) => {
  const missing = { statusCode: 404, code: 'FST_CREDITS_NOT_FOUND', message: 'There is no such budget' }
  await t.rejects(spend(credits, { budget: 'key:k' }), missing)
  await t.rejects(credits.hold({ ...charge, budget: 'key:k' }), missing)
  await credits.setBudget('acme', 'key:*', { day: 1 })
  await t.rejects(spend(credits, { budget: 'key' }), missing)
  await t.rejects(spend(credits, { budget: 'k:key:1' }), missing)
  await t.rejects(spend(credits, { budget: ':*' }), missing, 'a name like any other')
  await credits.setBudget('acme', ':*', {})
  await spend(credits, { budget: ':*' })
  await spend(credits, { budget: 'key:a:b' })
  await t.rejects(credits.setBudget('acme', 'x', { within: 'y' }), missing)
  await t.rejects(credits.setBudget('acme', 'x', { within: 'key:new' }), missing, 'setting makes nothing from a template')
  await t.rejects(credits.removeBudget('acme', 'x'), missing)
  t.equal((await credits.balance('acme')).used, 2)
})

ledgerTest('a template cannot be charged, nor be within', async (t, { credits }) => {
  await credits.setBudget('acme', 'key:*', { day: 1 })
  const wrong = { code: 'FST_CREDITS_INVALID', field: 'budget' }
  await t.rejects(spend(credits, { budget: 'key:*' }), wrong)
  await t.rejects(credits.hold({ ...charge, budget: 'key:*' }), wrong)
  await t.rejects(credits.setBudget('acme', 'a', { within: 'key:*' }), { code: 'FST_CREDITS_INVALID', field: 'within' })
})

ledgerTest('malformed names, amounts and pages are refused', async (t, { credits }) => {
  const invalid = (field: string) => ({ statusCode: 400, code: 'FST_CREDITS_INVALID', field })
  for (const name of ['', 'x'.repeat(256), 'a\0', '\ud800', 7 as any, undefined as any]) {
    await t.rejects(credits.setBudget('acme', name, {}), invalid('budget'))
    await t.rejects(credits.removeBudget('acme', name), invalid('budget'))
    if (name !== undefined) {
      await t.rejects(spend(credits, { budget: name }), invalid('budget'))
      await t.rejects(credits.history('acme', { budget: name }), invalid('budget'))
      await t.rejects(credits.setBudget('acme', 'a', { within: name }), invalid('within'))
      await t.rejects(credits.budgets('acme', { cursor: name }), invalid('cursor'))
    }
  }
  for (const amount of [-1, 1.5, 2 ** 53, '1' as any, null as any]) await t.rejects(credits.setBudget('acme', 'a', { week: amount }), invalid('week'))
  await t.rejects(credits.setBudget('acme', 'a', { year: 1 } as any), invalid('year'))
  for (const limit of [0, 1001]) await t.rejects(credits.budgets('acme', { limit }), invalid('limit'))
  await t.rejects(credits.setBudget('', 'a', {}), invalid('userId'))
  const widest = { day: 0, week: 1, month: 2 ** 53 - 1, total: 2 ** 53 - 1 }
  t.strictSame((await credits.setBudget('acme', '💡'.repeat(255), widest)).limits, widest)
})

ledgerTest('what setting returns is what is listed, by name, in pages', async (t, { credits }) => {
  const a = await credits.setBudget('acme', 'team:ml', { total: 5, day: 2 })
  const b = await credits.setBudget('acme', 'Zoë', { within: 'team:ml', week: 1, month: 3 })
  const c = await credits.setBudget('acme', 'none', {})
  t.strictSame(a, {
    budget: 'team:ml',
    within: null,
    limits: { day: 2, total: 5 },
    used: { day: 0, total: 0 },
    held: 0,
    resetsAt: { day: new Date('2030-01-02'), total: null }
  })
  t.strictSame(b, {
    budget: 'Zoë',
    within: 'team:ml',
    limits: { week: 1, month: 3 },
    used: { week: 0, month: 0 },
    held: 0,
    resetsAt: { week: new Date('2030-01-07'), month: new Date('2030-02-01') }
  })
  t.strictSame(c, { budget: 'none', within: null, limits: {}, used: {}, held: 0, resetsAt: {} })
  t.strictSame(await credits.budgets('acme'), { entries: [b, c, a], cursor: null })
  const first = await credits.budgets('acme', { limit: 2 })
  t.strictSame(first.entries, [b, c])
  t.strictSame(await credits.budgets('acme', { limit: 2, cursor: first.cursor! }), { entries: [a], cursor: null })
  t.strictSame(await credits.budgets('new'), { entries: [], cursor: null })
  t.strictSame(await credits.budgets(), { entries: [], cursor: null })
})

ledgerTest('setting again keeps what a limit has counted, and a new limit counts from then on', async (t, { credits }) => {
  await credits.setBudget('acme', 'a', { day: 10, total: 10 })
  await spend(credits, { budget: 'a', credits: 4 })
  t.match(await credits.setBudget('acme', 'a', { day: 3, month: 9 }), { limits: { day: 3, month: 9 }, used: { day: 4, month: 0 } })
  await exceeds(t, spend(credits, { budget: 'a' }), { period: 'day', limit: 3, used: 4, message: 'Budget a is exceeded: 1 required, 0 left' })
  t.match(await credits.setBudget('acme', 'a', { total: 10 }), { used: { total: 0 } }, 'a limit that was removed begins anew')
  await spend(credits, { budget: 'a', credits: 10 })
})

const zones: Array<[name: string, timeZone: string, period: 'day' | 'week' | 'month', from: string, reset: string, next: string]> = [
  ['a day', 'UTC', 'day', '2030-01-01T09:30:00.000Z', '2030-01-02T00:00:00.000Z', '2030-01-03T00:00:00.000Z'],
  ['a week', 'UTC', 'week', '2030-01-01T09:30:00.000Z', '2030-01-07T00:00:00.000Z', '2030-01-14T00:00:00.000Z'],
  ['a month of 31 days', 'UTC', 'month', '2030-01-01T09:30:00.000Z', '2030-02-01T00:00:00.000Z', '2030-03-01T00:00:00.000Z'],
  ['a leap February', 'UTC', 'month', '2028-02-28T00:00:00.000Z', '2028-03-01T00:00:00.000Z', '2028-04-01T00:00:00.000Z'],
  ['a day of 23 hours', 'Europe/Berlin', 'day', '2030-03-31T00:30:00.000Z', '2030-03-31T22:00:00.000Z', '2030-04-01T22:00:00.000Z'],
  ['a day of 25 hours', 'Europe/Berlin', 'day', '2030-10-26T23:00:00.000Z', '2030-10-27T23:00:00.000Z', '2030-10-28T23:00:00.000Z'],
  ['a week into summer', 'Europe/Berlin', 'week', '2030-03-27T00:00:00.000Z', '2030-03-31T22:00:00.000Z', '2030-04-07T22:00:00.000Z'],
  ['a month out of summer', 'Europe/Berlin', 'month', '2030-10-01T00:00:00.000Z', '2030-10-31T23:00:00.000Z', '2030-11-30T23:00:00.000Z'],
  ['a month into summer', 'Europe/Berlin', 'month', '2030-03-01T00:00:00.000Z', '2030-03-31T22:00:00.000Z', '2030-04-30T22:00:00.000Z']
]
for (const [name, timeZone, period, from, reset, next] of zones) {
  t.test(`${name} resets once, at its end`, onLedger(from, { allowance: 100, timeZone }, async (t, { credits, at }) => {
    t.strictSame((await credits.setBudget('acme', 'a', { [period]: 5, total: 50 })).resetsAt[period], new Date(reset))
    await spend(credits, { budget: 'a', credits: 5 })
    await at(justBefore(reset))
    await exceeds(t, spend(credits, { budget: 'a' }), { period, used: 5, resetsAt: new Date(reset) })
    await at(reset)
    t.match(await budgetOf(credits, 'a'), { used: { [period]: 0, total: 5 }, resetsAt: { [period]: new Date(next) } }, 'seen before it is written')
    await spend(credits, { budget: 'a', credits: 5 })
    await exceeds(t, spend(credits, { budget: 'a' }), { period, used: 5, resetsAt: new Date(next) })
    t.match(await budgetOf(credits, 'a'), { used: { [period]: 5, total: 10 }, resetsAt: { [period]: new Date(next) } })
  }))
}

ledgerTest('a period that nobody used for a year resets once, into the running one', async (t, { credits, at }) => {
  await credits.setBudget('acme', 'a', { day: 5, week: 5, month: 5, total: 6 })
  await spend(credits, { budget: 'a', credits: 5 })
  await at('2031-01-15T12:00:00Z')
  await spend(credits, { budget: 'a' })
  t.match(await budgetOf(credits, 'a'), {
    used: { day: 1, week: 1, month: 1, total: 6 },
    resetsAt: { day: new Date('2031-01-16'), week: new Date('2031-01-20'), month: new Date('2031-02-01'), total: null }
  })
  await exceeds(t, spend(credits, { budget: 'a' }), { period: 'total' })
})

ledgerTest('periods have nothing to do with the renewal of the account', async (t, { credits, at }) => {
  await credits.setBudget('acme', 'a', { month: 150 })
  await spend(credits, { budget: 'a', credits: 100 })
  await at('2030-01-07T00:00:00Z')
  await spend(credits, { budget: 'a', credits: 50 })
  await exceeds(t, spend(credits, { budget: 'a' }), { used: 150 })
}, { allowance: { credits: 100, every: 'week' } })

ledgerTest('a hold across a reset counts against the new period, and is spent in it', async (t, { credits, at }) => {
  await setThree(credits, [{ day: 10 }, { day: 10 }, { day: 10 }])
  await at('2030-01-01T23:59:00Z')
  const { id } = await credits.hold({ ...charge, budget: 'key:k', credits: 8 })
  await exceeds(t, spend(credits, { budget: 'key:k', credits: 3 }), { used: 0, held: 8 })
  await spend(credits, { budget: 'key:k', credits: 2 })
  await at('2030-01-02T00:00:00Z')
  await exceeds(t, spend(credits, { budget: 'key:k', credits: 3 }), { used: 0, held: 8 })
  await credits.capture(id, { credits: 3, final: false })
  t.strictSame(await counts(credits, 'key:k', 'member:ann', 'team:ml'), [[3, 5], [3, 5], [3, 5]])
  await credits.capture(id, { credits: 1 })
  t.strictSame(await counts(credits, 'key:k', 'member:ann', 'team:ml'), [[4, 0], [4, 0], [4, 0]])
  await spend(credits, { budget: 'key:k', credits: 6 })
  await exceeds(t, spend(credits, { budget: 'key:k' }), { used: 10 })
})

ledgerTest('a capture above its hold is never refused, the next call is', async (t, { credits }) => {
  await setThree(credits, [{ day: 10 }, { day: 10 }, { day: 5 }])
  const { id } = await credits.hold({ ...charge, budget: 'key:k', credits: 5 })
  await credits.capture(id, { credits: 12 })
  t.strictSame(await counts(credits, 'key:k', 'member:ann', 'team:ml'), [[12, 0], [12, 0], [12, 0]])
  await exceeds(t, spend(credits, { budget: 'team:ml' }), { budget: 'team:ml', limit: 10, used: 12 })
})

ledgerTest('release, lapse and the rest of a capture give back', async (t, { credits, at }) => {
  await setThree(credits, [{ day: 30 }, { day: 30 }, { day: 30 }])
  const hold = () => credits.hold({ ...charge, budget: 'key:k', credits: 10, ttl: 1000 })
  const [released, lapsed, lapsedToo] = [await hold(), await hold(), await hold()]
  await exceeds(t, hold(), { held: 30 })
  await credits.release(released.id)
  await credits.release(released.id)
  t.strictSame(await counts(credits, 'key:k', 'team:ml'), [[0, 20], [0, 20]])
  await at('2030-01-01T00:00:01Z')
  t.strictSame(await counts(credits, 'key:k', 'team:ml'), [[0, 0], [0, 0]])
  await credits.capture(lapsed.id, { credits: 4 })
  await credits.release(lapsedToo.id)
  t.strictSame(await counts(credits, 'key:k', 'team:ml'), [[4, 0], [4, 0]])
})

ledgerTest('holds lapse beside a grant that expires', async (t, { credits, at }) => {
  await setThree(credits, [{ day: 30 }, { day: 30 }, { day: 30 }])
  await credits.grant({ userId: 'acme', credits: 50, expiresAt: '2030-01-01T00:00:00.500Z' }) // before the first hold lapses
  for (const ttl of [1000, 3000]) await credits.hold({ ...charge, budget: 'key:k', credits: 10, ttl })
  await credits.hold({ ...charge, credits: 10, ttl: 1000 })
  await at('2030-01-01T00:00:02.500Z')
  t.strictSame(await counts(credits, 'key:k', 'team:ml'), [[0, 10], [0, 10]])
})

ledgerTest('a refund gives back what was spent in this period, and nothing of an earlier one', async (t, { credits, at }) => {
  await setThree(credits, [{ month: 100 }, { day: 50 }, { day: 20 }])
  const yesterday = await spend(credits, { budget: 'key:k', credits: 20, idempotencyKey: 'y' })
  await credits.refund({ usageId: yesterday.id, credits: 5 })
  t.strictSame(await counts(credits, 'key:k', 'member:ann', 'team:ml'), [[15, 0], [15, 0], [15, 0]])
  await at('2030-01-02T00:00:00Z')
  await credits.refund({ userId: 'acme', deductKey: 'y', credits: 10 })
  t.strictSame(await counts(credits, 'key:k', 'member:ann', 'team:ml'), [[0, 0], [0, 0], [5, 0]])
  const today = await spend(credits, { budget: 'key:k', credits: 20 })
  await credits.refund({ usageId: yesterday.id, credits: 5 })
  await credits.refund({ usageId: today.id, credits: 8 })
  t.strictSame(await counts(credits, 'key:k', 'member:ann', 'team:ml'), [[12, 0], [12, 0], [12, 0]])
  const { id } = await credits.hold({ ...charge, budget: 'key:k', credits: 8 })
  await credits.refund({ usageId: (await credits.capture(id)).id })
  t.strictSame(await counts(credits, 'key:k', 'member:ann', 'team:ml'), [[12, 0], [12, 0], [12, 0]])
})

ledgerTest('a budget is removed with open holds, and what is made again by its name begins at 0', async (t, { credits, at }) => {
  await setThree(credits, [{ day: 30 }, { day: 30 }, { day: 30 }])
  const hold = async () => (await credits.hold({ ...charge, budget: 'key:k', credits: 5, ttl: 60_000 })).id
  const [captured, released, , early] = [await hold(), await hold(), await hold(), await hold()]
  const spent = await spend(credits, { budget: 'key:k', credits: 3 })
  await credits.removeBudget('acme', 'key:k')
  await credits.capture(early)
  t.strictSame(await counts(credits, 'key:k', 'team:ml'), [undefined, [8, 15]])
  await spend(credits, { budget: 'key:k', credits: 1 }) // the template makes it again
  t.strictSame(await counts(credits, 'key:k', 'team:ml'), [[1, 0], [9, 15]])
  await credits.release(released)
  await credits.refund({ usageId: spent.id })
  t.strictSame(await counts(credits, 'key:k', 'team:ml'), [[1, 0], [6, 10]])
  await credits.capture(captured)
  t.strictSame(await counts(credits, 'key:k', 'team:ml'), [[6, 0], [11, 5]], 'a capture counts in the period in which it falls')
  await at('2030-01-01T00:01:00Z')
  t.strictSame(await counts(credits, 'key:k', 'team:ml'), [[6, 0], [11, 0]])
  await t.rejects(credits.removeBudget('acme', 'member:ann'), { statusCode: 409, code: 'FST_CREDITS_BUDGET_IN_USE' })
  await credits.removeBudget('acme', 'key:*')
  await credits.removeBudget('acme', 'key:k')
  await credits.removeBudget('acme', 'member:ann')
  t.strictSame((await credits.history('acme', { budget: 'member:ann' })).entries.map(({ used }) => used), [11])
})

ledgerTest('a budget moves with what is below it; what was charged stays where it was', async (t, { credits }) => {
  await setThree(credits, [{ month: 50 }, {}, {}])
  await credits.setBudget('acme', 'team:web', { month: 9 })
  const spent = await spend(credits, { budget: 'key:k', credits: 20 })
  const { id } = await credits.hold({ ...charge, budget: 'key:k', credits: 10 })
  await credits.setBudget('acme', 'member:ann', { within: 'team:web' })
  t.strictSame(await counts(credits, 'team:ml', 'team:web'), [[20, 10], [0, 0]])
  await exceeds(t, spend(credits, { budget: 'key:k', credits: 10 }), { budget: 'team:web', used: 0, held: 0 })
  await spend(credits, { budget: 'key:k', credits: 9 })
  await credits.capture(id)
  await credits.refund({ usageId: spent.id })
  t.strictSame(await counts(credits, 'team:ml', 'team:web'), [[10, 0], [9, 0]])
  await credits.setBudget('acme', 'member:ann', {})
  await spend(credits, { budget: 'key:k', credits: 5 })
  t.strictSame(await counts(credits, 'team:ml', 'team:web'), [[10, 0], [9, 0]])
})

ledgerTest('no circles, and no more than 8 levels', async (t, { credits }) => {
  const invalid = { code: 'FST_CREDITS_INVALID', field: 'within' }
  for (let level = 1; level <= 8; level++) await credits.setBudget('acme', `l${level}`, { day: 9, ...level > 1 && { within: `l${level - 1}` } })
  await t.rejects(credits.setBudget('acme', 'l9', { within: 'l8' }), invalid)
  await t.rejects(credits.setBudget('acme', 'key:*', { within: 'l8' }), invalid)
  for (const within of ['l1', 'l3', 'l8']) await t.rejects(credits.setBudget('acme', 'l1', { within }), invalid)
  await t.rejects(credits.setBudget('acme', 'x', { within: 'x' }), invalid, 'also of one that there is not')
  await credits.setBudget('acme', 'a', {})
  await credits.setBudget('acme', 'b', { within: 'a' })
  await t.rejects(credits.setBudget('acme', 'a', { within: 'b' }), { ...invalid, problem: 'must not be the budget itself, or below it' })
  await credits.setBudget('acme', 'top', {})
  await t.rejects(credits.setBudget('acme', 'l1', { within: 'top' }), invalid, 'the deepest below it counts')
  await credits.setBudget('acme', 'l2', { within: 'top', day: 9 })
  await spend(credits, { budget: 'l8' })
  t.strictSame(await counts(credits, 'l8', 'l2', 'l1'), [[1, 0], [1, 0], [0, 0]])
})

ledgerTest('a key covers the budget, and replays whatever became of it', async (t, { credits }) => {
  await credits.setBudget('acme', 'a', { day: 3 })
  await credits.setBudget('acme', 'b', {})
  const conflict = { code: 'FST_CREDITS_IDEMPOTENCY_CONFLICT' }
  const first = await spend(credits, { budget: 'a', credits: 3, idempotencyKey: 'k' })
  const held = await credits.hold({ ...charge, budget: 'b', credits: 3, idempotencyKey: 'k' })
  await exceeds(t, spend(credits, { budget: 'a', credits: 3, idempotencyKey: 'k2' }), {})
  await t.rejects(spend(credits, { budget: 'b', credits: 3, idempotencyKey: 'k' }), conflict)
  await t.rejects(spend(credits, { credits: 3, idempotencyKey: 'k' }), conflict)
  await t.rejects(credits.hold({ ...charge, credits: 3, idempotencyKey: 'k' }), conflict)
  await credits.removeBudget('acme', 'a')
  await credits.removeBudget('acme', 'b')
  t.strictSame(await spend(credits, { budget: 'a', credits: 3, idempotencyKey: 'k' }), { ...first, replayed: true })
  t.match(await credits.hold({ ...charge, budget: 'b', credits: 3, idempotencyKey: 'k' }), { id: held.id, replayed: true })
})

ledgerTest('a charge by usage counts in a budget, and what costs nothing is never refused', async (t, { credits }) => {
  await credits.setBudget('acme', 'key:*', { day: 2 })
  const chat = (tokens: number, rest = {}) =>
    credits.deduct({ userId: 'acme', operation: 'chat', usage: { tokens }, budget: 'key:k', idempotencyKey: `of ${tokens}`, ...rest })
  await chat(0)
  t.strictSame(await counts(credits, 'key:k'), [[0, 0]])
  await chat(2)
  await exceeds(t, chat(1), { used: 2, required: 1 })
  t.match(await chat(0, { idempotencyKey: 'again' }), { credits: 0, replayed: false })
  t.match(await chat(2), { credits: 2, replayed: true })
}, { allowance: 100, prices: { chat: { per: { tokens: 1 } } } })

ledgerTest('the history of a budget is what was spent in it and below it', async (t, { credits, at }) => {
  await setThree(credits, [{}, {}, {}])
  for (let n = 0; n < 150; n++) {
    if (n % 50 === 0) await at(`2030-01-0${1 + n / 50}T12:00:00Z`)
    const { id } = await spend(credits, { budget: ['key:a', 'key:b', 'member:ann', 'team:ml'][n % 4]!, metadata: { m: n % 3 } })
    if (n % 10 === 0) await credits.refund({ usageId: id })
    await spend(credits, { operation: 'other' })
  }
  const used = async (input: object) => (await credits.history('acme', input)).entries.reduce((sum, { used }) => sum + used, 0)
  t.equal(await used({ budget: 'key:a' }), 38 - 8)
  t.equal(await used({ budget: 'key:b' }), 38)
  t.equal(await used({ budget: 'member:ann' }), 37 - 7 + 38 + 30)
  t.equal(await used({ budget: 'team:ml' }), 150 - 15)
  t.equal(await used({}), 150 - 15 + 150)
  t.strictSame(await credits.history('acme', { budget: 'key:none' }), { entries: [], cursor: null })
  const all = (await credits.history('acme', { budget: 'key:a' })).entries
  const paged = []
  for (let cursor: string | null | undefined; cursor !== null;) {
    const page: Awaited<ReturnType<Credits['history']>> =
      await credits.history('acme', { budget: 'key:a', limit: 2, ...cursor !== undefined && { cursor } })
    paged.push(...page.entries)
    cursor = page.cursor
  }
  t.strictSame(paged, all)
  t.equal(all.length, 9)
  t.equal(await used({ budget: 'key:a', days: 1 }), all.filter(({ date }) => date === '2030-01-03').reduce((sum, { used }) => sum + used, 0))
}, { allowance: 1000 })

ledgerTest('a statement names the budget', async (t, { credits }) => {
  await setThree(credits, [{}, {}, {}])
  const { id } = await credits.hold({ ...charge, budget: 'key:k' })
  const captured = await credits.capture(id)
  await credits.refund({ usageId: captured.id })
  await spend(credits, { budget: 'member:ann' })
  await spend(credits, {})
  const { entries } = await credits.statement('acme')
  t.strictSame(entries.map(({ kind, budget }) => [kind, budget]), [
    ['opening', undefined], ['hold', 'key:k'], ['capture', 'key:k'], ['refund', 'key:k'], ['deduct', 'member:ann'], ['deduct', undefined]
  ])
})

ledgerTest('what is pruned stays counted', async (t, { credits, at }) => {
  await setThree(credits, [{ month: 100, total: 100 }, { week: 100 }, { day: 100 }])
  const spent = await spend(credits, { budget: 'key:k', credits: 9 })
  await credits.refund({ usageId: spent.id, credits: 2 })
  await spend(credits, { budget: 'key:gone', credits: 1 })
  await at('2030-01-01T20:00:00Z')
  const { id } = await credits.hold({ ...charge, budget: 'key:k', credits: 8, ttl: 86_400_000 })
  await credits.capture(id, { credits: 3, final: false, idempotencyKey: 'kept' }) // stays while its hold is open
  await credits.removeBudget('acme', 'key:gone')
  await at('2030-01-02T12:00:00Z')
  const today = await spend(credits, { budget: 'key:k', credits: 4 })
  await credits.refund({ usageId: today.id, credits: 1 })
  await credits.refund({ usageId: spent.id, credits: 1 })
  await at('2030-01-02T13:00:00Z')
  const before = await credits.budgets('acme')
  const history = await credits.history('acme', { budget: 'team:ml' })
  t.match(await credits.prune({ before: '2030-01-02T00:00:00Z' }), { records: 1 }, 'but for records with a newer refund, or an open hold')
  t.match(await credits.reconcile('acme'), { ok: true })
  t.match(await credits.prune({ before: '2030-01-02T12:30:00Z' }), { records: 5 })
  t.strictSame(await credits.budgets('acme'), before)
  t.strictSame(await credits.history('acme', { budget: 'team:ml' }), history)
  t.strictSame(before.entries.map(({ budget, used }) => [budget, used]), [
    ['key:*', { day: 0 }], ['key:k', { day: 3 }], ['member:ann', { week: 13 }], ['team:ml', { month: 13, total: 13 }]
  ])
  await spend(credits, { budget: 'key:k', credits: 1 })
  t.strictSame((await budgetOf(credits, 'team:ml'))!.used, { month: 14, total: 14 })
})

ledgerTest('reconcile says what of a budget is wrong', async (t, { credits, pool }) => {
  await credits.setBudget('acme', 'team:ml', { month: 100, total: 100 })
  await spend(credits, { budget: 'team:ml', credits: 3 })
  const { id } = await credits.hold({ ...charge, budget: 'team:ml', credits: 5 })
  await pool.query('update ai_credit_budgets set month = row((month).amount, 4, (month).since_seq, (month).resets_at, (month).gone), held = 6')
  t.strictSame((await credits.reconcile('acme')).differences, [
    { userId: 'acme', identity: 'budget team:ml held', expected: 6, actual: 5 },
    { userId: 'acme', identity: 'budget team:ml month used', expected: 4, actual: 3 }
  ])
  await pool.query('update ai_credit_budgets set month = row((month).amount, 3, (month).since_seq, (month).resets_at, (month).gone), held = 5')
  await credits.release(id)
})

ledgerTest('in the transaction of the host', async (t, { credits, transaction }) => {
  await transaction('rollback', async client => {
    await credits.setBudget('acme', 'key:*', { day: 5 }, { client })
    await spend(credits, { budget: 'key:k', credits: 5, client })
    await exceeds(t, spend(credits, { budget: 'key:k', client }), { used: 5 })
  })
  t.strictSame((await credits.budgets('acme')).entries, [])
  await transaction('commit', async client => {
    await credits.setBudget('acme', 'a', { day: 5 }, { client })
    await spend(credits, { budget: 'a', credits: 5, client })
    await credits.setBudget('acme', 'b', { within: 'a' }, { client })
    await credits.removeBudget('acme', 'b', { client })
  })
  t.strictSame(await counts(credits, 'a'), [[5, 0]])
})

ledgerTest('a clock that was set back begins no period twice', async (t, { credits, at }) => {
  await at('2030-01-01T23:00:00Z')
  await credits.setBudget('acme', 'a', { day: 5 })
  await at('2030-01-02T00:00:00Z')
  t.match(await credits.setBudget('acme', 'a', { day: 5 }), { resetsAt: { day: new Date('2030-01-03') } })
  await at(start)
  await spend(credits, { budget: 'a', credits: 5 })
  t.match((await credits.history('acme')).entries, [{ date: '2030-01-02' }])
  await at('2030-01-02T00:00:00Z')
  await exceeds(t, spend(credits, { budget: 'a' }), { used: 5, resetsAt: new Date('2030-01-03') })
})
