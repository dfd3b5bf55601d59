// One budget and those above it, as `budgets({ path })` returns them.
import t from 'tap'
import { createLedger, type Credits } from '../../src/index.js'
import { ledgerTest } from '../helper/clocked-ledger.js'
import { createLedgerDatabase, createPool, pglite } from '../helper/database.js'

const namesOf = async (credits: Credits, path: string) =>
  (await credits.budgets('acme', { path })).entries.map(({ budget }) => budget)

ledgerTest('a path has the budget first, then those above it, with what counts in each', async (t, { credits }) => {
  await credits.setBudget('acme', 'team:ml', { month: 100 })
  await credits.setBudget('acme', 'member:ann', { within: 'team:ml', day: 50 })
  await credits.setBudget('acme', 'member:ben', { within: 'team:ml' })
  await credits.setBudget('acme', 'key:*', { within: 'member:ann', day: 20, total: 30 })
  await credits.deduct({ userId: 'acme', budget: 'key:k1', credits: 5, operation: 'chat' })
  await credits.hold({ userId: 'acme', budget: 'member:ann', credits: 2, operation: 'chat' })
  t.strictSame(await credits.budgets('acme', { path: 'key:k1' }), {
    entries: [
      {
        budget: 'key:k1',
        within: 'member:ann',
        held: 0,
        limits: { day: 20, total: 30 },
        used: { day: 5, total: 5 },
        resetsAt: { day: new Date('2030-01-02'), total: null }
      },
      { budget: 'member:ann', within: 'team:ml', held: 2, limits: { day: 50 }, used: { day: 5 }, resetsAt: { day: new Date('2030-01-02') } },
      { budget: 'team:ml', within: null, held: 2, limits: { month: 100 }, used: { month: 5 }, resetsAt: { month: new Date('2030-02-01') } }
    ],
    cursor: null
  })
  t.strictSame(await namesOf(credits, 'team:ml'), ['team:ml'])
  t.strictSame((await credits.budgets('acme', { path: 'key:new' })).entries[0], {
    budget: 'key:new',
    within: 'member:ann',
    held: 0,
    limits: { day: 20, total: 30 },
    used: { day: 0, total: 0 },
    resetsAt: { day: new Date('2030-01-02'), total: null }
  }, 'as its template would make it')
  t.strictSame(await namesOf(credits, 'key:new'), ['key:new', 'member:ann', 'team:ml'])
  t.equal((await credits.budgets('acme')).entries.length, 5, 'it was not made')
  for (const unknown of ['key', 'other:k1', ':k1', 'Key:k1']) t.strictSame(await credits.budgets('acme', { path: unknown }), { entries: [], cursor: null }, unknown)
  await t.rejects(credits.budgets('acme', { path: 'key:*' }), { code: 'FST_CREDITS_INVALID', field: 'path' }, 'a template is no budget')
  for (const page of [{ limit: 1 }, { cursor: 'a' }]) {
    await t.rejects(credits.budgets('acme', { path: 'key:k1', ...page }), { code: 'FST_CREDITS_INVALID', field: 'path' })
  }
})

t.test('a path is what it was at one moment, while budgets are moved', { skip: pglite && 'one session at a time' }, async t => {
  const pool = createPool(t, await createLedgerDatabase(t))
  const credits = createLedger(pool)
  await credits.migrate()
  for (const name of ['top', 'left', 'right']) await credits.setBudget('acme', name, {})
  await credits.setBudget('acme', 'left', { within: 'top' })
  await credits.setBudget('acme', 'key', { within: 'left' })
  const moved = new AbortController()
  const mover = (async () => {
    // The middle changes sides; at no moment is it within none, or are both below the top.
    for (let round = 0; round < 150; round++) {
      const [from, to] = round % 2 ? ['right', 'left'] : ['left', 'right']
      const client = await pool.connect()
      await client.query('begin')
      await credits.setBudget('acme', to!, { within: 'top' }, { client })
      await credits.setBudget('acme', 'key', { within: to! }, { client })
      await credits.setBudget('acme', from!, {}, { client })
      await client.query('commit')
      client.release()
    }
    moved.abort()
  })()
  const seen = new Set<string>()
  while (!moved.signal.aborted) {
    const { entries } = await credits.budgets('acme', { path: 'key' })
    seen.add(entries.map(({ budget, within }) => `${budget} in ${within}`).join())
  }
  await mover
  t.strictSame([...seen].sort(), ['key in left,left in top,top in null', 'key in right,right in top,top in null'])
})
