// not on Citus: counts statements, and has triggers
// needs a real server
import { setTimeout as sleep } from 'node:timers/promises'
import type pg from 'pg'
import t, { type Test } from 'tap'
import { createLedger, type LedgerOptions } from '../../src/index.js'
import { Database } from '../../src/ledger/database/database.js'
import { openOwners } from '../../src/ledger/posting/owners.js'
import { buildGateway, postDeduct } from '../helper/app.js'
import { createLedgerDatabase, createPool } from '../helper/database.js'
import { readsOf } from '../helper/reads.js'

const unavailable = { statusCode: 503, code: 'FST_CREDITS_UNAVAILABLE' }
const charge = (userId: string, credits = 1) => ({ userId, credits, operation: 'chat' })
const all = <T>(count: number, call: (index: number) => T) => Promise.all(Array.from({ length: count }, (_, i) => call(i)))

t.test('calls of one turn share a statement, on one account and on many', async t => {
  const { ledger, statements } = await open(t)
  await all(40, i => ledger.balance(`user ${i}`))
  statements.length = 0
  const used = (await all(100, () => ledger.deduct(charge('user 0')))).map(({ balance }) => balance.used)
  t.strictSame(used, Array.from({ length: 100 }, (_, i) => i + 1), 'in order of arrival')
  t.strictSame(statements, ['ai_credit_execute'])
  statements.length = 0
  await all(120, i => ledger.deduct(charge(`user ${i % 40}`)))
  t.strictSame(statements, ['ai_credit_execute'])
  t.match(await ledger.reconcile(), { ok: true })
})

t.test('a lone call takes the short statement', async t => {
  const { ledger, statements } = await open(t)
  await ledger.balance('ann')
  await ledger.deduct(charge('ann'))
  const { id } = await ledger.hold(charge('ann'))
  await ledger.capture(id)
  const other = await ledger.hold(charge('ann'))
  await ledger.release(other.id)
  t.strictSame(statements, ['ai_credit_deduct', 'ai_credit_hold', 'ai_credit_capture', 'ai_credit_hold', 'ai_credit_release'])
})

t.test('what arrives while a statement is in flight goes with the next, at most one on an account at a time', async t => {
  const { ledger, pool, statements, unlock } = await openLocked(t, 'ann')
  const first = ledger.deduct(charge('ann'))
  await statements.sent(2)
  const others = all(300, () => ledger.deduct(charge('ann')))
  await sleep(50)
  t.strictSame(statements, ['ai_credit_deduct', 'ai_credit_deduct'], 'tried without waiting, then waiting')
  await unlock()
  t.equal((await first).balance.used, 1)
  t.equal((await others).at(-1)!.balance.used, 301)
  t.strictSame(statements.slice(2), ['ai_credit_execute', 'ai_credit_execute'])
  t.equal((await pool.query('select count(*)::int from ai_credit_usage')).rows[0].count, 301)
})

