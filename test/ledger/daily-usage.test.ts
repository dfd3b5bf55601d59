// needs a real server
// Daily usage gets an account's records late, many at once. What callers read is always all of it.
import t from 'tap'
import type pg from 'pg'
import { createLedger, type Credits } from '../../src/index.js'
import { openLedger } from '../../src/ledger/open.js'
import { parseLedgerOptions } from '../../src/ledger/options.js'
import { ledgerTest, onLedger } from '../helper/clocked-ledger.js'
import { createLedgerDatabase, createPool } from '../helper/database.js'
import { readsOf } from '../helper/reads.js'

const charge = { userId: 'ann', credits: 1, operation: 'chat' }

// What an account's records of these days add up to, largest first within a day.
async function recorded (pool: pg.Pool, userId: string) {
  const { rows } = await pool.query(`
    select to_char(created_at at time zone 'UTC', 'YYYY-MM-DD') as date, sum(credits_used)::int as used, operation, metadata
    from ai_credit_usage where user_id = $1
    group by date, operation, metadata having sum(credits_used) <> 0
    order by date desc, used desc, operation collate "C", ai_credit_hash(metadata)`, [userId])
  return rows
}

async function inPages (credits: Credits, userId: string, limit: number) {
  const entries = []
  let cursor
  do {
    const page = await credits.history(userId, { limit, days: 60, ...cursor !== undefined && { cursor } })
    entries.push(...page.entries)
    cursor = page.cursor ?? undefined
  } while (cursor !== undefined)
  return entries
}

async function unsummed (pool: pg.Pool, userId = 'ann') {
  const { rows: [row] } = await pool.query('select (seq - coalesce(summed_seq, seq))::int as postings from ai_credits where user_id = $1', [userId])
  return row.postings
}

ledgerTest('the history is that of the records after each posting, whatever is summed up, in pages of any size', async (t, { credits, pool, at }) => {
  let postings = 0
  let summed = 0
  for (let day = 1; day <= 6; day++) {
    await at(`2030-01-0${day}T12:00:00Z`)
    for (let n = 0; n < 25; n++) {
      const metadata = { model: `m${n % 3}` }
      const { id: usageId } = await credits.deduct({ ...charge, credits: n + 1, operation: `o${n % 2}`, metadata })
      if (n % 5 === 0) await credits.refund({ usageId }) // to nothing, some on their own, and some of a sum
      if (n % 7 === 0) await credits.capture((await credits.hold({ ...charge, credits: 9 })).id, { credits: 7, metadata })
      if (++postings % 4 === 0) t.strictSame((await credits.history('ann', { days: 60 })).entries, await recorded(pool, 'ann'))
      if (await unsummed(pool) === 0) summed++
    }
    for (const limit of [1, 2, 3, 100]) t.strictSame(await inPages(credits, 'ann', limit), await recorded(pool, 'ann'), `pages of ${limit}`)
  }
  t.ok(summed > 1, 'it was summed up several times')
  t.strictSame((await credits.history('ann', { days: 3 })).entries, (await recorded(pool, 'ann')).filter(({ date }) => date >= '2030-01-04'))
}, { allowance: 100_000 })

ledgerTest('an entry that refunds have brought to nothing comes back with what is spent after it was summed up', async (t, { credits, pool }) => {
  const { id: usageId } = await credits.deduct({ ...charge, metadata: { rare: true } })
  await credits.refund({ usageId })
  while (await unsummed(pool) > 0) await credits.deduct(charge)
  t.strictSame((await credits.history('ann')).entries.map(({ metadata }) => metadata), [{}])
  await credits.deduct({ ...charge, metadata: { rare: true } })
  t.strictSame((await credits.history('ann')).entries, await recorded(pool, 'ann'))
})

ledgerTest('records are summed up with postings that have none', async (t, { credits, pool }) => {
  const kinds = [
    async () => { await Promise.all(Array.from({ length: 64 }, () => credits.hold({ ...charge, ttl: 1000 }))) },
    async () => { for (let n = 0; n < 64; n++) await credits.hold({ ...charge, ttl: 1000 }) },
    async () => { for (let n = 0; n < 64; n++) await credits.grant({ userId: 'ann', credits: 1 }) },
    async () => {
      const holds = await Promise.all(Array.from({ length: 33 }, () => credits.hold(charge)))
      await Promise.all(holds.map(({ id }) => credits.release(id)))
    }
  ]
  for (const post of kinds) {
    await credits.deduct(charge)
    await post()
    t.strictSame((await credits.history('ann')).entries, await recorded(pool, 'ann'))
    await Promise.all(Array.from({ length: 64 }, () => credits.deduct(charge)))
    t.strictSame((await credits.history('ann')).entries, await recorded(pool, 'ann'))
  }
}, { allowance: 100_000 })

