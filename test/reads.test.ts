// needs a real server
import type pg from 'pg'
import t from 'tap'
import { createLedger, type Ledger, type Queryable } from '../src/index.js'
import { createLedgerDatabase, createPool } from './helper/database.js'
import { readsOf } from './helper/reads.js'

const ROUNDS = 700
const CALLS = 20
// For one call, where the account has 7000 postings. Each change of its first grant leaves an entry that is gone in two
// indexes, to be read until no transaction of the server, also of another database, is older.
const ENOUGH = { rows: 50, entries: 15_000 }

const options = { allowance: 1_000_000, timeout: 60_000 }

const charge = { userId: 'ann', credits: 1, operation: 'chat' }

/** A call on what the calls before it in a round have left. */
interface Round { name: string, usageId: string, holdId: string, grantId: string, client?: Queryable }

const calls: Record<string, (ledger: Ledger, round: Round) => Promise<unknown>> = {
  deduct: async (ledger, { client }) => await ledger.deduct({ ...charge, client }),
  'deduct with a key': async (ledger, round) => {
    round.usageId = (await ledger.deduct({ ...charge, idempotencyKey: round.name, client: round.client })).id
  },
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
  balance: async (ledger, { client }) => client === undefined && await ledger.balance('ann'), // not in a transaction of the host
  history: async (ledger, { client }) => client === undefined && await ledger.history('ann'),
  statement: async (ledger, { client }) => await ledger.statement('ann', { limit: 10, client })
}

// A session plans its statements for the tables as they are when it first runs them.
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

function rounds (name: string, count: number): Round[] {
  return Array.from({ length: count }, (_, i) => ({ name: `${name} ${i}`, usageId: '', holdId: '', grantId: '' }))
}

// It would have the session plan anew.
async function withoutAutovacuum (pool: pg.Pool): Promise<void> {
  const { rows } = await pool.query("select relname from pg_class where relkind = 'r' and relname like 'ai_credit%'")
  for (const { relname } of rows) await pool.query(`alter table ${relname} set (autovacuum_enabled = off)`)
}

// The calls one after the other.
async function one (pool: pg.Pool, ledger: Ledger, how: string, rounds: Round[], names: string[]): Promise<void> {
  const client = how === 'of the host' ? await pool.connect() : undefined
  for (const round of rounds) for (const name of names) await calls[name]!(ledger, Object.assign(round, { client }))
  client?.release()
}
