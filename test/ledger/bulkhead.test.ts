// needs a real server
import { setTimeout as sleep } from 'node:timers/promises'
import type pg from 'pg'
import t, { type Test } from 'tap'
import { createLedger, type Ledger } from '../../src/index.js'
import { activity, createLedgerDatabase, createPool } from '../helper/database.js'

const charge = (userId: string) => ({ userId, credits: 1, operation: 'chat' })
const all = <T>(count: number, call: (index: number) => T) => Promise.all(Array.from({ length: count }, (_, i) => call(i)))
const names = (count: number) => Array.from({ length: count }, (_, i) => `user ${i}`)

/** Calls that can wait for the account. Everything that they need was made before. */
interface Made {
  holds: string[]
  grants: string[]
  records: string[]
}

const methods: Record<string, (ledger: Ledger, made: Made, index: number) => Promise<unknown>> = {
  deduct: ledger => ledger.deduct(charge('ann')),
  hold: ledger => ledger.hold(charge('ann')),
  capture: (ledger, { holds }, i) => ledger.capture(holds[i]!),
  release: (ledger, { holds }, i) => ledger.release(holds[i]!),
  extend: (ledger, { holds }, i) => ledger.extend(holds[i]!, { ttl: 3_600_000 }),
  grant: ledger => ledger.grant({ userId: 'ann', credits: 1 }),
  revoke: (ledger, { grants }, i) => ledger.revoke(grants[i]!),
  'refund by id': (ledger, { records }, i) => ledger.refund({ usageId: records[i]! }),
  'refund by key': (ledger, _made, i) => ledger.refund({ userId: 'ann', deductKey: `key ${i}` }),
  setAllowance: ledger => ledger.setAllowance('ann', null),
  setOverdraft: (ledger, _made, i) => ledger.setOverdraft('ann', i),
  'balance when something is due': ledger => ledger.balance('ann'),
  'history when something is due': ledger => ledger.history('ann'),
  'statement when something is due': ledger => ledger.statement('ann')
}

t.jobs = 4 // most tests only wait

for (const [name, method] of Object.entries(methods)) {
  for (const { max, count } of [{ max: 10, count: 10 }, { max: 10, count: 40 }, { max: 2, count: 40 }, { max: 1, count: 40 }]) {
    t.test(`${count} calls wait for an account, others do not: ${name}, a pool of ${max}`, { buffered: true }, async t => {
      const { pool, ledger, observer } = await open(t, max)
      const made = await make(ledger, count)
      if (name.endsWith('due')) await makeDue(observer)
      const other = createLedger(pool, { timeout: 60_000 }) // it knows the account of no hold
      await other.balance('bob')
      const unlock = await lock(t, observer, ['ann'])
      const waiting = all(count, i => method(i % 2 ? ledger : other, made, i))
      await checkOthers(t, pool, ledger, waiting)
      await unlock()
      await t.resolves(waiting)
      t.match(await ledger.reconcile('ann'), { ok: true })
    })
  }
}

for (const max of [10, 2, 1]) {
  for (const count of [4, 40]) {
    t.test(`${count} accounts are locked, others are not: a pool of ${max}`, async t => {
      const { pool, ledger, observer } = await open(t, max)
      const users = names(count)
      for (const user of users) await ledger.balance(user)
      const unlock = await lock(t, observer, users)
      const waiting = all(2 * count, i => i % 2 ? ledger.deduct(charge(users[i >> 1]!)) : ledger.grant({ userId: users[i >> 1]!, credits: 1 }))
      for (let round = 0; round < 3; round++) {
        await checkOthers(t, pool, ledger, waiting)
        await t.resolves(first(waiting, ledger.deduct(charge(`new ${round}`))), 'a new account is made')
        await t.resolves(first(waiting, ledger.balance(`newer ${round}`)), 'by a balance too')
        await sleep(300) // by now all have waited without success
      }
      await t.resolves(first(waiting, busyForAMoment(t, observer, ledger)), 'an account that is busy for a moment is waited for')
      await unlock()
      await t.resolves(waiting)
      t.match(await ledger.reconcile(), { ok: true })
    })
  }
}

t.test('pruning waits in a connection of its own, of which it has one', async t => {
  const { pool, ledger, observer } = await open(t, 10)
  await ledger.deduct(charge('ann'))
  const unlock = await lock(t, observer, ['ann'])
  const before = new Date()
  const waiting = all(20, () => ledger.prune({ before }))
  await checkOthers(t, pool, ledger, waiting)
  await unlock()
  t.equal((await waiting).reduce((sum, { records }) => sum + records, 0), 1)
})

t.test('accounts that a transaction elsewhere has yet to commit are created by few connections', async t => {
  const { pool, ledger, observer } = await open(t, 10)
  const users = names(40)
  const client = await observer.connect()
  await client.query('begin')
  await client.query('insert into ai_credits (user_id) select unnest($1::varchar[])', [users])
  const waiting = all(40, i => ledger.deduct(charge(users[i]!)))
  await checkOthers(t, pool, ledger, waiting)
  await sleep(300)
  await checkOthers(t, pool, ledger, waiting)
  await client.query('rollback')
  client.release()
  await t.resolves(waiting)
  t.match(await ledger.reconcile(), { ok: true, accounts: 42 })
})

for (const { max, most } of [{ max: 10, most: 4 }, { max: 5, most: 2 }, { max: 2, most: 1 }]) {
  t.test(`of a pool of ${max}, at most ${most} connections wait for accounts`, async t => {
    const { ledger, observer } = await open(t, max)
    const users = names(12)
    for (const user of users) await ledger.balance(user)
    const unlock = await lock(t, observer, users)
    const waiting = all(48, i => ledger.grant({ userId: users[i % 12]!, credits: 1 }))
    const seen: number[] = []
    for (let sample = 0; sample < 50; sample++) {
      const { rows: [{ count }] } = await observer.query(`
        select count(*)::integer from ${activity} where datname = current_database() and wait_event_type = 'Lock'`)
      seen.push(count)
      await sleep(20)
    }
    t.ok(Math.max(...seen) <= most, seen.join())
    t.ok(Math.max(...seen) > 0, 'some wait there, to be the next')
    await unlock()
    await t.resolves(waiting)
  })
}