t.test('each call of a statement keeps its own verdict, record and key', async t => {
  const { ledger, pool, statements } = await open(t, { allowance: 100 })
  const keyed = { ...charge('ann', 10), metadata: { b: 1, a: [1] }, idempotencyKey: 'one' }
  const first = await ledger.deduct(keyed)
  const held = { ...charge('ann', 20), ttl: 60_000, idempotencyKey: 'one' }
  const hold = await ledger.hold(held)
  const holds = [await ledger.hold(charge('ann', 10)), await ledger.hold(charge('ann', 10)), await ledger.hold(charge('ann', 5))]
  await ledger.capture(holds[2]!.id)
  statements.length = 0
  const userId = 'ann'
  const outcomes = await Promise.allSettled([
    ledger.deduct({ ...keyed, metadata: { a: [1], b: 1 } }),
    ledger.deduct({ ...keyed, credits: 11 }),
    ledger.deduct(charge('ann', 46)),
    ledger.deduct({ ...charge('ann', 40), metadata: { own: true }, idempotencyKey: 'two' }),
    ledger.hold(held),
    ledger.hold({ ...held, ttl: 61_000 }),
    ledger.hold({ ...charge('ann', 5), idempotencyKey: 'two' }),
    ledger.hold(charge('ann', 1)),
    ledger.capture(holds[0]!.id, { userId, credits: 4, metadata: { tokens: 7 } }),
    ledger.capture(holds[2]!.id, { userId }),
    ledger.capture(holds[2]!.id.padStart(9, '9'), { userId }),
    ledger.release(holds[1]!.id, { userId }),
    ledger.release('999999', { userId }),
    ledger.deduct(charge('ann', 16)),
    ledger.deduct(charge('bob', 1))
  ])
  t.strictSame(statements, ['ai_credit_execute', 'ai_credit_deduct', 'ai_credit_execute', 'ai_credit_execute'],
    'what has the same key or hold comes after, and a new account alone')
  const told = outcomes.map(outcome => outcome.status === 'fulfilled' ? outcome.value : outcome.reason)
  t.strictSame(told[0], { ...first, replayed: true })
  t.match(told[1], { code: 'FST_CREDITS_IDEMPOTENCY_CONFLICT' })
  t.match(told[2], { code: 'FST_CREDITS_INSUFFICIENT', required: 46, credits: { available: 45, total: 100, used: 15, held: 40 } })
  t.match(told[3], { credits: 40, balance: { available: 5, used: 55 }, replayed: false })
  t.strictSame(told[4], { ...hold, replayed: true })
  t.match(told[5], { code: 'FST_CREDITS_IDEMPOTENCY_CONFLICT' })
  t.match(told[6], { credits: 5, balance: { available: 0, held: 45 }, replayed: false })
  t.match(told[7], { code: 'FST_CREDITS_INSUFFICIENT', required: 1 })
  t.match(told[8], { holdId: holds[0]!.id, userId, credits: 4, uncollected: 0, balance: { available: 6, used: 59, held: 35 } })
  t.match(told[9], { holdId: holds[2]!.id, credits: 5, replayed: true })
  t.match(told[10], { code: 'FST_CREDITS_NOT_FOUND' })
  t.match(told[11], { id: holds[1]!.id, userId, credits: 10, balance: { available: 16, held: 25 }, replayed: false })
  t.match(told[12], { code: 'FST_CREDITS_NOT_FOUND' })
  t.match(told[13], { balance: { available: 0, used: 75, held: 25 } })
  t.match(told[14], { userId: 'bob', balance: { used: 1 } })
  const { rows } = await pool.query(`
    select credits_used::int, metadata, idempotency_key from ai_credit_usage where id = any($1) order by seq`,
  [[told[3].id, told[8].id, told[13].id]])
  t.strictSame(rows.map(row => ({ ...row })), [
    { credits_used: 40, metadata: { own: true }, idempotency_key: 'two' },
    { credits_used: 4, metadata: { tokens: 7 }, idempotency_key: null },
    { credits_used: 16, metadata: {}, idempotency_key: null }
  ])
  t.match(await ledger.reconcile(), { ok: true, accounts: 2 })
})

t.test('calls with one key, and calls on one hold, go one after the other', async t => {
  const { ledger } = await open(t)
  const { id } = await ledger.hold(charge('ann', 10))
  const outcomes = await all(60, i => i % 3 === 0
    ? ledger.deduct({ ...charge('ann'), idempotencyKey: `key ${i % 2}` })
    : i % 3 === 1
      ? ledger.hold({ ...charge('ann'), idempotencyKey: `key ${i % 2}` })
      : ledger.capture(id, { credits: 4, final: false, idempotencyKey: `key ${i % 2}` }))
  t.equal(outcomes.filter(({ replayed }) => !replayed).length, 6)
  t.match(await ledger.balance('ann'), { used: 2 + 8, held: 2 + 2 })
  const closing = await all(5, () => ledger.release(id, { userId: 'ann' }))
  t.strictSame(closing.map(({ replayed }) => replayed), [false, true, true, true, true])
  t.match(await ledger.reconcile(), { ok: true })
})

