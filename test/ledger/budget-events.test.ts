// Events of budgets: charges that one refused, and limits of which little is left.
import t from 'tap'
import { createLedger, type BudgetLowEvent, type Budget, type Credits, type LedgerOptions } from '../../src/index.js'
import { ledgerTest, start } from '../helper/clocked-ledger.js'
import { createLedgerDatabase, createPool, pglite } from '../helper/database.js'
import { hear } from '../helper/hear.js'

const chat = { userId: 'acme', operation: 'chat' }
const balance = (total: number, used: number, held = 0) => ({ available: total - used - held, total, used, held })

async function setThree (credits: Credits, [team, ann, key] = [{ month: 100 }, { day: 50 }, { day: 20 }] as object[]) {
  await credits.setBudget('acme', 'team', { ...team })
  await credits.setBudget('acme', 'ann', { within: 'team', ...ann })
  await credits.setBudget('acme', 'key:*', { within: 'ann', ...key })
}

ledgerTest('a charge that a budget refuses is told of with the limit that the error names', async (t, { credits }) => {
  await setThree(credits)
  await credits.hold({ ...chat, credits: 15, budget: 'key:1' })
  const heard = hear(credits)
  await t.rejects(credits.deduct({ ...chat, credits: 6, budget: 'key:1' }))
  await t.rejects(credits.hold({ ...chat, operation: 'video', credits: 36, budget: 'ann' }))
  const both = [credits.deduct({ ...chat, credits: 86, budget: 'team' }), credits.deduct({ ...chat, credits: 186, budget: 'team' })]
  for (const call of both) await t.rejects(call)
  const day = { period: 'day', held: 15, used: 0, resetsAt: new Date('2030-01-02') }
  t.strictSame(await heard(), [
    ['budget_exceeded', { ...chat, budget: 'key:1', limit: 20, ...day, required: 6, balance: balance(200, 0, 15) }],
    ['budget_exceeded', { userId: 'acme', operation: 'video', budget: 'ann', limit: 50, ...day, required: 36, balance: balance(200, 0, 15) }],
    ['budget_exceeded', {
      ...chat, budget: 'team', period: 'month', limit: 100, used: 0, held: 15, resetsAt: new Date('2030-02-01'), required: 86, balance: balance(200, 0, 15)
    }],
    ['refused', { ...chat, credits: 186, balance: balance(200, 0, 15) }]
  ], 'refused is about the balance')
}, { allowance: 200 })

ledgerTest('what is refused otherwise, or on the client of the host, exceeds no budget', async (t, { credits, transaction }) => {
  await setThree(credits)
  const heard = hear(credits, ['budget_exceeded'])
  await t.rejects(credits.deduct({ ...chat, credits: 1, budget: 'nobody' }))
  await transaction('commit', async client => {
    await t.rejects(credits.deduct({ ...chat, credits: 51, budget: 'ann', client }))
  })
  t.match(await credits.canAfford({ ...chat, credits: 51, budget: 'ann' }), { affordable: false })
  t.strictSame(await heard(), [])
})

// Listens to budget_low. Returns a function that returns what was heard since its last call, in a fixed order.
function hearLow (...ledgers: Credits[]) {
  const all = ledgers.map(ledger => hear(ledger, ['budget_low', 'granted']))
  return async () => {
    const heard = (await Promise.all(all.map(async events => await events()))).flat()
    return heard.flatMap(([name, event]) => name === 'budget_low' ? [event] : [])
      .sort((one, other) => order(one) < order(other) ? -1 : 1)
  }
}

const order = ({ budget, period, threshold }: BudgetLowEvent) => `${budget} ${period} ${threshold}`

const brief = ({ budget, period, threshold, left }: BudgetLowEvent) => `${budget} ${period} ${threshold}: ${left}`

const options: LedgerOptions = { allowance: 1000, budgetLow: [10, '50%'] }

