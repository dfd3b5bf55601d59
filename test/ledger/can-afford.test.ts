// canAfford: whether a deduct would be accepted, with nothing spent.
import { deepStrictEqual } from 'node:assert'
import fc from 'fast-check'
import t, { type Test } from 'tap'
import { createLedger, type Credits, type DeductInput, type Ledger, type PricedDeductInput } from '../../src/index.js'
import { ledgerTest, start } from '../helper/clocked-ledger.js'
import { createLedgerDatabase, createPool, pglite } from '../helper/database.js'
import { hear } from '../helper/hear.js'
import { dumpRows } from '../helper/schema-dump.js'

const chat = { userId: 'ann', operation: 'chat' }
const balance = (total: number, used: number, held = 0) => ({ available: total - used - held, total, used, held })

ledgerTest('it says what a deduct would say, and the balance as it is', async (t, { credits }) => {
  await credits.deduct({ ...chat, credits: 30 })
  t.strictSame(await credits.canAfford({ ...chat, credits: 70, metadata: { words: 3 } }), {
    ...chat, credits: 70, affordable: true, replayed: false, balance: balance(100, 30), refusal: null
  })
  const { refusal, ...rest } = await credits.canAfford({ ...chat, credits: 71 })
  t.strictSame(rest, { ...chat, credits: 71, affordable: false, replayed: false, balance: balance(100, 30) })
  t.match(refusal, {
    statusCode: 402,
    code: 'FST_CREDITS_INSUFFICIENT',
    message: 'Insufficient credits: 71 required, 70 available',
    credits: balance(100, 30),
    required: 71
  })
  t.match(await credits.canAfford({ operation: 'chat', credits: 100 }), { userId: 'default_user', affordable: true })
})

ledgerTest('a budget refuses as it would refuse the deduct', async (t, { credits }) => {
  await credits.setBudget('ann', 'team', { month: 50 })
  await credits.setBudget('ann', 'key:*', { within: 'team', day: 20 })
  await credits.hold({ ...chat, credits: 15, budget: 'key:1' })
  t.match(await credits.canAfford({ ...chat, credits: 5, budget: 'key:1' }), { affordable: true, refusal: null })
  t.match(await credits.canAfford({ ...chat, credits: 6, budget: 'key:1' }), {
    affordable: false,
    balance: balance(100, 0, 15),
    refusal: { code: 'FST_CREDITS_BUDGET_EXCEEDED', budget: 'key:1', period: 'day', limit: 20, used: 0, held: 15, required: 6, resetsAt: new Date('2030-01-02') }
  })
  t.match(await credits.canAfford({ ...chat, credits: 36, budget: 'key:2' }), { refusal: { budget: 'team', held: 15 } })
  t.match(await credits.canAfford({ ...chat, credits: 86, budget: 'team' }), { refusal: { code: 'FST_CREDITS_INSUFFICIENT' } })
  t.strictSame((await credits.budgets('ann')).entries.map(({ budget }) => budget), ['key:*', 'key:1', 'team'], 'none is made')
  await t.rejects(credits.canAfford({ ...chat, credits: 1, budget: 'nobody' }), { code: 'FST_CREDITS_NOT_FOUND', message: 'There is no such budget' })
})

ledgerTest('a key that was used replays, or conflicts', async (t, { credits }) => {
  const job = { ...chat, credits: 60, idempotencyKey: 'job' }
  t.match(await credits.canAfford(job), { affordable: true, replayed: false })
  await credits.deduct(job)
  await credits.deduct({ ...chat, credits: 10 })
  t.strictSame(await credits.canAfford(job), {
    ...chat, credits: 60, affordable: true, replayed: true, balance: balance(100, 60), refusal: null
  }, 'although the balance no longer covers it')
  await t.rejects(credits.canAfford({ ...job, credits: 1 }), { code: 'FST_CREDITS_IDEMPOTENCY_CONFLICT' })
  await t.rejects(credits.canAfford({ ...job, budget: 'nobody' }), { code: 'FST_CREDITS_IDEMPOTENCY_CONFLICT' })
})