for (const max of [10, 1]) {
  t.test(`an account that takes long to create is created, a pool of ${max}`, async t => {
    const { pool, ledger } = await open(t, max)
    await pool.query(`
      create function dawdle() returns trigger language plpgsql as 'begin perform pg_sleep(0.3); return new; end';
      create trigger dawdle before insert on ai_credits for each row execute function dawdle()`)
    const used = (await all(8, () => ledger.deduct(charge('new')))).map(({ balance }) => balance.used)
    t.strictSame(used, [1, 2, 3, 4, 5, 6, 7, 8])
  })
}

t.test('calls on one account keep their order, whatever they are', async t => {
  const { ledger, observer } = await open(t, 10)
  await ledger.deduct(charge('ann'))
  const unlock = await lock(t, observer, ['ann'])
  const order: number[] = []
  const waiting = all(30, i => (i % 3 === 0 ? ledger.grant({ userId: 'ann', credits: 1 }) : ledger.deduct(charge('ann')))
    .then(() => order.push(i)))
  await sleep(600) // the lock was awaited without success
  await unlock()
  await waiting
  t.strictSame(order, Array.from({ length: 30 }, (_, i) => i))
})

t.test('a call that waited for a locked account until the end says so', async t => {
  const { pool, observer } = await open(t, 10)
  const ledger = createLedger(pool, { timeout: 800 })
  const unlock = await lock(t, observer, ['ann'])
  await t.rejects(ledger.grant({ userId: 'ann', credits: 1 }), {
    code: 'FST_CREDITS_UNAVAILABLE', cause: { message: 'No answer within timeout: the account is locked elsewhere' }
  })
  await unlock()
  t.equal((await ledger.balance('ann')).total, 10_000, 'and is not done later')
})

t.test('where the server cancels what takes long, waiting goes on until timeout', async t => {
  const { observer, ledger, pool } = await open(t, 10)
  const { rows: [{ name }] } = await observer.query('select current_database() as name')
  await observer.query(`alter database ${name} set statement_timeout = 100`)
  const strict = createLedger(createPool(t, pool.options.connectionString!), { timeout: 60_000 })
  const unlock = await lock(t, observer, ['ann'])
  const waiting = all(5, () => strict.grant({ userId: 'ann', credits: 1 }))
  await sleep(400)
  await unlock()
  t.strictSame((await waiting).map(({ balance }) => balance.total), [10_001, 10_002, 10_003, 10_004, 10_005])
  t.match(await ledger.reconcile('ann'), { ok: true })
})

/** A ledger on a pool of `max` connections, the account ann, and a pool for what other sessions do. */
async function open (t: Test, max: number) {
  const connectionString = await createLedgerDatabase(t)
  const pool = createPool(t, connectionString, { max })
  const ledger = createLedger(pool, { timeout: 60_000 })
  await ledger.migrate()
  await ledger.balance('ann')
  await ledger.balance('bob')
  return { pool, ledger, observer: createPool(t, connectionString) }
}

async function make (ledger: Ledger, count: number): Promise<Made> {
  const holds = await all(count, () => ledger.hold(charge('ann')))
  const grants = await all(count, () => ledger.grant({ userId: 'ann', credits: 1 }))
  const records = await all(count, i => ledger.deduct({ ...charge('ann'), idempotencyKey: `key ${i}` }))
  return { holds: holds.map(({ id }) => id), grants: grants.map(({ id }) => id), records: records.map(({ id }) => id) }
}

async function makeDue (observer: pg.Pool) {
  await observer.query(`
    update ai_credit_holds set expires_at = now() - interval '1 second' where id = (select min(id) from ai_credit_holds)`)
  await observer.query("update ai_credits set due_at = now() - interval '1 second' where user_id = 'ann'")
}

/** Asserts that calls on other accounts, and the host's own queries, return while the others wait. */
async function checkOthers (t: Test, pool: pg.Pool, ledger: Ledger, waiting: Promise<unknown>) {
  await sleep(50) // they have begun
  await t.resolves(first(waiting, all(20, () => ledger.deduct(charge('bob')))), 'deducts')
  await t.resolves(first(waiting, ledger.grant({ userId: 'bob', credits: 1 })), 'a grant')
  await t.resolves(first(waiting, ledger.balance('bob')), 'a balance')
  await t.resolves(first(waiting, pool.query('select')), "the host's query")
}

/** Resolves when the call does. Rejects if one of the waiting calls has returned or failed before. */
async function first (waiting: Promise<unknown>, call: Promise<unknown>) {
  const tooLate = () => { throw new Error('It came after those that wait for an account') }
  await Promise.race([call, waiting.then(tooLate, tooLate)])
}

async function busyForAMoment (t: Test, observer: pg.Pool, ledger: Ledger) {
  const unlock = await lock(t, observer, ['bob'])
  const call = ledger.deduct(charge('bob'))
  await sleep(20)
  await unlock()
  await call
}

async function lock (t: Test, pool: pg.Pool, users: string[]) {
  const client = await pool.connect()
  await client.query('begin')
  for (const user of users) await client.query('select from ai_credits where user_id = $1 for update', [user])
  let locked = true
  const unlock = async () => {
    locked = false
    await client.query('commit')
    client.release()
  }
  t.teardown(() => locked && unlock())
  return unlock
}
