// Calls on an account with thousands of budgets read only what they need.
// not on Citus: counts what one server reads
// needs a real server
import t, { type Test } from 'tap'
import type pg from 'pg'
import { createLedger, type Ledger } from '../../src/index.js'
import { createLedgerDatabase, createPool, pglite } from '../helper/database.js'
import { readsTo } from '../helper/reads.js'

const KEYS = 10_000
const MOST = 300 // rows that one call may read, of an account with so many keys
const skip = pglite
const call = { userId: 'acme', credits: 1, operation: 'chat' }

t.test('with thousands of keys, a call reads a few rows', { skip }, async t => {
  const { ledger, pool } = await open(t)
  const reads = readsTo(t, pool, MOST)
  const budget = 'key:77'
  const { id: usageId } = await reads('deduct', () => ledger.deduct({ ...call, credits: 3, budget, idempotencyKey: 'k' }))
  await reads('deduct again', () => ledger.deduct({ ...call, credits: 3, budget, idempotencyKey: 'k' }))
  await reads('deduct with a new key', () => ledger.deduct({ ...call, budget: 'key:new' }))
  await reads('deduct that is refused', () => ledger.deduct({ ...call, credits: 1000, budget }).catch(error => error))
  await reads('deducts that share a statement', () => Promise.all(['key:1', 'key:2', 'key:new too', 'team'].map(async budget =>
    await ledger.deduct({ ...call, budget }))))
  const first = await reads('hold', () => ledger.hold({ ...call, budget }))
  const second = await reads('hold', () => ledger.hold({ ...call, budget }))
  await reads('capture', () => ledger.capture(first.id))
  await reads('release', () => ledger.release(second.id))
  await reads('refund', () => ledger.refund({ usageId, credits: 1 }))
  await reads('setBudget of one below', () => ledger.setBudget('acme', budget, { within: 'ann', day: 50 }))
  await reads('setBudget of all above', () => ledger.setBudget('acme', 'team', { month: 500_000 }))
  await reads('setBudget of one between', () => ledger.setBudget('acme', 'ann', { within: 'team', day: 500_000 }))
  await reads('setBudget of a template', () => ledger.setBudget('acme', 'key:*', { within: 'ann', day: 60 }))
  await reads('setBudget that moves', () => ledger.setBudget('acme', budget, { within: 'team', day: 50 }))
  await reads('removeBudget', () => ledger.removeBudget('acme', budget))
  await reads('removeBudget that is refused', () => ledger.removeBudget('acme', 'ann').catch(error => error))
  t.equal((await reads('budgets', () => ledger.budgets('acme', { limit: 50 }))).entries.length, 50)
  t.equal((await reads('budgets, a later page', () => ledger.budgets('acme', { limit: 50, cursor: 'key:5' }))).entries.length, 50)
  await reads('statement', () => ledger.statement('acme', { limit: 10 }))
  await readsTo(t, pool, 3 * KEYS)('setBudget that moves a member with its keys', () => ledger.setBudget('acme', 'ann', { day: 500_000 }))
  t.match(await ledger.reconcile('acme'), { ok: true, differences: [] })
})

t.test('the history of a budget reads what it shows, however many keys are below it', { skip }, async t => {
  const { ledger, pool } = await open(t)
  const reads = readsTo(t, pool, MOST)
  const used = async (budget: string) => (await reads(`history of ${budget}`, () => ledger.history('acme', { budget }))).entries
  t.match(await used('key:77'), [{ used: 2 }])
  t.match(await used('ann'), [{ used: KEYS * 2 + 10 }])
  t.match(await used('team'), [{ used: KEYS * 2 + 10 }])
  t.strictSame(await used('key:none'), [])
  await ledger.deduct({ ...call, budget: 'key:77' })
  t.match(await used('key:77'), [{ used: 3 }], 'with records that are not summed up yet')
  t.match(await used('team'), [{ used: KEYS * 2 + 11 }])
})

// An account whose team has a member with so many keys, each of which a charge has made and used.
async function open (t: Test): Promise<{ ledger: Ledger, pool: pg.Pool }> {
  const pool = createPool(t, await createLedgerDatabase(t), { max: 1, idleTimeoutMillis: 0 })
  const ledger = createLedger(pool, { timeout: 60_000, allowance: 1_000_000, maxQueue: 2 * KEYS })
  await ledger.migrate()
  await pool.query('set synchronous_commit to off')
  await ledger.setBudget('acme', 'team', { month: 1_000_000 })
  await ledger.setBudget('acme', 'ann', { within: 'team', day: 1_000_000 })
  await ledger.setBudget('acme', 'key:*', { within: 'ann', day: 100 })
  for (let round = 0; round < 10; round++) await useAll(ledger)
  for (const credits of [1, 1]) {
    await Promise.all(Array.from({ length: KEYS }, (_, key) => ledger.deduct({ ...call, credits, budget: `key:${key}` })))
  }
  return { ledger, pool }
}

// So often that the session plans no more: what it does later, it does as planned for a few rows.
async function useAll (ledger: Ledger): Promise<void> {
  const { id } = await ledger.hold({ ...call, budget: 'key:0' })
  await ledger.capture(id)
  await ledger.release((await ledger.hold({ ...call, budget: 'key:0' })).id)
  await ledger.refund({ usageId: (await ledger.deduct({ ...call, budget: 'key:0' })).id })
  await ledger.budgets('acme')
  await ledger.history('acme')
  await ledger.history('acme', { budget: 'team' })
  await ledger.setBudget('acme', 'ben', { within: 'team' })
  await ledger.setBudget('acme', 'key:0', { within: 'ben' })
  await ledger.removeBudget('acme', 'key:0')
  await ledger.removeBudget('acme', 'ben')
}