t.test('the database itself refuses a statement that is about one hold twice', async t => {
  const { ledger, pool } = await open(t)
  const { id } = await ledger.hold(charge('ann', 5))
  const capture = `[1, "capture", null, 1, null, null, ${id}, true, "partial"]`
  await t.rejects(pool.query("select ai_credit_execute(7, 'ann', '{ann}', $1, '{}', false, null)", [`[${capture}, ${capture}]`]), { code: '21000' })
  t.match(await ledger.balance('ann'), { used: 0, held: 5 })
})

t.test('exactly the first calls that fit are accepted', async t => {
  const { ledger } = await open(t, { allowance: 100 })
  await ledger.balance('ann')
  const outcomes = await Promise.allSettled(Array.from({ length: 256 }, () => ledger.deduct(charge('ann'))))
  t.strictSame(outcomes.map(({ status }) => status), Array.from({ length: 256 }, (_, i) => i < 100 ? 'fulfilled' : 'rejected'))
})

t.test('an account that is locked elsewhere holds up no other', async t => {
  const { ledger, unlock } = await openLocked(t, 'ann')
  await ledger.balance('bob')
  const waiting = all(50, i => ledger.deduct(charge('ann', i + 1)))
  for (let round = 0; round < 10; round++) await all(20, i => ledger.deduct(charge(i % 2 ? 'bob' : `new ${round} ${i}`)))
  t.equal((await ledger.balance('ann')).used, 0)
  await unlock()
  const used = (await waiting).map(({ balance }) => balance.used)
  t.strictSame(used, Array.from({ length: 50 }, (_, i) => (i + 1) * (i + 2) / 2), 'the order of arrival stays')
  t.match(await ledger.reconcile(), { ok: true })
})

t.test('an account that was busy goes once more with the calls that come next, and then waits', async t => {
  const { ledger, statements, unlock } = await openLocked(t, 'ann')
  await all(2, i => ledger.balance(['bob', 'carl'][i]))
  const [ann, bob, carl] = ['ann', 'bob', 'carl'].map(userId => ledger.deduct(charge(userId)))
  await bob
  const next = ledger.deduct(charge('bob'))
  await statements.sent(3)
  t.strictSame(statements, ['ai_credit_execute', 'ai_credit_execute', 'ai_credit_deduct'])
  t.equal((await next).balance.used, 2)
  await unlock()
  for (const call of [ann!, carl!]) t.equal((await call).balance.used, 1)
  t.match(await ledger.reconcile(), { ok: true })
})

t.test('the calls on a busy account wait for it together, in one statement', async t => {
  const { ledger, statements, unlock } = await openLocked(t, 'ann')
  const waiting = all(100, i => ledger.deduct({ ...charge('ann'), ...i % 2 && { idempotencyKey: `key ${i}` } }))
  await statements.sent(2)
  await unlock()
  t.strictSame((await waiting).map(({ balance }) => balance.used), Array.from({ length: 100 }, (_, i) => i + 1))
  t.strictSame(statements, ['ai_credit_execute', 'ai_credit_execute'], 'tried without waiting, then waiting')
  t.match(await ledger.reconcile(), { ok: true })
})

t.test('while others keep an account busy, its next calls wait for it at once', async t => {
  const { ledger, statements, unlock } = await openLocked(t, 'ann')
  const first = all(10, () => ledger.deduct(charge('ann')))
  await statements.sent(2)
  await unlock()
  await first
  await all(10, () => ledger.deduct(charge('ann')))
  t.strictSame(statements.length, 3, 'and are not tried before')
  await sleep(100)
  await all(10, i => ledger.deduct(charge(i % 2 ? 'ann' : 'bob')))
  t.match(await ledger.reconcile(), { ok: true })
})

