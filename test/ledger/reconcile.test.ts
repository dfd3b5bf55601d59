import t, { type Test } from 'tap'
import type pg from 'pg'
import { createLedger, type Credits } from '../../src/index.js'
import { buildGateway } from '../helper/app.js'
import { citus } from '../helper/citus.js'
import { createPool, pglite } from '../helper/database.js'
import { dumpDatabase } from '../helper/schema-dump.js'
import { sumUp } from '../helper/sum-up.js'

t.test('an account that nobody has is none to check', async t => {
  const { credits } = await buildGateway(t)
  t.strictSame(await credits.reconcile('nobody'), { ok: true, accounts: 0, differences: [] })
  t.strictSame(await credits.reconcile(), { ok: true, accounts: 0, differences: [] })
})

t.test('a new account, one that only deducts, and one with everything agree', async t => {
  const { credits } = await accounts(t)
  for (const userId of ['new', 'spender', 'holder']) {
    t.strictSame(await credits.reconcile(userId), { ok: true, accounts: 1, differences: [] }, userId)
  }
  t.strictSame(await credits.reconcile(), { ok: true, accounts: 3, differences: [] })
})

t.test('sample data agrees', async t => {
  const { credits } = await buildGateway(t, { sampleData: true })
  t.strictSame(await credits.reconcile('default_user'), { ok: true, accounts: 1, differences: [] })
})

type Found = [identity: string, expected: number, actual: number]

const breaks: Array<[title: string, sql: string, differences: Found[]]> = [
  [
    'a usage record that says more',
    "update ai_credit_usage set credits_used = credits_used + 5 where user_id = 'holder' and kind = 'deduct'",
    [['records', 31, 36]]
  ],
  [
    'a usage record that is gone',
    "delete from ai_credit_usage where user_id = 'holder' and kind = 'deduct'",
    [['records', 31, 11], ['entries', 6, 5]]
  ],
  [
    'daily usage that says less',
    "update ai_credit_daily_usage set used_credits = used_credits - 1 where user_id = 'holder'",
    [['dailyUsage', 31, 30]]
  ],
  [
    'daily usage that is gone',
    "delete from ai_credit_daily_usage where user_id = 'holder'",
    [['dailyUsage', 31, 0]]
  ],
  [
    'an open hold that has more left',
    "update ai_credit_holds set credits_left = credits_left + 2 where user_id = 'holder' and state = 'open'",
    [['holds', 9, 11]]
  ],
  [
    'a hold closed without giving back',
    "update ai_credit_holds set state = 'released' where user_id = 'holder' and state = 'open'",
    [['holds', 9, 0]]
  ],
  [
    'a grant that has more left',
    "update ai_credit_grants set credits_left = credits_left + 3 where user_id = 'holder' and kind = 'grant'",
    [['grants', 10019, 10022]]
  ],
  [
    'a grant that ended without leaving the total',
    "update ai_credit_grants set state = 'revoked', credits_left = 0 where user_id = 'holder' and kind = 'grant'",
    [['grants', 10019, 9969]]
  ],
  [
    'a pinned credit that no grant gave',
    "update ai_credit_holds set pinned = 1 where user_id = 'holder' and state = 'open'",
    [['grants', 10019, 10020]]
  ],
  [
    'an event that is gone',
    "delete from ai_credit_events where user_id = 'holder'",
    [['entries', 6, 5]]
  ],
  [
    'a posting that was not counted',
    "update ai_credits set seq = seq - 1 where user_id = 'holder'",
    [['entries', 5, 6]]
  ],
  [
    'a number given twice, and another left out',
    "update ai_credit_events set seq = seq - 1 where user_id = 'holder'",
    [['entries', 6, 5]]
  ],
  [
    'a total that was raised by hand',
    "update ai_credits set total_credits = total_credits + 100 where user_id = 'holder'",
    [['grants', 10119, 10019]]
  ],
  [
    'a used that was lowered by hand',
    "update ai_credits set used_credits = used_credits - 1 where user_id = 'holder'",
    [['records', 30, 31], ['dailyUsage', 30, 31]]
  ],
  [
    'a held that was lowered by hand',
    "update ai_credits set held_credits = held_credits - 1 where user_id = 'holder'",
    [['holds', 8, 9]]
  ]
]

for (const [title, sql, expected] of breaks) {
  t.test(`finds ${title}`, async t => {
    const { credits, pool } = await accounts(t)
    await sumUp(pool)
    await pool.query(sql)
    const differences = expected.map(([identity, expected, actual]) =>
      ({ userId: 'holder', identity, expected, actual }))
    t.strictSame(await credits.reconcile('holder'), { ok: false, accounts: 1, differences })
    t.strictSame(await credits.reconcile(), { ok: false, accounts: 3, differences })
    t.match(await credits.reconcile('spender'), { ok: true })
  })
}

t.test('of records that daily usage does not have yet, too', async t => {
  const { credits, pool } = await accounts(t)
  await pool.query("update ai_credit_usage set credits_used = credits_used + 5 where user_id = 'holder' and kind = 'deduct'")
  t.match(await credits.reconcile('holder'), {
    ok: false,
    differences: [
      { identity: 'records', expected: 31, actual: 36 }, { identity: 'dailyUsage', expected: 31, actual: 36 }
    ]
  })
})