ledgerTest('a limit is told of once for each time that a charge lets what is left of it fall to a threshold', async (t, { credits }) => {
  await setThree(credits)
  const heard = hearLow(credits)
  await credits.deduct({ ...chat, credits: 9, budget: 'key:1' })
  t.strictSame(await heard(), [])
  await credits.deduct({ ...chat, credits: 1, budget: 'key:1' })
  const reset = { resetsAt: new Date('2030-01-02') }
  t.strictSame(await heard(), [
    { userId: 'acme', budget: 'key:1', period: 'day', limit: 20, used: 10, held: 0, left: 10, ...reset, threshold: 10 },
    { userId: 'acme', budget: 'key:1', period: 'day', limit: 20, used: 10, held: 0, left: 10, ...reset, threshold: '50%' }
  ])
  const { id } = await credits.hold({ ...chat, credits: 30, budget: 'ann' })
  t.strictSame(await heard(), [
    { userId: 'acme', budget: 'ann', period: 'day', limit: 50, used: 10, held: 30, left: 10, ...reset, threshold: 10 },
    { userId: 'acme', budget: 'ann', period: 'day', limit: 50, used: 10, held: 30, left: 10, ...reset, threshold: '50%' }
  ], 'of every level')
  await credits.deduct({ ...chat, credits: 5, budget: 'key:1' })
  t.strictSame(await heard(), [], 'it was there before')
  await credits.release(id)
  await credits.hold({ ...chat, credits: 11, budget: 'ann' })
  t.strictSame((await heard()).map(brief), ['ann day 50%: 24'], 'up and down again')
}, options)

ledgerTest('a limit in several periods, a template and a limit of 0', async (t, { credits }) => {
  await credits.setBudget('acme', 'key:*', { day: 30, week: 100, total: 200 })
  await credits.setBudget('acme', 'none', { day: 0, month: 2 ** 53 - 1 })
  const heard = hearLow(credits)
  await credits.deduct({ ...chat, credits: 25, budget: 'key:1' })
  t.strictSame((await heard()).map(brief), ['key:1 day 10: 5', 'key:1 day 50%: 5'], 'from the limit of a budget that it makes')
  await credits.deduct({ userId: 'acme', operation: 'chat', usage: { words: 0 }, budget: 'none' })
  await t.rejects(credits.deduct({ ...chat, credits: 1, budget: 'none' }))
  t.strictSame(await heard(), [], 'what costs nothing, or is refused, lets nothing fall')
  await credits.setBudget('acme', 'key:1', { day: 26 })
  t.strictSame(await heard(), [], 'setting a budget is no charge')
}, { ...options, prices: { chat: { per: { words: 1 } } } })

ledgerTest('a charge that begins a period is told of from the whole limit on', async (t, { credits, at }) => {
  await setThree(credits, [{ month: 1000 }, {}, { day: 20 }])
  const heard = hearLow(credits)
  await credits.deduct({ ...chat, credits: 15, budget: 'key:1' })
  await at('2030-01-02T00:00:00Z')
  await credits.deduct({ ...chat, credits: 15, budget: 'key:1' })
  const [, , again] = await heard()
  t.match(again, { budget: 'key:1', threshold: '50%', used: 15, resetsAt: new Date('2030-01-02') })
  await at('2030-01-03T00:00:00Z')
  await credits.hold({ ...chat, credits: 9, budget: 'key:1' })
  t.strictSame(await heard(), [])
  await at('2030-01-03T00:10:00Z')
  await credits.hold({ ...chat, credits: 1, budget: 'key:1' })
  t.strictSame((await heard()).map(brief), ['key:1 day 10: 10', 'key:1 day 50%: 10'])
}, options)

