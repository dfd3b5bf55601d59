// not on Citus: counts what one server reads
// needs a real server
import type pg from 'pg'
import t, { type Test } from 'tap'
import { createLedger, type Ledger, type Queryable } from '../../src/index.js'
import { createLedgerDatabase, createPool } from '../helper/database.js'
import { readsOf } from '../helper/reads.js'

const ROUNDS = 700
const CALLS = 20
// The limits for one call on an account with 7000 postings. Each change of its first grant leaves a dead entry in two indexes.
// These entries are read until no older transaction runs on the server, not even in another database.
const ENOUGH = { rows: 50, entries: 15_000 }

const options = { allowance: 1_000_000, timeout: 60_000 }

const charge = { userId: 'ann', credits: 1, operation: 'chat' }

/** A call that uses what earlier calls of the round have made. */
interface Round { name: string, usageId: string, holdId: string, grantId: string, client?: Queryable }

const calls: Record<string, (ledger: Ledger, round: Round) => Promise<unknown>> = {
  deduct: async (ledger, { client }) => await ledger.deduct({ ...charge, client }),
  'deduct with a key': async (ledger, round) => {
    round.usageId = (await ledger.deduct({ ...charge, idempotencyKey: round.name, client: round.client })).id
  },
  'canAfford with a key': async (ledger, { name, client }) => await ledger.canAfford({ ...charge, idempotencyKey: name, client }),
  'deduct again': async (ledger, { name, client }) => await ledger.deduct({ ...charge, idempotencyKey: name, client }),
  'hold and release': async (ledger, { client }) => await ledger.release((await ledger.hold({ ...charge, client })).id, { client }),
  'hold with a key': async (ledger, round) => {
    round.holdId = (await ledger.hold({ ...charge, idempotencyKey: round.name, client: round.client })).id
  },
  extend: async (ledger, { holdId, client }) => await ledger.extend(holdId, { ttl: 900_000, client }),
  'capture in part': async (ledger, { holdId, client }) =>
    await ledger.capture(holdId, { credits: 1, final: false, idempotencyKey: 'part', client }),
  'capture again': async (ledger, { holdId, client }) =>
    await ledger.capture(holdId, { credits: 1, final: false, idempotencyKey: 'part', client }),
  capture: async (ledger, { holdId, client }) => await ledger.capture(holdId, { credits: 1, client }),
  refund: async (ledger, { usageId, client }) => await ledger.refund({ usageId, client }),
  'refund by key': async (ledger, { name, client }) => {
    await ledger.deduct({ ...charge, idempotencyKey: `${name} too`, client })
    await ledger.refund({ userId: 'ann', deductKey: `${name} too`, idempotencyKey: name, client })
  },
  'grant with a key': async (ledger, round) => {
    round.grantId = (await ledger.grant({ userId: 'ann', credits: 1, idempotencyKey: round.name, client: round.client })).id
  },
  revoke: async (ledger, { grantId, client }) => await ledger.revoke(grantId, { client }),
  'revoke while credits are held': async (ledger, { client }) => {
    const { id: holdId } = await ledger.hold({ ...charge, client })
    await ledger.revoke((await ledger.grant({ userId: 'ann', credits: 1, client })).id, { client })
    await ledger.release(holdId, { client })
  },
  balance: async (ledger, { client }) => client === undefined && await ledger.balance('ann'), // not in a transaction of the host
  history: async (ledger, { client }) => client === undefined && await ledger.history('ann'),
  statement: async (ledger, { client }) => await ledger.statement('ann', { limit: 10, client })
}

// A session plans its statements for the tables as they are at the first run.
for (const how of ['of the pool', 'of the host']) {
  t.test(`what a call reads does not grow with its account, in a session ${how} that began on empty tables`, async t => {
    const pool = createPool(t, await createLedgerDatabase(t), { max: 1 })
    const ledger = createLedger(pool, options)
    await ledger.migrate()
    await withoutAutovacuum(pool)
    await one(pool, ledger, how, rounds('first', 10), Object.keys(calls))
    const fillers = createLedger(createPool(t, pool.options.connectionString!), options)
    await Promise.all(rounds('filling', ROUNDS).map(async round => {
      for (const call of Object.values(calls)) await call(fillers, round)
    }))
    const last = rounds('last', CALLS)
    for (const name of Object.keys(calls)) {
      const { rows, entries, scans } = await readsOf(pool, async () => await one(pool, ledger, how, last, [name]))
      t.ok(rows / CALLS < ENOUGH.rows, `${name}: ${rows / CALLS} rows`)
      t.ok(entries / CALLS < ENOUGH.entries, `${name}: ${entries / CALLS} entries of indexes`)
      t.equal(scans, 0, `${name}: no table read as a whole`)
    }
  })
}

