// needs a real server
// Budgets under many calls at once, from several processes, and in shared statements.
import type pg from 'pg'
import t, { type Test } from 'tap'
import type { Credits, Ledger } from '../../src/index.js'
import { createLedger } from '../../src/index.js'
import { citus, useTimeZone } from '../helper/citus.js'
import { ledgerTest } from '../helper/clocked-ledger.js'
import { createLedgerDatabase, createPool } from '../helper/database.js'
import { startProcesses } from '../helper/processes.js'

const charge = { userId: 'acme', credits: 1, operation: 'chat' }

// Ledgers with a pool each, like several processes.
async function openLedgers (t: Test, number: number) {
  const connectionString = await createLedgerDatabase(t)
  const pools = Array.from({ length: number }, () => createPool(t, connectionString, { max: 4 }))
  const ledgers = pools.map(pool => createLedger(pool, { allowance: 1_000_000, timeout: 60_000 }))
  return { pool: pools[0]!, ledgers, first: ledgers[0]! }
}

async function settle<T> (calls: Promise<T>[]) {
  const outcomes = await Promise.allSettled(calls)
  const accepted = outcomes.flatMap(outcome => outcome.status === 'fulfilled' ? [outcome.value] : [])
  const errors = outcomes.flatMap(outcome => outcome.status === 'rejected' ? [outcome.reason] : [])
  return { accepted, errors }
}

async function usedOf (credits: Credits) {
  const { entries } = await credits.budgets('acme', { limit: 1000 })
  return Object.fromEntries(entries.map(({ budget, used, held }) => [budget, [...Object.values(used), held]]))
}

// Looks at the budgets again and again until it is told to end: no limit is passed, and each counts what those within it count.
function watch (t: Test, pool: pg.Pool) {
  const ended = new AbortController()
  const looking = look()
  return {
    async end () {
      ended.abort()
      return await looking
    }
  }

  async function look () {
    let looks = 0
    for (; !ended.signal.aborted; looks++) {
      const { rows } = await pool.query(`
        select kept.budget, kept.held::int, period, (limited).amount::int, (limited).used::int,
          (select sum(spent.credits_used)::int from ai_credit_usage spent
            where spent.user_id = kept.user_id and kept.budget = any (budgets)) as recorded
        from ai_credit_budgets kept, lateral (values ('day', day), ('week', week), ('month', month), ('total', total)) as each (period, limited)
        where (limited).amount is not null`)
      for (const { budget, held, period, amount, used, recorded } of rows) {
        if (used + held > amount) t.fail(`${period} of ${budget} has passed its limit: ${used}, ${held}`)
        if (used !== (recorded ?? 0)) t.fail(`${budget} has used ${used}, and its records come to ${recorded}`)
      }
    }
    return looks
  }
}

async function end (t: Test, ledgers: Ledger[]) {
  t.match(await ledgers[0]!.reconcile(), { ok: true, differences: [] }, 'every account reconciles')
  for (const { close } of ledgers) await close()
}

t.test('4 processes, 200 calls at once of each, three levels: exactly those that fit pass', async t => {
  const { ledgers, first } = await openLedgers(t, 4)
  await first.setBudget('acme', 'team', { month: 300 })
  for (const [member, day] of [['ann', 100], ['bob', 150], ['cid', 1000]] as const) {
    await first.setBudget('acme', `member:${member}`, { within: 'team', day })
    await first.setBudget('acme', `key-${member}:*`, { within: `member:${member}`, day: 40, total: 1000 })
  }
  const calls = ledgers.flatMap((credits, process) => Array.from({ length: 200 }, async (_, n) => {
    const member = ['ann', 'bob', 'cid'][n % 3]
    const input = { ...charge, budget: `key-${member}:${n % 5}`, operation: `${process}` }
    return n % 4 === 3 ? await credits.hold(input) : await credits.deduct(input)
  }))
  const { accepted, errors } = await settle(calls)
  t.equal(accepted.length, 300, 'the team has no credit left, and not one less')
  for (const error of errors) {
    const { code, budget, period, limit, used, held } = error
    t.equal(code, 'FST_CREDITS_BUDGET_EXCEEDED')
    if (used + held > limit) t.fail(`${budget} has passed its limit`)
    if (used + held + 1 <= limit) t.fail(`${budget} would have had room`)
    const expected = budget === 'team' ? ['month', 300] : budget.startsWith('member') ? ['day', budget === 'member:ann' ? 100 : 150] : ['day', 40]
    t.strictSame([period, limit], expected)
  }
  const used = await usedOf(first)
  t.equal(used['team']!.reduce((sum, count) => sum + count), 300)
  for (const [budget, counts] of Object.entries(used)) {
    if (!budget.endsWith('*') && budget.startsWith('key')) t.ok(counts.at(-1)! + counts[0]! <= 40, budget)
  }
  await end(t, ledgers)
})