ledgerTest('by usage it has the price of the deduct', async (t, { credits, open }) => {
  const words = (words: number, more = {}) => ({ userId: 'ann', operation: 'write', usage: { words }, ...more })
  t.match(await credits.canAfford(words(50)), { affordable: true, credits: 100 })
  t.match(await credits.canAfford(words(51)), { affordable: false, credits: 102, refusal: { required: 102 } })
  t.match(await credits.canAfford(words(0)), { affordable: true, credits: 0 })
  await credits.deduct(words(5, { idempotencyKey: 'k' }))
  const dearer = open({ allowance: 100, prices: { write: { per: { words: 3 } } } })
  t.match(await dearer.canAfford(words(5, { idempotencyKey: 'k' })), { credits: 10, replayed: true }, 'a replay has the credits of the original')
  await t.rejects(credits.canAfford({ ...words(1), operation: 'chat' }), { code: 'FST_CREDITS_NO_PRICE' })
  await dearer.close()
}, { prices: { write: { per: { words: 2 } } } })

ledgerTest('what a deduct refuses as malformed, it refuses in the same words', async (t, { credits, pool }) => {
  const inputs: any[] = [
    undefined, null, [], {}, { operation: 'chat' }, { credits: 1 }, { ...chat, credits: 0 }, { ...chat, credits: '1' }, { ...chat, credits: 1, usage: {} },
    { ...chat, userId: '', credits: 1 }, { ...chat, credits: 1, metadata: [] }, { ...chat, credits: 1, idempotencyKey: '' },
    { ...chat, credits: 1, budget: 'key:*' }, { ...chat, credits: 1, client: {} }, { ...chat, credits: 1, user_id: 'ann' },
    { ...chat, usage: { words: 1 } }, { userId: '', operation: 'none', usage: {} }
  ]
  for (const input of inputs) {
    const [one, other] = [await credits.deduct(input).catch(error => error), await credits.canAfford(input).catch(error => error)]
    t.ok(one instanceof Error)
    t.strictSame(told(other), told(one), one.message)
  }
  t.strictSame((await pool.query('select user_id from ai_credits')).rows, [], 'no account was made')
})

ledgerTest('what is due is done first, as by any read, and listeners hear of that alone', async (t, { credits, at }) => {
  await credits.hold({ ...chat, credits: 90, ttl: 1000 })
  const heard = hear(credits)
  t.match(await credits.canAfford({ ...chat, credits: 11 }), { affordable: false })
  t.strictSame(await heard(), [])
  await at('2030-01-01T00:00:01.000Z')
  t.match(await credits.canAfford({ ...chat, credits: 100 }), { affordable: true, balance: balance(100, 0) })
  t.match(await heard(), [['lapsed', { credits: 90 }]])
  t.match(await credits.canAfford({ userId: 'new', operation: 'chat', credits: 100 }), { affordable: true }, 'an account is made when it is named')
  t.match(await credits.reconcile(), { accounts: 3 })
})

ledgerTest('on the client of the host it sees what the transaction has done', async (t, { credits, transaction }) => {
  await transaction('rollback', async client => {
    await credits.setBudget('ann', 'a', { day: 50 }, { client })
    await credits.deduct({ ...chat, credits: 30, budget: 'a', client })
    t.match(await credits.canAfford({ ...chat, credits: 20, budget: 'a', client }), { affordable: true, balance: balance(100, 30) })
    t.match(await credits.canAfford({ ...chat, credits: 21, budget: 'a', client }), { refusal: { budget: 'a', used: 30 } })
  })
  t.match(await credits.canAfford({ ...chat, credits: 100 }), { affordable: true })
})

// An error without what differs between two of them.
function told (error: any) {
  return { ...error, name: error.constructor.name, message: error.message }
}

const budgets = ['team', 'ann', 'key:1', 'key:2', 'other:1', undefined]
const periods = ['day', 'week', 'month', 'total'] as const