ledgerTest('a capture lets a limit fall by what it takes beyond its hold', async (t, { credits, at, open }) => {
  await setThree(credits, [{ month: 1000 }, {}, { day: 40 }])
  const other = open(options) // has not made the holds, and has to find their account
  const heard = hearLow(credits, other)
  const hold = async () => (await credits.hold({ ...chat, credits: 8, budget: 'key:1', ttl: 1000 })).id
  const [whole, part, over, lapsed] = [await hold(), await hold(), await hold(), await hold()]
  await credits.release(lapsed)
  const [late] = [await hold()]
  t.strictSame((await heard()).map(brief), ['key:1 day 10: 8', 'key:1 day 50%: 16', 'key:1 day 10: 8'].sort())
  await credits.capture(whole)
  await other.capture(part, { credits: 3 })
  t.strictSame(await heard(), [])
  await credits.setBudget('acme', 'key:1', { within: 'ann', day: 60 })
  await other.capture(over, { credits: 29 })
  t.strictSame((await heard()).map(brief), ['key:1 day 50%: 12'])
  await at('2030-01-01T00:00:01Z')
  await Promise.all([other.capture(late), other.deduct({ ...chat, credits: 1 }), other.deduct({ ...chat, userId: 'bob', credits: 1 })])
  t.strictSame((await heard()).map(brief), [], 'what lapsed was given back')
  await other.deduct({ ...chat, credits: 2, budget: 'key:1' })
  t.strictSame((await heard()).map(brief), ['key:1 day 10: 10'])
  await other.close()
}, options)

ledgerTest('a listener is called after the caller, also of calls that share a statement', async (t, { credits }) => {
  await credits.setBudget('acme', 'a', { day: 100 })
  const seen: string[] = []
  credits.on('budget_low', ({ threshold }) => { seen.push(`${threshold}`) })
  const deduct = async (cost: number) => {
    await credits.deduct({ ...chat, credits: cost, budget: 'a' })
    seen.push('returned')
  }
  await deduct(60)
  await Promise.all([deduct(1), deduct(20), deduct(10)])
  await hear(credits, [])()
  t.strictSame(seen, ['returned', '50%', 'returned', 'returned', 'returned', '10'])
}, options)

ledgerTest('nobody is told on the client of the host, nor without thresholds, nor of what nobody hears', async (t, { credits, open, pool, transaction }) => {
  await credits.setBudget('acme', 'a', { day: 10 })
  const heard = hearLow(credits)
  await transaction('commit', async client => {
    await credits.deduct({ ...chat, credits: 5, budget: 'a', client })
    await credits.capture((await credits.hold({ ...chat, credits: 1, budget: 'a', client })).id, { credits: 2, client })
  })
  t.strictSame(await heard(), [])
  const plain = open({ allowance: 1000 })
  const none = hearLow(plain)
  await plain.deduct({ ...chat, credits: 3, budget: 'a' })
  t.strictSame(await none(), [])
  const counted = async (tell: boolean) => {
    await credits.setBudget('acme', 'b', {})
    await credits.setBudget('acme', 'b', { day: 10, total: 20 })
    const { rows } = await pool.query("select counted from ai_credit_deduct(7, 'acme', 6, 'chat', '{}', null, null, null, 'b', '{\"credits\": 1000}', null, $1)", [tell])
    return JSON.parse(rows[0].counted)
  }
  t.equal(await counted(false), null, 'then nothing is made of it')
  t.strictSame(await counted(true), [['acme', 'b', 'day', 10, 6, 0, 0, '2030-01-02T00:00:00.000Z'], ['acme', 'b', 'total', 20, 6, 0, 0, null]])
  await plain.close()
}, options)

// The limits of the account's budgets, by budget and period.
async function limitsOf (credits: Credits) {
  const { entries } = await credits.budgets('acme', { limit: 1000 })
  return new Map(entries.flatMap((entry: Budget) => (Object.keys(entry.limits) as Array<keyof Budget['limits']>).map(period => {
    const [limit, used, held] = [entry.limits[period]!, entry.used[period]!, entry.held]
    return [`${entry.budget} ${period}`, { limit, left: limit - used - held, held, resetsAt: entry.resetsAt[period] }]
  })))
}