t.test('one plan serves all calls that share a statement, however many', async t => {
  const pool = createPool(t, await createLedgerDatabase(t), { max: 1 })
  await createLedger(pool, options).migrate()
  const { client, plans } = await watchPlans(t, pool)
  await client.query("select ai_credit_balance(7, 'ann', '{\"credits\": 100}', 1000)")
  for (const count of [1, 2, 20]) {
    const calls = Array.from({ length: count }, () => '[1, "deduct", null, 1, "chat", {}]')
    await client.query("select ai_credit_execute(7, 'ann', '{ann}', $1, '{\"credits\": 100}', false, null)", [`[${calls}]`])
  }
  const given = plans.flatMap(plan => /Function Call: jsonb_array_elements\((.*)\)/.exec(plan)?.[1] ?? [])
  t.equal(given.length, 3)
  t.ok(given.every(calls => /^\$\d+$/.test(calls)), 'it is for whatever calls there are')
})

t.test('one plan serves each charge with a budget that goes alone', async t => {
  const pool = createPool(t, await createLedgerDatabase(t), { max: 1 })
  const ledger = createLedger(pool, options)
  await ledger.migrate()
  for (const [budget, within] of [['team', undefined], ['ann', 'team'], ['key:*', 'ann']] as const) {
    await ledger.setBudget('ann', budget, { day: 1000, ...within !== undefined && { within } })
  }
  const { client, plans } = await watchPlans(t, pool)
  await ledger.deduct({ ...charge, budget: 'key:1', client })
  await ledger.deduct({ ...charge, budget: 'key:2', client })
  await t.rejects(ledger.deduct({ ...charge, credits: 1001, budget: 'key:2', client }), { code: 'FST_CREDITS_BUDGET_EXCEEDED' })
  const ofBudgets = plans.filter(plan => plan.includes('ai_credit_budgets'))
  t.ok(ofBudgets.length >= 9, `${ofBudgets.length} plans`)
  t.strictSame(ofBudgets.filter(plan => /key:[12]/.test(plan)), [], 'none is for one name')
})

t.test('one plan serves each history', async t => {
  const pool = createPool(t, await createLedgerDatabase(t), { max: 1 })
  const ledger = createLedger(pool, options)
  await ledger.migrate()
  await ledger.deduct(charge)
  const { client, plans } = await watchPlans(t, pool)
  for (const budget of [null, 'key:1']) {
    await client.query('select ai_credit_history(7, \'ann\', \'{"credits": 100}\', 1000, 30, 10, null, $1)', [budget])
  }
  const ofUsage = plans.filter(plan => /ai_credit_(usage|daily_usage|budget_usage)/.test(plan))
  t.ok(ofUsage.length >= 4, `${ofUsage.length} plans`)
  t.strictSame(ofUsage.filter(plan => /'(ann|key:1)'/.test(plan)), [], 'none is for one account')
})

// A session that tells the plans of what it runs.
async function watchPlans (t: Test, pool: pg.Pool): Promise<{ client: pg.PoolClient, plans: string[] }> {
  const client = await pool.connect()
  t.teardown(() => client.release(true))
  const plans: string[] = []
  client.on('notice', ({ message }) => plans.push(message!))
  await client.query("load 'auto_explain'")
  await client.query(`set auto_explain.log_min_duration = 0; set auto_explain.log_nested_statements = on; set auto_explain.log_verbose = on;
    set auto_explain.log_level = notice; set client_min_messages = notice`)
  return { client, plans }
}

function rounds (name: string, count: number): Round[] {
  return Array.from({ length: count }, (_, i) => ({ name: `${name} ${i}`, usageId: '', holdId: '', grantId: '' }))
}

// Prevents autovacuum, because it would make the session plan again.
async function withoutAutovacuum (pool: pg.Pool): Promise<void> {
  const { rows } = await pool.query("select relname from pg_class where relkind = 'r' and relname like 'ai_credit%'")
  for (const { relname } of rows) await pool.query(`alter table ${relname} set (autovacuum_enabled = off)`)
}

// Makes the calls one after the other.
async function one (pool: pg.Pool, ledger: Ledger, how: string, rounds: Round[], names: string[]): Promise<void> {
  const client = how === 'of the host' ? await pool.connect() : undefined
  for (const round of rounds) for (const name of names) await calls[name]!(ledger, Object.assign(round, { client }))
  client?.release()
}