t.test('finds what is wrong with the daily usage of a budget, also of one that was removed', async t => {
  const { credits, pg: { pool } } = await buildGateway(t)
  await credits.setBudget('acme', 'team', {})
  await credits.setBudget('acme', 'key:*', { within: 'team', day: 100 })
  const spend = async (cost: number) => await credits.deduct({ userId: 'acme', budget: 'key:1', credits: cost, operation: 'chat' })
  await credits.refund({ usageId: (await spend(5)).id, credits: 2 })
  await credits.removeBudget('acme', 'key:1')
  await sumUp(pool)
  const before = new Date((await pool.query("select statement_timestamp() + interval '1 millisecond' as at")).rows[0].at)
  await pool.query('select pg_sleep(0.01)')
  await spend(7) // daily usage does not have it yet
  t.match(await credits.reconcile('acme'), { ok: true })
  const breaks = async (sql: string, ...found: Array<[budget: string, expected: number, actual: number]>) => {
    await pool.query(sql)
    const differences = found.map(([budget, expected, actual]) => ({ userId: 'acme', identity: `budget ${budget} dailyUsage`, expected, actual }))
    t.strictSame((await credits.reconcile('acme')).differences, differences, sql)
  }
  const change = (by: number, rest: string) => `update ai_credit_budget_usage set used_credits = used_credits + ${by} ${rest}`
  await breaks(change(1, "where budget = 'team'"), ['team', 10, 11])
  await breaks(change(-1, ''), ['key:1', 10, 9])
  await breaks(change(1, "where budget = 'key:1'"))
  await breaks("update ai_credit_budget_usage set budget = 'key:2' where budget = 'key:1'", ['key:1', 10, 7], ['key:2', 0, 3])
  await breaks("update ai_credit_budget_usage set budget = 'key:1' where budget = 'key:2'")
  t.match(await credits.prune({ before }), { records: 2 })
  t.match(await credits.reconcile('acme'), { ok: true }, 'what was pruned counts')
  await breaks(change(1, "where budget = 'key:1'"), ['key:1', 10, 11])
  await sumUp(pool)
  await breaks("delete from ai_credit_budget_usage where budget = 'key:1'", ['key:1', 7, 0])
})

t.test('of an account without grants too', async t => {
  const { credits, pool } = await accounts(t)
  await pool.query("update ai_credits set allocated = 2 where user_id = 'spender'")
  t.match(await credits.reconcile('spender'),
    { ok: false, differences: [{ identity: 'grants', expected: 9980, actual: 9982 }] })
})

t.test('all accounts are read in batches, each told of', async t => {
  const { credits, pool } = await accounts(t)
  for (const userId of ['a', 'b', 'c', 'Z', 'ä', '%', '🙂']) await credits.deduct({ userId, credits: 1, operation: 'chat' })
  await pool.query("update ai_credits set used_credits = 2 where user_id in ('b', '🙂')")
  const whole = await credits.reconcile()
  t.match(whole, { ok: false, accounts: 10 })
  t.strictSame(new Set(whole.differences.map(({ userId }) => userId)), new Set(['b', '🙂']))
  for (const batch of [1, 2, 3, 5, 10, 11]) {
    const progress: Array<{ accounts: number, differences: number }> = []
    const onProgress = (step: typeof progress[0]) => progress.push(step)
    t.strictSame(await credits.reconcile(undefined, { batch, onProgress }), whole, `batches of ${batch}`)
    t.strictSame(progress.at(-1), { accounts: 10, differences: whole.differences.length })
    if (citus !== undefined) continue // there a batch has accounts of one node
    t.equal(progress.length, Math.floor(10 / batch) + 1)
    t.strictSame(progress.map(({ accounts }) => accounts), progress.map((_, index) => Math.min(10, (index + 1) * batch)))
  }
})

t.test('it writes nothing, and settles nothing', async t => {
  const { credits, pool } = await accounts(t)
  await pool.query("update ai_credits set due_at = '2024-01-01'")
  const before = await dumpDatabase(pool)
  await credits.reconcile()
  t.equal(await dumpDatabase(pool), before)
})

// PGlite takes no options from a connection.
t.test('it runs where nothing can be written, as on a replica', { skip: pglite || citus !== undefined }, async t => {
  const { pool } = await accounts(t)
  const url = new URL(pool.options.connectionString!)
  url.searchParams.set('options', '-c default_transaction_read_only=on')
  const ledger = createLedger(createPool(t, url.href))
  t.match(await ledger.reconcile(), { ok: true, accounts: 3 })
  await t.rejects(ledger.deduct({ userId: 'spender', credits: 1, operation: 'chat' }), { code: 'FST_CREDITS_UNAVAILABLE' })
})

t.test('malformed input is refused, with the field', async t => {
  const { credits } = await buildGateway(t)
  for (const [field, value] of [['batch', 0], ['batch', '10'], ['onProgress', 'log'], ['progress', () => {}]] as const) {
    await t.rejects(credits.reconcile('ann', { [field]: value }), { code: 'FST_CREDITS_INVALID', field })
  }
  await t.rejects(credits.reconcile(''), { code: 'FST_CREDITS_INVALID', field: 'userId' })
})

// Three accounts: a new one, one that has only spent, and one with a grant, an open hold, and a partly captured hold.
async function accounts (t: Test): Promise<{ credits: Credits, pool: pg.Pool }> {
  const { credits, pg: { pool } } = await buildGateway(t)
  await credits.balance('new')
  await credits.deduct({ userId: 'spender', credits: 20, operation: 'chat' })
  await credits.grant({ userId: 'holder', credits: 50 })
  const charge = { userId: 'holder', operation: 'chat' }
  await credits.deduct({ ...charge, credits: 20 })
  await credits.hold({ ...charge, credits: 9 })
  const { id } = await credits.hold({ ...charge, credits: 15 })
  await credits.capture(id, { credits: 11, final: false })
  await credits.release(id)
  return { credits, pool }
}