ledgerTest('whatever a charge is: what is told is what the budgets before and after it say', async (t, { credits, open, at }) => {
  await setThree(credits, [{ month: 1500, total: 9000 }, { day: 120, week: 400 }, { day: 40 }])
  const ledgers = [credits, open(options)]
  const heard = hearLow(...ledgers)
  let seed = 11
  const random = (below: number) => {
    seed = (seed * 48271) % 2147483647
    return seed % below
  }
  const holds: string[] = []
  let time = Date.parse(start)
  let crossings = 0
  for (let step = 0; step < 250; step++) {
    const ledger = ledgers[random(2)]!
    const input = { ...chat, budget: ['key:1', 'key:2', 'ann', 'team'][random(4)]!, credits: 1 + random(14) }
    if (random(6) === 0) await at(new Date(time += (1 + random(20)) * 3_600_000).toISOString())
    await credits.balance('acme') // does what is due
    const kind = random(8)
    const before = await limitsOf(credits)
    const call = async () => {
      if (kind < 3) return await ledger.deduct(input)
      if (kind < 5) return holds.push((await ledger.hold({ ...input, ttl: 86_400_000 })).id)
      const [id] = holds.splice(random(holds.length), 1)
      if (id === undefined) return
      return kind < 7 ? await ledger.capture(id, { credits: 1 + random(25), final: random(3) > 0 }) : await ledger.release(id)
    }
    await call().catch(error => t.match(error.code, /BUDGET_EXCEEDED|HOLD_CLOSED/))
    const after = await limitsOf(credits)
    const expected = [...after].flatMap(([name, { limit, left }]) => {
      const was = before.get(name)?.left ?? limit
      return [[10, 10] as const, ['50%', limit / 2] as const].filter(([, level]) => was > level && left <= level).map(([threshold]) => `${name} ${threshold}: ${left}`)
    })
    const told = (await heard()).map(brief)
    crossings += told.length
    t.strictSame(told.sort(), expected.sort(), `step ${step}`)
  }
  t.ok(crossings > 25, `${crossings} crossings`)
}, { ...options, allowance: 100_000 })

t.test('4 ledgers charge one tree of budgets at once: each crossing is told of once', { skip: pglite }, async t => {
  const connectionString = await createLedgerDatabase(t)
  const ledgers = Array.from({ length: 4 }, () =>
    createLedger(createPool(t, connectionString, { max: 4 }), { allowance: 1_000_000, timeout: 60_000, budgetLow: [0, 10, '25%', '50%', '90%'] }))
  const first = ledgers[0]!
  await first.setBudget('acme', 'team', { month: 1000, total: 1_000_000 })
  for (const member of ['ann', 'bob']) {
    await first.setBudget('acme', member, { within: 'team', day: 600 })
    await first.setBudget('acme', `key-${member}:*`, { within: member, day: 130 })
  }
  const heard = hearLow(...ledgers)
  await Promise.allSettled(ledgers.flatMap((credits, process) => Array.from({ length: 300 }, async (_, n) => {
    const member = n % 2 ? 'ann' : 'bob'
    const input = { ...chat, credits: 1, budget: n % 7 === 0 ? 'team' : n % 5 === 0 ? member : `key-${member}:${n % 6}` }
    if (n % 3 > 0) return await credits.deduct(input)
    const { id } = await credits.hold(input)
    if (process % 2 === 0) await ledgers[(process + 1) % 4]!.capture(id) // takes what it holds, and so lets nothing fall
  })))
  const limits = await limitsOf(first)
  const expected = [...limits].filter(([name]) => !name.includes('*')).flatMap(([name, { limit, left }]) =>
    [[0, 0], [10, 10], ['25%', limit / 4], ['50%', limit / 2], ['90%', limit * 0.9]].flatMap(([threshold, level]) =>
      left <= (level as number) ? [`${name} ${threshold}`] : []))
  const told = (await heard()).map(event => order(event))
  t.ok(limits.get('team month')!.left <= 100, `the team has ${limits.get('team month')!.left} left`)
  t.ok(expected.length > 20, `${expected.length} crossings`)
  t.strictSame(told.sort(), expected.sort())
  for (const ledger of ledgers) await ledger.close()
})