t.test('4 processes, 200 calls at once of each: at no moment is a limit passed, and a refusal says which, how much and until when', async t => {
  const inProcesses = await startProcesses(t, 4)
  const connectionString = await createLedgerDatabase(t)
  const pool = createPool(t, connectionString, { max: 2 })
  if (citus !== undefined) await useTimeZone(pool, 'Europe/Berlin')
  const credits = createLedger(pool, { allowance: 1_000_000, timeout: 60_000, timeZone: 'Europe/Berlin' })
  await credits.migrate()
  await credits.setBudget('acme', 'team', { month: 300 })
  for (const [member, limits] of [['ann', { day: 100 }], ['bob', { week: 150 }], ['cid', { total: 1000 }]] as const) {
    await credits.setBudget('acme', `member:${member}`, { within: 'team', ...limits })
    await credits.setBudget('acme', `${member}:*`, { within: `member:${member}`, day: 40 })
  }
  const calls = Array.from({ length: 200 }, (_, n) => ({ ...charge, budget: `${['ann', 'bob', 'cid'][n % 3]}:${n % 5}` }))
  const reader = watch(t, pool)
  const outcomes = (await inProcesses(Array.from({ length: 4 }, () => ({ connectionString, calls, options: { timeZone: 'Europe/Berlin' } })))).flat()
  t.ok(await reader.end() > 5, 'it was looked at all the while')
  const refusals = outcomes.flatMap(({ error }) => error ?? [])
  t.equal(outcomes.length - refusals.length, 300)
  const { entries } = await credits.budgets('acme')
  t.match(entries.find(({ budget }) => budget === 'team'), { used: { month: 300 } })
  for (const { code, period, budget, limit, used, held, resetsAt } of refusals) {
    const { limits, resetsAt: resets } = entries.find(entry => entry.budget === budget)!
    const [[expectedPeriod, expectedLimit]] = Object.entries(limits) as [[keyof typeof resets, number]]
    const reset = resets[expectedPeriod]!.toISOString()
    t.strictSame([code, period, limit, used, held, resetsAt],
      ['FST_CREDITS_BUDGET_EXCEEDED', expectedPeriod, expectedLimit, expectedLimit, 0, reset], budget as string)
    t.notOk(reset.endsWith('T00:00:00.000Z'), 'the days are those of Berlin')
  }
  await end(t, [credits])
})

t.test('from a pool of one connection', async t => {
  const pool = createPool(t, await createLedgerDatabase(t), { max: 1 })
  const credits = createLedger(pool, { allowance: 1_000_000, timeout: 60_000 })
  await credits.setBudget('acme', 'team', { total: 50 })
  await credits.setBudget('acme', 'key:*', { within: 'team', day: 20 })
  const { accepted } = await settle(Array.from({ length: 200 }, async (_, n): Promise<object> => {
    const input = { ...charge, budget: `key:${n % 4}` }
    if (n % 10 === 9) await Promise.all([credits.budgets('acme'), credits.history('acme', { budget: 'team' })])
    return n % 3 === 0 ? await credits.hold(input) : await credits.deduct(input)
  }))
  t.equal(accepted.length, 50)
  t.equal((await usedOf(credits))['team']!.reduce((sum, count) => sum + count), 50)
  await end(t, [credits])
})