t.test('ledgers that keep one account busy have equal shares of it', async t => {
  const connectionString = await createLedgerDatabase(t)
  const ledgers = await all(4, () => createLedger(createPool(t, connectionString, { max: 4 }), { allowance: 1e6 }))
  const shares = [0, 0, 0, 0]
  let left = 6000
  await all(4 * 32, async caller => {
    while (left-- > 0) {
      await ledgers[caller % 4]!.deduct(charge('ann'))
      shares[caller % 4]!++
    }
  })
  t.ok(Math.max(...shares) < 2 * Math.min(...shares), shares.join())
  t.equal((await ledgers[0]!.balance('ann')).used, 6000)
  for (const ledger of ledgers) await ledger.close()
})

t.test('one of those calls that fails takes no other with it', async t => {
  const { ledger, pool, unlock } = await openLocked(t, 'ann')
  await pool.query(`
    create function refuse() returns trigger language plpgsql as $$
    begin
      if new.operation = 'refused' then raise 'refused'; end if;
      return new;
    end $$;
    create trigger refuse before insert on ai_credit_usage for each row execute function refuse()`)
  const waiting = Promise.allSettled(Array.from({ length: 20 }, (_, i) =>
    ledger.deduct({ ...charge('ann'), operation: i === 7 ? 'refused' : 'chat' })))
  await sleep(50)
  await unlock()
  t.strictSame((await waiting).map(({ status }) => status), Array.from({ length: 20 }, (_, i) => i === 7 ? 'rejected' : 'fulfilled'))
  t.equal((await ledger.balance('ann')).used, 19)
  t.match(await ledger.reconcile(), { ok: true })
})

t.test('new accounts are created many to a statement', async t => {
  const { ledger, statements } = await open(t, { allowance: { credits: 50, every: 'month' } })
  const answers = await all(300, i => ledger.deduct(charge(`new ${i % 150}`)))
  t.strictSame(answers.slice(150).map(({ balance }) => balance), Array.from({ length: 150 }, () => ({ available: 48, total: 50, used: 2, held: 0 })))
  t.ok(statements.length < 12, `${statements.length} statements`)
  t.match(await ledger.reconcile(), { ok: true, accounts: 150 })
})

t.test('an account that a host is creating holds up no other that is new', async t => {
  const { ledger, pool } = await open(t)
  const host = await pool.connect()
  await host.query('begin')
  await host.query("insert into ai_credits (user_id, total_credits, opening_total) values ('new 50', 7, 7)")
  const calls = Array.from({ length: 100 }, (_, i) => ledger.deduct(charge(`new ${i}`)))
  await Promise.all(calls.filter((_, i) => i !== 50))
  await host.query('commit')
  host.release()
  t.match(await calls[50], { balance: { total: 7, used: 1 } }, 'it has what the host gave it')
  t.match(await ledger.reconcile(), { ok: true, accounts: 100 })
})

t.test('processes that create the same accounts at once create each once', async t => {
  const connectionString = await createLedgerDatabase(t)
  const ledgers = Array.from({ length: 4 }, () => createLedger(createPool(t, connectionString), { timeout: 30_000 }))
  const shuffled = (n: number) => Array.from({ length: 200 }, (_, i) => (i * 37 + n * 71) % 200)
  await Promise.all(ledgers.flatMap((ledger, n) => shuffled(n).map(i => ledger.deduct(charge(`new ${i}`)))))
  t.strictSame(await ledgers[0]!.balance('new 7'), { available: 9996, total: 10000, used: 4, held: 0 })
  t.match(await ledgers[0]!.reconcile(), { ok: true, accounts: 200 })
})

t.test('what needs an account that is missing creates none', async t => {
  const { ledger, pool } = await open(t)
  const { id } = await ledger.hold(charge('ann'))
  const outcomes = await Promise.allSettled(Array.from({ length: 20 }, (_, i) => ledger.release(id, { userId: `nobody ${i}` })))
  t.ok(outcomes.every(({ status }) => status === 'rejected'))
  t.equal((await pool.query('select from ai_credits')).rowCount, 1)
})

t.test('many accounts that are locked elsewhere hold up no other', async t => {
  const users = Array.from({ length: 30 }, (_, i) => `user ${i}`)
  const { ledger, unlock } = await openLocked(t, ...users)
  await ledger.balance('bob')
  const waiting = all(30, i => ledger.deduct(charge(users[i]!)))
  await all(100, () => ledger.deduct(charge('bob')))
  await unlock()
  await waiting
  t.match(await ledger.reconcile(), { ok: true, accounts: 31 })
})