ledgerTest('calls that share a statement and are all refused sum up nothing twice', async (t, { credits, pool }) => {
  await credits.deduct({ ...charge, credits: 7 })
  for (let n = 0; n < 70; n++) await credits.release((await credits.hold(charge)).id) // postings that do not sum up
  t.ok(await unsummed(pool) > 64)
  for (let n = 0; n < 3; n++) {
    await Promise.allSettled(Array.from({ length: 5 }, () => credits.deduct({ ...charge, credits: 1000 })))
    t.strictSame((await credits.history('ann')).entries, await recorded(pool, 'ann'))
    t.match(await credits.reconcile(), { ok: true, differences: [] })
  }
})

ledgerTest('how much is left to sum up is bounded, alone and together, whatever else is posted', async (t, { credits, pool }) => {
  const most = { alone: 0, together: 0 }
  for (let round = 0; round < 40; round++) {
    for (let n = 0; n < 4; n++) await credits.deduct(charge)
    most.alone = Math.max(most.alone, await unsummed(pool))
    await credits.grant({ userId: 'ann', credits: 1000 })
    await Promise.all(Array.from({ length: 200 }, () => credits.deduct(charge)))
    most.together = Math.max(most.together, await unsummed(pool))
  }
  t.ok(most.alone < 64 + 160 && most.together < 64 + 160, JSON.stringify(most))
}, { allowance: 100_000 })

ledgerTest('a charge writes no daily usage but once in 64', async (t, { credits, pool }) => {
  const versions = async () => (await pool.query('select xmin::text from ai_credit_daily_usage')).rows.map(({ xmin }) => xmin)
  const seen = new Set<string>()
  for (let n = 0; n < 200; n++) {
    await credits.deduct(charge)
    for (const version of await versions()) seen.add(version)
  }
  t.equal(seen.size, Math.floor(200 / 64))
}, { allowance: 1000 })

t.test('a page of a long history reads what it shows, of an account and of a budget', async t => {
  const pool = createPool(t, await createLedgerDatabase(t), { max: 1 })
  const ledger = createLedger(pool, { timeout: 60_000 })
  await ledger.setBudget('ann', 'team', {})
  await ledger.deduct({ ...charge, budget: 'team' })
  const pages = [{}, { budget: 'team' }].map(input => ({ ...input, days: 5000, limit: 10 }))
  for (let round = 0; round < 10; round++) for (const page of pages) await ledger.history('ann', page) // the session plans no more
  await pool.query(`
    with entry as (
      select 'ann', current_date - n / 5 as day, 'chat', sha256(n::text::bytea) as hash, '{}'::jsonb, 1 + n % 7 from generate_series(5, 10000) n
    ), of_account as (
      insert into ai_credit_daily_usage (user_id, day, operation, metadata_hash, metadata, used_credits) select * from entry
    )
    insert into ai_credit_budget_usage (user_id, day, operation, metadata_hash, metadata, used_credits, budget) select *, 'team' from entry`)
  for (const page of pages) {
    for (let cursor: string | undefined, n = 0; n < 3; n++) {
      const { rows } = await readsOf(pool, async () => {
        const { entries, ...next } = await ledger.history('ann', { ...page, ...cursor !== undefined && { cursor } })
        t.equal(entries.length, 10)
        cursor = next.cursor!
      })
      t.ok(rows < 100, `${rows} rows`)
    }
  }
})

t.test('a time zone of its own: what is summed up late is on the day it was spent', onLedger('2030-01-01T22:30:00Z', {
  allowance: 1000, timeZone: 'Europe/Berlin'
}, async (t, { credits, pool, at }) => {
  await credits.deduct(charge) // 23:30 in Berlin
  await at('2030-01-01T23:30:00Z')
  await credits.deduct({ ...charge, credits: 2 })
  const days = async () => (await credits.history('ann')).entries.map(({ date, used }) => [date, used])
  t.strictSame(await days(), [['2030-01-02', 2], ['2030-01-01', 1]])
  while (await unsummed(pool) > 0) await credits.deduct({ ...charge, operation: 'more' })
  t.strictSame((await days()).filter(([, used]) => Number(used) < 3), [['2030-01-02', 2], ['2030-01-01', 1]])
}))

t.test('history and balance agree at any moment, while four processes charge', async t => {
  const connectionString = await createLedgerDatabase(t)
  const opened = Array.from({ length: 4 }, () => openLedger(createPool(t, connectionString, { max: 4 }), parseLedgerOptions({ allowance: 1e9 })))
  const ended = new AbortController()
  const readers = opened.map(async ({ read }) => {
    let reads = 0
    for (; !ended.signal.aborted; reads++) {
      const { entries, balance } = await read('ann')
      const sum = entries.reduce((sum, { used }) => sum + used, 0)
      if (sum !== balance.used) t.equal(sum, balance.used)
    }
    return reads
  })
  await Promise.all(opened.map(async ({ credits }, index) => {
    for (let round = 0; round < 20; round++) {
      await Promise.all(Array.from({ length: 20 }, (_, n) => credits.deduct({ ...charge, metadata: { n: (n + index) % 5 } })))
    }
  }))
  ended.abort()
  t.ok((await Promise.all(readers)).every(reads => reads > 3))
  t.equal((await opened[0]!.credits.balance('ann')).used, 4 * 20 * 20)
  t.match(await opened[0]!.credits.reconcile(), { ok: true })
  for (const { close } of opened) await close()
})