t.test('what hosts roll back, while others charge, counts nowhere', async t => {
  const { ledgers, first, pool } = await openLedgers(t, 4)
  await first.setBudget('acme', 'team', { total: 60 })
  await first.setBudget('acme', 'key:*', { within: 'team', day: 1000 })
  const hosts = Array.from({ length: 20 }, async (_, n) => {
    const client = await pool.connect()
    await client.query('begin')
    await first.deduct({ ...charge, credits: 5, budget: `key:${n}`, client }).catch(error => error)
    await first.hold({ ...charge, credits: 5, budget: 'team', client }).catch(error => error)
    await client.query(n % 2 === 0 ? 'commit' : 'rollback')
    client.release()
  })
  const others = ledgers.flatMap(credits => Array.from({ length: 30 }, (_, n) => credits.deduct({ ...charge, budget: `key:${n}` })))
  const reader = watch(t, createPool(t, pool.options.connectionString!, { max: 1 }))
  await Promise.all([...hosts, settle(others)])
  await reader.end()
  const { errors } = await settle([first.deduct({ ...charge, budget: 'team', credits: 61 })])
  const { used, held } = errors[0]
  t.ok(used + held > 55 && used + held <= 60, `${used} used, ${held} held`)
  await end(t, ledgers)
})

t.test('200 first uses at once of names under a template: each obeys it', async t => {
  const { ledgers, first, pool } = await openLedgers(t, 4)
  await first.setBudget('acme', 'key:*', { day: 3 })
  const { accepted, errors } = await settle(ledgers.flatMap(credits => Array.from({ length: 200 }, (_, n) =>
    credits.deduct({ ...charge, credits: 2, budget: `key:${n}` }))))
  t.equal(accepted.length, 200)
  t.ok(errors.every(({ budget, used }) => budget.startsWith('key:') && used === 2))
  const { rows } = await pool.query('select count(*)::int as budgets, max((day).used)::int as most from ai_credit_budgets')
  t.match(rows, [{ budgets: 201, most: 2 }])
  const one = await settle(ledgers.flatMap(credits => Array.from({ length: 50 }, () => credits.deduct({ ...charge, budget: 'key:one' }))))
  t.equal(one.accepted.length, 3)
  await end(t, ledgers)
})

ledgerTest('a shared statement answers for each call, and says which limits refused', async (t, { credits, pool }) => {
  await credits.setBudget('acme', 'team', { month: 50 })
  await credits.setBudget('acme', 'key:*', { within: 'team', day: 30 })
  const hold = '[1, "hold", null, 20, "chat", {}, 60000, null, null, null, null, "key:1"]'
  const deduct = (budget: string, credits: number) => `[1, "deduct", null, ${credits}, "chat", {}, null, null, null, null, null, "${budget}"]`
  const calls = [hold, hold, deduct('team', 30), deduct('key:2', 1), deduct('nobody', 1), '[1, "deduct", null, 1, "chat", {}]']
  const { rows: [row] } = await pool.query("select * from ai_credit_execute(7, 'acme', '{acme}', $1, '{\"credits\": 100}', false, null)", [`[${calls}]`])
  t.match(row.answers, /^\{1,\d+,100,0,20,\d+,10,0,100,0,20,\d+,1,\d+,100,30,20,10,0,100,30,20,5,0,100,30,20,1,\d+,100,31,20\}$/)
  t.strictSame(JSON.parse(row.refusals).map((refusal: string) => JSON.parse(refusal)), [
    { budget: 'key:1', period: 'day', limit: 30, used: 0, held: 20, resetsAt: '2030-01-02T00:00:00.000Z' },
    { budget: 'team', period: 'month', limit: 50, used: 30, held: 20, resetsAt: '2030-02-01T00:00:00.000Z' }
  ])
  t.strictSame(await usedOf(credits), { team: [30, 20], 'key:*': [0, 0], 'key:1': [0, 20] })
})