// What happens to an account, and charges that aim at what is left: of the account, or of the budget of this number.
const steps = fc.array(fc.oneof(
  {
    weight: 6,
    arbitrary: fc.record({
      step: fc.constant('charge' as const),
      aim: fc.constantFrom('account', 'budget', 'little'),
      off: fc.integer({ min: -1, max: 1 }),
      budget: fc.constantFrom(...budgets),
      key: fc.constantFrom(undefined, undefined, 'k1', 'k2', 'k3'),
      again: fc.boolean(), // the same as the last charge with this key
      byUsage: fc.boolean()
    })
  },
  fc.record({ step: fc.constant('budget' as const), name: fc.constantFrom('team', 'ann', 'key:*', 'key:1'), period: fc.constantFrom(...periods), amount: fc.integer({ min: 0, max: 60 }) }),
  fc.record({ step: fc.constant('remove' as const), name: fc.constantFrom('key:*', 'key:1', 'ann') }),
  fc.record({ step: fc.constant('overdraft' as const), credits: fc.constantFrom(0, 5, 20) }),
  fc.record({ step: fc.constant('hold' as const), credits: fc.integer({ min: 1, max: 12 }), budget: fc.constantFrom(...budgets), ttl: fc.constantFrom(1000, 86_400_000) }),
  fc.record({ step: fc.constant('capture' as const), credits: fc.integer({ min: 1, max: 25 }) }),
  fc.record({ step: fc.constant('grant' as const), credits: fc.integer({ min: 1, max: 50 }) }),
  fc.record({ step: fc.constant('pass' as const), hours: fc.constantFrom(1, 24, 24 * 7, 24 * 31) })
), { minLength: 15, maxLength: 30 })

type Step = typeof steps extends fc.Arbitrary<Array<infer Each>> ? Each : never
type Input = DeductInput | PricedDeductInput
type Charge = Extract<Step, { step: 'charge' }>

// Steps that come to every verdict, whatever the random ones come to.
const everyVerdict: Step[] = ([
  { key: 'k1' }, { key: 'k1', again: true }, { key: 'k1', off: 1 }, // accepted, replayed, a conflict
  { aim: 'account', budget: 'key:1' }, { aim: 'account', off: 1 }, { budget: 'other:1' } // above a budget, above the balance, no such budget
] as Array<Partial<Charge>>).map(charge =>
  ({ step: 'charge', aim: 'little', off: 0, budget: undefined, key: undefined, again: false, byUsage: false, ...charge }))

ledgerTest('it is right about the deduct that comes next, and writes nothing that a read would not write', async (t, { credits, pool, at }) => {
  let time = Date.parse(start)
  let accounts = 0
  const said: Record<string, number> = {}
  const apply = async (userId: string, holds: string[], step: Exclude<Step, Charge>) => {
    switch (step.step) {
      case 'budget': return await credits.setBudget(userId, step.name, {
        ...step.name !== 'team' && { within: step.name === 'ann' ? 'team' : 'ann' }, [step.period]: step.amount
      })
      case 'remove': return await credits.removeBudget(userId, step.name)
      case 'overdraft': return await credits.setOverdraft(userId, step.credits)
      case 'hold': {
        const { credits: held, ttl, budget } = step
        return holds.push((await credits.hold({ userId, operation: 'chat', credits: held, ttl, ...budget !== undefined && { budget } })).id)
      }
      case 'capture': return holds.length > 0 && await credits.capture(holds.shift()!, { credits: step.credits })
      case 'grant': return await credits.grant({ userId, credits: step.credits, expiresAt: new Date(time + 3 * 86_400_000) })
      case 'pass': return await at(new Date(time += step.hours * 3_600_000).toISOString())
    }
  }
  await fc.assert(fc.asyncProperty(steps, async steps => {
    const userId = `user ${++accounts}`
    const holds: string[] = []
    const keyed = new Map<string, Input>()
    await credits.setBudget(userId, 'team', { month: 60 })
    await credits.setBudget(userId, 'ann', { within: 'team', day: 30 })
    await credits.setBudget(userId, 'key:*', { within: 'ann', day: 15, total: 100 })
    for (const step of steps) {
      if (step.step !== 'charge') {
        await apply(userId, holds, step).catch(error => error)
        continue
      }
      const { key, again } = step
      await credits.balance(userId) // does what is due
      const input = (again && keyed.get(key ?? '')) || await inputOf(credits, userId, step)
      if (key !== undefined) keyed.set(key, input)
      const before = await dumpRows(pool)
      const foreseen = await credits.canAfford(input).catch(error => error)
      if (await dumpRows(pool) !== before) throw new Error('canAfford has written something')
      const outcome = await credits.deduct(input).catch(error => error)
      const verdict = agreed(foreseen, outcome)
      said[verdict] = (said[verdict] ?? 0) + 1
    }
  }), { numRuns: pglite ? 5 : 40, examples: [[everyVerdict]], endOnFailure: true })
  const verdicts = ['accepted', 'replayed', 'FST_CREDITS_BUDGET_EXCEEDED', 'FST_CREDITS_INSUFFICIENT', 'FST_CREDITS_NOT_FOUND', 'FST_CREDITS_IDEMPOTENCY_CONFLICT']
  t.ok(verdicts.every(verdict => said[verdict]! > 0), JSON.stringify(said))
}, { allowance: 80, prices: { write: { per: { words: 1 } } } })

