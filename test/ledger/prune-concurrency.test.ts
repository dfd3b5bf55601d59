// needs a real server
import { setTimeout as sleep } from 'node:timers/promises'
import type pg from 'pg'
import t, { type Test } from 'tap'
import { createLedger, type LedgerOptions } from '../../src/index.js'
import { citus } from '../helper/citus.js'
import { createClockedLedgerDatabase } from '../helper/clock.js'
import { activity, createPool } from '../helper/database.js'
import { startProcesses } from '../helper/processes.js'
import { readsOf } from '../helper/reads.js'

const january = '2030-01-01T00:00:00.000Z'
const before = '2030-01-15T00:00:00.000Z'
const february = '2030-02-01T00:00:00.000Z'
const charge = (userId: string, credits = 1) => ({ userId, credits, operation: 'chat' })

t.test('two processes prune while two others charge the same accounts', async t => {
  const { ledger, pool, connectionString, at } = await open(t)
  const users = ['hot', ...Array.from({ length: 30 }, (_, i) => `user ${i}`)]
  const calls = Array.from({ length: 3000 }, (_, i) => charge(i % 2 === 0 ? 'hot' : users[i % users.length]!))
  await Promise.all(calls.map(call => ledger.deduct(call)))
  const inProcesses = await startProcesses(t, 4)
  await at(february)

  const ended = new AbortController()
  const checking = (async () => {
    const checks = []
    for (; !ended.signal.aborted; await sleep(5)) checks.push((await ledger.reconcile()).ok)
    return checks
  })()
  const outcomes = await inProcesses([
    { connectionString, prune: { before, batch: 17 } },
    { connectionString, prune: { before, batch: 29 } },
    { connectionString, calls },
    { connectionString, calls }
  ])
  ended.abort()

  t.strictSame(outcomes.flat().filter(({ error }) => error), [])
  t.strictSame(new Set(await checking), new Set([true]), 'every account reconciled all the time')
  t.strictSame(await numbers(pool, `select count(*)::int, min(created_at) > '${before}' as newer from ai_credit_usage`),
    [{ count: 6000, newer: true }])
  t.strictSame(await numbers(pool, 'select sum(credits)::int from ai_credit_pruned'), [{ sum: 3000 }])
  t.strictSame(await numbers(pool, 'select sum(used_credits)::int from ai_credits'), [{ sum: 9000 }])
  t.equal(outcomes[0]![0]!.records! + outcomes[1]![0]!.records!, 3000, 'no record was deleted by both')
})

t.test('what was deleted while a call waited for the account is not found', { skip: citus !== undefined && 'it has triggers' }, async t => {
  const { ledger, pool, at } = await open(t)
  const holds = [await ledger.hold(charge('ann', 10)), await ledger.hold(charge('ann', 10))]
  await ledger.capture(holds[0]!.id)
  await ledger.release(holds[1]!.id)
  const { id: usageId } = await ledger.deduct(charge('ann', 10))
  await ledger.refund({ usageId, credits: 10 })
  await at(february)

  const unlock = await holdUpDeleting(pool)
  const pruning = ledger.prune({ before })
  await waiting(pool, 1)
  const client = await pool.connect()
  const calls = [
    () => ledger.refund({ usageId }),
    () => ledger.capture(holds[0]!.id, { client }), // on the host's client, so in a statement of its own
    () => ledger.release(holds[1]!.id)
  ].map(call => t.rejects(call(), { code: 'FST_CREDITS_NOT_FOUND' }))
  await waiting(pool, 3) // the two that are not the host's take turns
  await unlock()
  t.strictSame(await pruning, { accounts: 1, records: 3 })
  await Promise.all(calls)
  client.release()
  t.match(await ledger.reconcile(), { ok: true })
})

t.test('an account that stays locked is an outage, and what came before it is done', async t => {
  const { ledger, pool, at, connectionString } = await open(t)
  for (const userId of ['a', 'b', 'c']) await ledger.deduct(charge(userId))
  await at(february)
  const unlock = await lock(pool, 'b')
  const hasty = createLedger(createPool(t, connectionString), { timeout: 2000 })
  const progress: object[] = []
  const onProgress = (step: object) => { progress.push(step) }
  await t.rejects(hasty.prune({ before, onProgress }), { statusCode: 503, code: 'FST_CREDITS_UNAVAILABLE' })
  t.strictSame(progress, [{ accounts: 1, records: 1 }], 'it did not hold one account while it waited for another')
  await unlock()
  t.strictSame(await hasty.prune({ before }), { accounts: 3, records: 2 })
  t.match(await ledger.reconcile(), { ok: true })
})

t.test('it reads what it deletes, and little else', async t => {
  const { ledger, pool, at } = await open(t)
  const work = async () => await Promise.all(Array.from({ length: 1000 }, async () => {
    await ledger.deduct(charge('ann'))
    const { id } = await ledger.hold(charge('ann'))
    await ledger.capture(id, { idempotencyKey: id })
  }))
  await work()
  await at(february)
  await work()
  const { entries, scans } = await readsOf(pool, async () => {
    t.match(await ledger.prune({ before, batch: 100 }), { records: 2000 })
  })
  t.ok(entries < 6 * 3000, `${entries} index entries read`)
  t.equal(scans, 0)
})

t.test('refunds are looked up, each by the record that it gives back', async t => {
  const { ledger, pool, at } = await open(t)
  const work = async () => await Promise.all(Array.from({ length: 1000 }, async () => {
    await ledger.refund({ usageId: (await ledger.deduct(charge('ann'))).id })
  }))
  await work()
  await at(february)
  await work()
  const { entries, scans } = await readsOf(pool, async () => {
    t.match(await ledger.prune({ before, batch: 100 }), { records: 2000 })
  })
  t.ok(entries < 10 * 2000, `${entries} index entries read`)
  t.equal(scans, 0)
})

async function open (t: Test, options: LedgerOptions = {}) {
  const { connectionString, setClock } = await createClockedLedgerDatabase(t, january)
  const pool = createPool(t, connectionString)
  const ledger = createLedger(pool, { allowance: 1_000_000, timeout: 60_000, ...options })
  await ledger.migrate()
  return { ledger, pool, connectionString, at: setClock }
}

async function numbers (pool: pg.Pool, query: string) {
  return (await pool.query(query)).rows
}

async function lock (pool: pg.Pool, userId: string) {
  const client = await pool.connect()
  await client.query('begin')
  await client.query('select from ai_credits where user_id = $1 for update', [userId])
  return async () => {
    await client.query('commit')
    client.release()
  }
}

// Makes every session that deletes records wait, with the account locked, until the returned function is called.
async function holdUpDeleting (pool: pg.Pool) {
  await pool.query(`
    create function hold_up () returns trigger language plpgsql set lock_timeout = 0
      as 'begin perform pg_advisory_xact_lock(1); return old; end';
    create trigger hold_up before delete on ai_credit_usage for each row execute function hold_up()`)
  const client = await pool.connect()
  await client.query('select pg_advisory_lock(1)')
  return async () => {
    await client.query('select pg_advisory_unlock(1)')
    client.release()
  }
}

// Waits until so many sessions of this database wait for a lock.
async function waiting (pool: pg.Pool, count: number) {
  const query = `select from ${activity} where datname = current_database() and wait_event_type = 'Lock'`
  while ((await numbers(pool, query)).length < count) await sleep(5)
}