// The crowded account has more budgets than a statement reads before it looks for those of its calls.
ledgerTest('a call that goes alone and one that shares its statement have the same verdict, and write the same', async (t, { credits, pool, at }) => {
  let seed = 7
  const random = (below: number) => {
    seed = (seed * 48271) % 2147483647
    return seed % below
  }
  const users = ['alone', 'shared', 'crowded']
  await pool.query('insert into ai_credit_budgets (user_id, budget, made_seq) select \'crowded\', \'aa \' || n, 0 from generate_series(1, 200) n')
  for (const userId of users) {
    await credits.setBudget(userId, 'team', { day: 500, total: 1500 })
    await credits.setBudget(userId, 'ann', { within: 'team', week: 900 })
    await credits.setBudget(userId, 'key:*', { within: 'ann', day: 60 })
    await credits.setBudget(userId, 'free', {})
  }
  const budgets = ['team', 'ann', 'key:1', 'key:2', 'key:3', 'free', 'none', undefined]
  const holds: string[][] = [] // of the same hold of each user, its id
  for (let round = 0; round < 12; round++) {
    if (round % 4 === 3) await at(`2030-01-0${1 + round / 4 | 0}T18:00:00Z`)
    if (round % 2 === 1) for (const userId of users) await credits.removeBudget(userId, 'key:1').catch(error => error)
    const closing = holds.splice(0, 12)
    const calls = Array.from({ length: 40 }, () => ({ kind: random(10), budget: budgets[random(8)], cost: random(12) + 1, key: random(20) }))
    const run = (user: number) => calls.map(({ kind, budget, cost, key }) => async () => {
      const input = {
        userId: users[user]!,
        operation: 'chat',
        metadata: { key },
        ...budget !== undefined && { budget },
        ...key < 5 && { idempotencyKey: `${round} ${key}` }
      }
      if (kind < 4 && closing.length > 0) {
        const id = closing[(cost + key) % closing.length]![user]!
        return kind === 0 ? await credits.release(id) : await credits.capture(id, { credits: cost * 3, final: key % 2 === 0 })
      }
      if (kind < 7) return await credits.hold({ ...input, credits: cost, ttl: 86_400_000 })
      return kind < 8
        ? await credits.deduct({ ...input, usage: { n: cost - 1 } })
        : await credits.deduct({ ...input, credits: cost })
    })
    const alone = []
    for (const call of run(0)) alone.push(await call().catch(error => error))
    const together = await Promise.all([...run(1), ...run(2)].map(async call => await call().catch(error => error)))
    const [shared, crowded] = [together.slice(0, calls.length), together.slice(calls.length)]
    t.strictSame(shared.map(told), alone.map(told), `round ${round}`)
    t.strictSame(crowded.map(told), alone.map(told), `round ${round}, crowded`)
    alone.forEach((hold, n) => {
      if (hold.expiresAt !== undefined && !hold.replayed) holds.push([hold.id, shared[n].id, crowded[n].id])
    })
    const [one, ...others] = await Promise.all(users.map(async userId => await written(pool, userId)))
    for (const other of others) t.strictSame(other, one, `the rows of round ${round}`)
  }
}, { allowance: 2500, prices: { chat: { per: { n: 1 } } } })

// A result or an error, without what differs between two accounts.
function told (outcome: any) {
  const { id, userId, usageId, holdId, stack, ...rest } = outcome
  return { ...rest, message: outcome.message }
}

async function written (pool: any, userId: string) {
  const { rows } = await pool.query(`
    select 'budget' as kind, to_jsonb(kept) - 'user_id' as what from ai_credit_budgets kept where user_id = $1 and budget not like 'aa %'
    union all
    select 'record', jsonb_build_array(seq, kind, credits_used, metadata, budgets, total_after, used_after, held_after)
    from ai_credit_usage where user_id = $1
    union all
    select 'hold', jsonb_build_array(seq, state, credits, credits_left, budgets, closing_seq) from ai_credit_holds where user_id = $1
    order by 1, 2`, [userId])
  return rows.map(({ kind, what }: any) => [kind, JSON.parse(JSON.stringify(what, (name, value) => name === 'since_seq' ? undefined : value))])
}