t.test('one call that fails does not fail its neighbours', async t => {
  const { ledger, pool, statements } = await open(t)
  await all(10, i => ledger.balance(`user ${i}`))
  await pool.query(`
    create function refuse() returns trigger language plpgsql as 'begin raise exception ''refused''; end';
    create trigger refuse before insert on ai_credit_usage for each row when (new.credits_used = 13) execute function refuse()`)
  statements.length = 0
  const outcomes = await Promise.allSettled(Array.from({ length: 40 }, (_, i) =>
    ledger.deduct(charge(`user ${i % 10}`, i === 17 ? 13 : 1))))
  t.strictSame(outcomes.flatMap(({ status }, i) => status === 'rejected' ? [i] : []), [17])
  t.match(outcomes[17], { reason: { ...unavailable, cause: { message: 'refused' } } })
  t.equal(statements.lastIndexOf('ai_credit_execute'), 0)
  // A server reports an error before it unlocks the accounts. So some calls find their account locked, and are retried.
  t.ok(statements.filter(name => name === 'ai_credit_deduct').length >= 40, 'each went alone')
  t.strictSame((await ledger.balance('user 7')).used, 3)
  t.match(await ledger.reconcile(), { ok: true })
})

t.test('what the server cannot do for any call is not tried for each', async t => {
  const { ledger, pool, statements } = await open(t)
  await all(10, i => ledger.balance(`user ${i}`))
  await pool.query(`
    create function fill() returns trigger language plpgsql as 'begin raise ''no space'' using errcode = ''53100''; end';
    create trigger fill before insert on ai_credit_usage for each row execute function fill()`)
  statements.length = 0
  const outcomes = await Promise.allSettled(Array.from({ length: 40 }, (_, i) => ledger.deduct(charge(`user ${i % 10}`))))
  for (const outcome of outcomes) t.match(outcome, { reason: { ...unavailable, cause: { code: '53100' } } })
  t.strictSame(statements, ['ai_credit_execute'])
})

t.test('a connection lost in flight: calls with a key are answered, the others are unavailable', async t => {
  const { ledger, pool, unlock } = await openLocked(t, 'daily')
  await ledger.balance('ann')
  // Makes the statement wait after it has begun to write.
  await pool.query(`
    create function wait() returns trigger language plpgsql as
      'begin perform from public.ai_credits where user_id = ''daily'' for update; return new; end';
    create trigger wait before insert on ai_credit_usage for each row when (new.credits_used = 7) execute function wait()`)
  const outcomes = Promise.allSettled([
    ledger.deduct({ ...charge('ann', 7), idempotencyKey: 'one' }),
    ledger.deduct(charge('ann')),
    ledger.deduct({ ...charge('ann'), idempotencyKey: 'two' }),
    ledger.hold({ ...charge('ann'), idempotencyKey: 'three' })
  ])
  const observer = createPool(t, pool.options.connectionString!)
  while ((await observer.query(`
    select pg_terminate_backend(pid) from pg_stat_activity
    where datname = current_database() and query like '%ai_credit_execute%' and wait_event_type = 'Lock'`)).rows.length === 0) await sleep(10)
  await unlock()
  t.match(await outcomes, [
    { value: { replayed: false } }, { reason: unavailable }, { value: { replayed: false } }, { value: { replayed: false } }
  ])
  t.match(await ledger.balance('ann'), { used: 8, held: 1 })
  t.match(await ledger.reconcile(), { ok: true })
})