// A charge of about as much as is left.
async function inputOf (credits: Credits, userId: string, { aim, off, budget, key, byUsage }: Charge): Promise<Input> {
  const { available } = await credits.balance(userId)
  const { entries } = await credits.budgets(userId)
  const left = entries.filter(entry => aim === 'budget' && entry.budget === (budget?.replace(/:.*/, ':*') ?? 'team'))
    .flatMap(({ limits, used, held }) => Object.values(limits).map((limit, n) => limit - Object.values(used)[n]! - held))
  const cost = Math.max(byUsage ? 0 : 1, (aim === 'account' ? available : Math.min(...left, 4)) + off)
  return {
    userId,
    operation: 'write',
    ...byUsage ? { usage: { words: cost } } : { credits: cost },
    ...budget !== undefined && { budget },
    ...key !== undefined && { idempotencyKey: key }
  }
}

// Compares what was foreseen with what came, and returns the verdict.
function agreed (foreseen: any, outcome: any): string {
  if (foreseen instanceof Error || foreseen.refusal !== null) {
    const error = foreseen.refusal ?? foreseen
    deepStrictEqual(told(outcome), told(error))
    if (foreseen.affordable !== undefined) deepStrictEqual([foreseen.affordable, foreseen.balance], [false, error.credits])
    return error.code
  }
  const { affordable, balance: now, credits, replayed } = foreseen
  const { balance: after } = outcome
  deepStrictEqual([affordable, credits, replayed], [true, outcome.credits, outcome.replayed])
  deepStrictEqual(now, replayed ? after : { ...after, available: after.available + credits, used: after.used - credits })
  return replayed ? 'replayed' : 'accepted'
}

async function openLedgers (t: Test, number: number): Promise<Ledger[]> {
  const connectionString = await createLedgerDatabase(t)
  return Array.from({ length: number }, () =>
    createLedger(createPool(t, connectionString, { max: 4 }), { allowance: 1_000_000, timeout: 60_000 }))
}

t.test('while others charge, what it says is of one moment', { skip: pglite }, async t => {
  const ledgers = await openLedgers(t, 4)
  const [first] = ledgers as [Ledger]
  await first.setBudget('ann', 'team', { total: 1000 })
  const charges = ledgers.slice(1).map(async ledger => {
    for (let round = 0; round < 150; round++) {
      const { id } = await ledger.hold({ ...chat, credits: 3, budget: 'team' })
      await Promise.all([ledger.capture(id, { credits: 1 }), ledger.deduct({ ...chat, credits: 1, budget: 'team' })])
    }
  })
  const ends = Promise.all(charges).then(() => 'done')
  const torn: unknown[] = []
  let asked = 0
  for (; await Promise.race([ends, undefined]) !== 'done'; asked++) {
    const { refusal, balance } = await first.canAfford({ ...chat, credits: 1001, budget: 'team' })
    const { used, held } = refusal as any
    if (used !== balance.used || held !== balance.held) torn.push([used, held, balance])
  }
  t.strictSame(torn, [], `of ${asked}`)
  t.match(await first.canAfford({ ...chat, credits: 100, budget: 'team' }), { affordable: true, balance: { used: 900, held: 0 } })
  for (const ledger of ledgers) await ledger.close()
})

t.test('it waits for no account that is locked', { skip: pglite }, async t => {
  const pool = createPool(t, await createLedgerDatabase(t))
  const [ledger, other] = [createLedger(pool), createLedger(pool)]
  await ledger.setBudget('ann', 'a', { day: 10 })
  const client = await pool.connect()
  await client.query('begin')
  await other.deduct({ ...chat, credits: 10, budget: 'a', client })
  const waiting = t.rejects(ledger.deduct({ ...chat, credits: 1, budget: 'a' }), { code: 'FST_CREDITS_BUDGET_EXCEEDED' })
  t.match(await ledger.canAfford({ ...chat, credits: 10, budget: 'a', idempotencyKey: 'k' }), { affordable: true }, 'what is committed counts')
  await client.query('commit')
  client.release()
  await waiting
  t.match(await ledger.canAfford({ ...chat, credits: 1, budget: 'a' }), { affordable: false })
  for (const one of [ledger, other]) await one.close()
})