t.test('over maxQueue a call is refused at once, and charges nothing', async t => {
  const app = await buildGateway(t, { maxQueue: 20 }, { pool: { max: 1 } })
  await app.credits.balance('ann')
  const host = await app.pg.pool.connect() // no statement can leave
  const first = app.credits.deduct(charge('ann'))
  while (app.pg.pool.waitingCount === 0) await sleep(5)
  const waiting = all(20, () => app.credits.deduct(charge('ann')))
  const reply = await postDeduct(app, { user_id: 'ann', credits: 1, operation: 'chat' })
  t.equal(reply.statusCode, 503)
  t.equal(reply.headers['retry-after'], '1')
  t.match(reply.json(), unavailable)
  await t.rejects(app.credits.hold(charge('bob')), { ...unavailable, cause: { message: '20 calls are waiting (maxQueue)' } })
  const refusal = await app.credits.hold(charge('bob')).catch(error => error)
  t.notMatch(refusal.stack, '\n', 'its trace would cost more than a charge')
  t.match(new Error('another').stack, '\n', 'other errors keep theirs')
  host.release()
  await Promise.all([first, waiting])
  t.equal((await app.credits.deduct(charge('ann'))).balance.used, 22)
})

t.test('a call that waits too long in the queue is 503 in time, and is never charged', async t => {
  const { ledger, unlock, pool } = await openLocked(t, 'ann', { timeout: 300 })
  const outcomes = await Promise.allSettled(Array.from({ length: 500 }, () => ledger.deduct(charge('ann'))))
  for (const outcome of outcomes) t.match(outcome, { status: 'rejected', reason: unavailable })
  await sleep(200) // the statement of the last call may still be waiting
  await unlock()
  t.equal((await ledger.deduct(charge('ann'))).balance.used, 1)
  t.equal((await pool.query('select from ai_credit_usage')).rowCount, 1)
})

t.test('a call whose time ran out before its statement could be sent is left out of it', async t => {
  const { ledger, pool } = await open(t, { timeout: 1000 })
  await all(8, i => ledger.balance(`user ${i}`))
  const gates = gate(pool)
  const first = all(2, i => ledger.deduct(charge(`user ${i}`)))
  await gates.asked(1)
  const second = Promise.allSettled([2, 3].map(i => ledger.deduct(charge(`user ${i}`))))
  await gates.asked(2) // as many shared statements as may be in flight
  const early = Promise.allSettled([4, 5].map(i => ledger.deduct(charge(`user ${i}`))))
  await sleep(600)
  const later = all(2, i => ledger.deduct(charge(`user ${i + 6}`)))
  gates.open()
  await first
  await gates.asked(3)
  for (const outcome of [...await second, ...await early]) t.match(outcome, { reason: unavailable })
  gates.open()
  gates.open()
  t.strictSame((await later).map(({ balance }) => balance.used), [1, 1])
  const observer = createPool(t, pool.options.connectionString!)
  t.equal((await observer.query('select from ai_credit_usage')).rowCount, 4)
})

t.test('an account with many calls leaves room for the others', async t => {
  const { ledger } = await open(t)
  await all(11, i => ledger.balance(`user ${i}`))
  let hot = 0
  const many = all(5000, () => ledger.deduct(charge('user 0')).then(() => hot++))
  await all(10, i => ledger.deduct(charge(`user ${i + 1}`)))
  t.ok(hot < 1000, `${hot} of 5,000 came before`)
  await many
  t.equal(hot, 5000)
})

t.test('the calls of an account do not each wait for a turn of all others', async t => {
  const { ledger } = await open(t)
  await all(300, i => ledger.balance(`user ${i}`))
  await all(600, i => ledger.deduct(charge(`user ${i % 300}`))) // the first statement of a session plans, and takes longer
  let done = 0
  const places = await all(1200, i => ledger.deduct(charge(`user ${Math.floor(i / 4)}`)).then(() => done++))
  // Of the first statements. If each waited for a turn of all others, the fourth would come after 900 calls.
  t.ok(places.slice(0, 4).every(place => place < 640), `${places.slice(0, 4)}`)
  t.match(await ledger.reconcile(), { ok: true })
})

t.test('close answers what waits, and refuses what comes', async t => {
  const { ledger } = await open(t)
  await ledger.balance('ann')
  const { id } = await ledger.hold(charge('ann', 3))
  const calls = all(500, i => i === 400 ? ledger.capture(id, { userId: 'ann' }) : ledger.deduct(charge(`user ${i % 3}`)))
  let closed = false
  const closing = ledger.close().then(() => { closed = true })
  await t.rejects(ledger.deduct(charge('ann')), unavailable)
  t.notOk(closed)
  await Promise.all([closing, ledger.close()])
  t.equal((await calls).length, 500)
})

t.test('a pool of one is enough, and the host can have it in between', async t => {
  const { ledger, pool } = await open(t, {}, { max: 1 })
  await all(5, i => ledger.balance(`user ${i}`))
  const calls = all(1000, i => i % 10 ? ledger.deduct(charge(`user ${i % 5}`)) : ledger.hold(charge(`new ${i}`)))
  await pool.query('select')
  t.equal((await calls).length, 1000)
  const holds = await all(20, i => ledger.hold(charge(`user ${i % 5}`)))
  await all(20, i => ledger.capture(holds[i]!.id))
  t.match(await ledger.reconcile(), { ok: true })
})

t.test('without prepared statements', async t => {
  const { ledger } = await open(t, { prepare: false })
  await ledger.balance('ann')
  t.equal((await all(50, () => ledger.deduct(charge('ann')))).at(-1)!.balance.used, 50)
})

t.test('a process knows the accounts of the holds that it made', async t => {
  const { ledger, statements } = await open(t)
  await all(5, i => ledger.balance(`user ${i}`))
  const holds = await all(50, i => ledger.hold(charge(`user ${i % 5}`, 2)))
  statements.length = 0
  const outcomes = await all(50, i => i % 2 ? ledger.capture(holds[i]!.id) : ledger.release(holds[i]!.id))
  for (const [i, { userId }] of outcomes.entries()) t.equal(userId, `user ${i % 5}`)
  t.strictSame(statements, ['ai_credit_execute'])
  t.match(await ledger.reconcile(), { ok: true })
})

t.test('it knows those of the last ten thousand', async t => {
  const { ledger, pool } = await open(t)
  const accounts = openOwners(new Database(pool, { timeout: 5000, maxQueue: 100, prepare: true, timeZone: 'UTC', schema: undefined }, () => {}), 10)
  const { id } = await ledger.hold(charge('ann'))
  accounts.remember(id, 'ann')
  t.equal(accounts.remembered('hold', id), 'ann')
  for (let i = 0; i < 10_000; i++) accounts.remember(`other ${i}`, 'bob')
  t.equal(accounts.remembered('hold', id), undefined)
  t.equal(accounts.remembered('hold', 'other 0'), 'bob')
  t.equal(await accounts.find('hold', id, performance.now() + 5000), 'ann', 'the others are looked up')
})

t.test('calls on holds that another process made find their accounts together', async t => {
  const { ledger: maker, pool, statements } = await open(t)
  await all(5, i => maker.balance(`user ${i}`))
  const holds = await all(50, i => maker.hold(charge(`user ${i % 5}`, 2)))
  const ledger = createLedger(pool)
  await ledger.balance('user 0')
  statements.length = 0
  const outcomes = await Promise.allSettled([
    ...holds.map(({ id }, i) => i % 2 ? ledger.capture(id, { credits: 1 }) : ledger.release(id)), ledger.capture('999999')
  ])
  const last = outcomes.pop()
  t.match(last, { reason: { code: 'FST_CREDITS_NOT_FOUND' } })
  for (const [i, outcome] of outcomes.entries()) t.match(outcome, { value: { userId: `user ${i % 5}`, credits: i % 2 ? 1 : 2 } })
  t.ok(statements.includes('ai_credit_owners'))
  t.ok(statements.length <= 6, statements.join())
  t.match(await ledger.reconcile(), { ok: true })
})

t.test('a hold whose account the caller names wrongly is not found', async t => {
  const { ledger, pool } = await open(t)
  await ledger.balance('bob')
  const { id } = await ledger.hold(charge('ann'))
  const wrong = await Promise.allSettled([
    ledger.capture(id, { userId: 'bob' }), ledger.release(id, { userId: 'bob' }), ledger.deduct(charge('bob')),
    ledger.capture(id, { userId: 'nobody' }), ledger.deduct(charge('ann'))
  ])
  t.match(wrong, [{ reason: { statusCode: 404 } }, { reason: { statusCode: 404 } }, { status: 'fulfilled' },
    { reason: { statusCode: 404 } }, { status: 'fulfilled' }])
  t.equal((await pool.query('select from ai_credits')).rowCount, 2)
})

t.test('a process at rest has no timers', async t => {
  const { ledger } = await open(t, {}, { idleTimeoutMillis: 0 })
  const before = timers()
  await all(50, () => ledger.deduct(charge('ann')))
  await all(50, i => ledger.hold(charge(`user ${i}`)))
  await sleep(10)
  t.equal(timers(), before)
})

t.test('keys are looked up in their index, also by a session that began on empty tables', async t => {
  const { ledger, pool } = await open(t, {}, { max: 1 })
  await ledger.balance('ann')
  await all(3000, () => ledger.deduct(charge('ann')))
  const { entries, scans } = await readsOf(pool, async () => {
    await all(200, i => ledger.deduct({ ...charge('ann'), idempotencyKey: `key ${i}` }))
    for (let i = 0; i < 10; i++) await ledger.deduct({ ...charge('ann'), idempotencyKey: `lone ${i}` })
  }, 'ai_credit_usage%')
  t.ok(entries < 1000, `${entries} index entries read`)
  t.equal(scans, 0)
})

/** A ledger on a pool of its own, and the names of the statements it sends. */
async function open (t: Test, options: LedgerOptions = {}, poolOptions: pg.PoolConfig = {}) {
  const pool = createPool(t, await createLedgerDatabase(t), poolOptions)
  const statements = Object.assign([] as string[], {
    async sent (count: number) {
      while (statements.length < count) await sleep(5)
    }
  })
  const ledger = createLedger(spy(pool, statements), options)
  await ledger.migrate()
  statements.length = 0
  return { ledger, pool, statements }
}

/** Opens a ledger on its own pool, with accounts that another session has locked. */
async function openLocked (t: Test, ...args: (string | LedgerOptions)[]) {
  const users = args.filter(arg => typeof arg === 'string')
  const opened = await open(t, args.find(arg => typeof arg === 'object'))
  for (const user of users) await opened.ledger.balance(user)
  opened.statements.length = 0
  return { ...opened, unlock: await lock(t, opened.pool.options.connectionString!, users) }
}

async function lock (t: Test, connectionString: string, users: string[]) {
  const client = await createPool(t, connectionString).connect()
  await client.query('begin')
  for (const user of users) await client.query('select from ai_credits where user_id = $1 for update', [user])
  return async () => {
    await client.query('commit')
    client.release()
  }
}

// Records the ledger's statements that change accounts.
function spy (pool: pg.Pool, statements: string[]) {
  pool.on('connect', client => {
    const query = client.query
    client.query = ((...args: [pg.QueryConfig]) => {
      const name = /from \S*(ai_credit_(?:deduct|hold|capture|release|execute|owners))\(/.exec(args[0].text ?? '')
      if (name !== null) statements.push(name[1]!)
      return Reflect.apply(query, client, args)
    }) as typeof query
  })
  return pool
}

// Makes the pool lend its connections one by one, when the test says so.
function gate (pool: pg.Pool) {
  const connect = pool.connect.bind(pool) as () => Promise<pg.PoolClient>
  const waiting: (() => void)[] = []
  const asked: string[] = []
  let closed = true
  pool.connect = (async () => {
    asked.push('a connection')
    if (closed) await new Promise<void>(resolve => waiting.push(resolve))
    return await connect()
  }) as typeof pool.connect
  return {
    async asked (count: number) {
      while (asked.length < count) await sleep(1)
    },
    open () {
      waiting.shift()!()
      if (waiting.length === 0) closed = false
    }
  }
}

function timers () {
  return process.getActiveResourcesInfo().filter(name => name === 'Timeout' || name === 'Immediate').length
}
