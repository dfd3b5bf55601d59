// not on Citus: starts a server of its own
// needs a real server
import { once } from 'node:events'
import { createConnection, createServer, type AddressInfo, type Socket } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import type { FastifyInstance } from 'fastify'
import type pg from 'pg'
import t, { type Test } from 'tap'
import { createLedger } from '../../src/index.js'
import { buildGateway, postDeduct } from '../helper/app.js'
import { createLedgerDatabase, createPool } from '../helper/database.js'
import { startPostgres } from '../../bench/postgres/postgres.js'
import { sumUp } from '../helper/sum-up.js'

const charge = { userId: 'ann', credits: 10, operation: 'chat' }
const body = { user_id: 'ann', credits: 10, operation: 'chat' }
const unavailable = { statusCode: 503, code: 'FST_CREDITS_UNAVAILABLE' }
// Far more than any timeout here, and what a busy machine may need.
const BOUND = 10_000

t.test('an account that stays locked is 503 in time, and is not charged later', async t => {
  const app = await buildGateway(t, { timeout: 400 })
  const other = createPool(t, app.pg.pool.options.connectionString!)
  const unlock = await lock(other, app)
  const started = performance.now()
  const [reply, failure] = await Promise.all([postDeduct(app, body), app.credits.deduct(charge).catch(error => error)])
  t.ok(performance.now() - started < BOUND)
  t.equal(reply.statusCode, 503)
  t.equal(reply.headers['retry-after'], '1')
  t.strictSame(reply.json(), { ...unavailable, error: 'Service Unavailable', message: 'The credits database is unavailable' })
  t.match(failure, unavailable)
  await t.resolves(app.credits.balance('ann'), 'reading waits for no lock')
  await unlock()
  await checkAtRest(t, app)
  t.equal((await app.credits.deduct(charge)).balance.used, 10, 'only this one was charged')
})

t.test('one who waits for the lock after another is not charged later either', async t => {
  const app = await buildGateway(t, { timeout: 1000 })
  const other = createPool(t, app.pg.pool.options.connectionString!)
  const unlock = await lock(other, app)
  const second = await other.connect()
  await second.query('begin')
  const secondHasIt = second.query("select from ai_credits where user_id = 'ann' for update")
  await waiting(other, 1)
  const call = app.credits.deduct(charge).catch(error => error)
  await waiting(other, 2)
  await sleep(600)
  await unlock()
  await secondHasIt
  t.match(await call, unavailable)
  await second.query('commit')
  second.release()
  await checkAtRest(t, app)
  t.equal((await app.credits.balance('ann')).used, 0)
})

t.test('a pool that the host has emptied is 503 in time, and nothing is charged later', async t => {
  const app = await buildGateway(t, { timeout: 500 }, { pool: { max: 1 } })
  const client = await app.pg.connect()
  await t.rejects(app.credits.deduct(charge), unavailable)
  await t.rejects(app.credits.balance('ann'), unavailable)
  await t.rejects(app.credits.history('ann'), unavailable)
  t.equal((await app.inject('/api/credits')).statusCode, 503)
  client.release()
  await checkAtRest(t, app)
  t.strictSame((await app.pg.query('select from ai_credits')).rows, [])
  t.equal((await app.credits.deduct(charge)).balance.used, 10)
})

t.test('a server that accepts and never answers is 503 in time, at start and in a call', async t => {
  const { connectionString, disconnect } = await silentServer(t)
  const started = performance.now()
  for (const migrate of [true, false]) {
    await t.rejects(buildGateway(t, { timeout: 200, migrate }, { connectionString }), unavailable, `migrate: ${migrate}`)
    await t.rejects(buildGateway(t, { timeout: 200, migrate, connectionString }), unavailable, `migrate: ${migrate}, own pool`)
  }
  const ledger = createLedger(createPool(t, connectionString), { timeout: 200 })
  await t.rejects(ledger.migrate(), unavailable)
  await t.rejects(ledger.deduct(charge), unavailable)
  await t.rejects(ledger.balance(), unavailable)
  await t.rejects(ledger.history(), unavailable)
  t.ok(performance.now() - started < BOUND)
  disconnect()
})

t.test('a server that freezes is 503 in time, at start and in a call', async t => {
  const { pool, freeze } = poolThatFreezes(createPool(t, await createLedgerDatabase(t)))
  const ledger = createLedger(pool, { timeout: 500 })
  await ledger.migrate()
  freeze()
  await t.rejects(ledger.deduct(charge), unavailable)
  await t.rejects(createLedger(pool, { timeout: 200 }).deduct(charge), unavailable)
  await t.rejects(createLedger(pool, { timeout: 200 }).migrate(), unavailable)
})

t.test('a database that refuses connections is 503', async t => {
  const ledger = createLedger(createPool(t, 'postgresql://nobody@127.0.0.1:1/none'), { timeout: 5000 })
  await t.rejects(ledger.balance(), unavailable)
  await t.rejects(ledger.deduct(charge), { ...unavailable, cause: { code: 'ECONNREFUSED' } })
})

t.test('idle connections that are terminated are replaced, and nobody notices', async t => {
  const app = await buildGateway(t)
  for (let round = 1; round <= 3; round++) {
    await terminateOthers(t, app)
    t.equal((await app.credits.deduct({ ...charge, idempotencyKey: `${round}` })).balance.used, round * 10)
  }
  await checkAtRest(t, app)
})

t.test('a call with a key whose connection is terminated is sent again and charged once', async t => {
  const { app, call, unlock } = await interrupted(t, 'pg_terminate_backend', { ...charge, idempotencyKey: 'k' })
  await unlock()
  t.equal((await call).balance.used, 10)
  await checkAtRest(t, app)
  t.equal((await app.credits.deduct({ ...charge, idempotencyKey: 'k' })).replayed, true)
  t.equal((await app.credits.balance('ann')).used, 10)
})

t.test('a call without a key whose connection is terminated is 503, as it may have been charged', async t => {
  const { app, call, unlock } = await interrupted(t, 'pg_terminate_backend', charge)
  await unlock()
  await t.rejects(call, unavailable)
  await checkAtRest(t, app)
  t.equal((await app.credits.deduct(charge)).balance.used, 10)
})

t.test('a connection that is cut in flight ends its call and nothing else', async t => {
  const direct = await createLedgerDatabase(t)
  const other = createPool(t, direct)
  const { connectionString, cut } = await cuttable(t, direct)
  const app = await buildGateway(t, {}, { connectionString })
  for (const [idempotencyKey, used] of [['k', 10], [undefined, 20]] as const) {
    const unlock = await lock(other, app)
    const call = app.credits.deduct({ ...charge, idempotencyKey })
    call.catch(() => {}) // heard below
    const [pid] = await waiting(other, 1)
    cut()
    // The server would notice only when it answers.
    await other.query('select pg_terminate_backend($1)', [pid])
    await unlock()
    if (idempotencyKey) t.equal((await call).balance.used, used)
    else await t.rejects(call, unavailable)
  }
  t.equal((await app.credits.deduct(charge)).balance.used, 20)
})

t.test('a call that is late takes its connection with it, and the next one gets another', async t => {
  const app = await buildGateway(t, { timeout: 1000 }, { pool: { max: 1 } })
  await app.credits.balance('bob')
  await app.pg.query(`
    create function dawdle() returns trigger language plpgsql as $$ begin perform pg_sleep(60); return new; end $$;
    create trigger dawdle before insert on ai_credit_usage for each row when (new.user_id = 'ann') execute function dawdle()`)
  await t.rejects(app.credits.deduct(charge), unavailable)
  t.equal((await app.credits.deduct({ ...charge, userId: 'bob' })).balance.used, 10)
})

t.test('a statement that is cancelled is sent again, with a key or without', async t => {
  for (const idempotencyKey of ['k', undefined]) {
    const { app, call, unlock } = await interrupted(t, 'pg_cancel_backend', { ...charge, idempotencyKey })
    await unlock()
    t.equal((await call).balance.used, 10)
    await checkAtRest(t, app)
  }
})

for (const sqlState of ['40001', '40P01', '57014']) {
  t.test(`what PostgreSQL rolls back with ${sqlState} is sent again, and charged once`, async t => {
    const app = await buildGateway(t)
    await failWith(app, sqlState, 2)
    t.equal((await app.credits.deduct(charge)).balance.used, 10)
    t.equal((await app.credits.balance('ann')).used, 10)
  })
}

t.test('what is rolled back again and again is 503 in time', async t => {
  const app = await buildGateway(t, { timeout: 600 })
  await failWith(app, '40001', 1_000_000)
  await t.rejects(app.credits.deduct(charge), unavailable)
  await checkAtRest(t, app)
})

t.test('other errors of the database are 503 at once', async t => {
  const app = await buildGateway(t)
  await failWith(app, '23514', 1)
  const reply = await postDeduct(app, body)
  t.equal(reply.statusCode, 503)
  t.notMatch(reply.body, 'made to fail')
  t.equal((await app.credits.deduct(charge)).balance.used, 10)
  await checkAtRest(t, app)
})

t.test('a deadlock with the host is sent again', async t => {
  const connectionString = await createLedgerDatabase(t)
  const other = createPool(t, connectionString)
  // The first to have waited this long is rolled back: the call, not the host.
  await alterDatabase(other, "deadlock_timeout to '2s'")
  const app = await buildGateway(t, { timeout: 30_000 }, { connectionString })
  await app.credits.deduct(charge)
  await sumUp(other)
  await Promise.all(Array.from({ length: 63 }, () => app.credits.deduct(charge))) // the next one writes daily usage
  const host = await other.connect()
  await host.query("begin; set local deadlock_timeout to '60s'")
  await host.query("update ai_credit_daily_usage set used_credits = used_credits where user_id = 'ann'")
  const call = app.credits.deduct(charge)
  await waiting(other, 1)
  // The call has the account and waits for its daily usage.
  await host.query("select from ai_credits where user_id = 'ann' for update")
  await host.query('commit')
  host.release()
  t.equal((await call).balance.used, 650)
})

t.test('without its server every call is 503; with it again, all is as before', async t => {
  const server = await startPostgres()
  t.teardown(() => server.stop('immediate'))
  const app = await buildGateway(t, { timeout: 2000 }, { connectionString: server.connectionString })
  await app.credits.deduct(charge)
  await server.halt('immediate')
  t.equal((await postDeduct(app, body)).statusCode, 503)
  t.equal((await postDeduct(app, body, { 'idempotency-key': 'k' })).statusCode, 503)
  t.equal((await app.inject('/api/credits?user_id=ann')).statusCode, 503)
  await server.restart()
  t.equal((await app.credits.deduct(charge)).balance.used, 20)
  await checkAtRest(t, app)
})

for (const isolation of ['repeatable read', 'serializable']) {
  t.test(`exact where ${isolation} is the default`, async t => {
    const connectionString = await createLedgerDatabase(t)
    await alterDatabase(createPool(t, connectionString), `default_transaction_isolation to '${isolation}'`)
    const apps = [await buildGateway(t, { allowance: 300 }, { connectionString }), await buildGateway(t, { allowance: 300 }, { connectionString })]
    // Their own transactions are not, as one that waited would not see what it waited for.
    await apps[0]!.pg.query("alter table ai_credit_usage add check (current_setting('transaction_isolation') = 'read committed')")
    const calls = Array.from({ length: 500 }, (_, index) => apps[index % 2]!.credits.deduct({ ...charge, credits: 1 }))
    const results = await Promise.allSettled(calls)
    t.equal(results.filter(({ status }) => status === 'fulfilled').length, 300)
    for (const result of results) if (result.status === 'rejected') t.match(result.reason, { statusCode: 402 })
    const { credits, pg } = apps[0]!
    t.strictSame(await credits.balance('ann'), { available: 0, total: 300, used: 300, held: 0 })
    t.match((await credits.history('ann')).entries, [{ used: 300, operation: 'chat', metadata: {} }])
    t.strictSame((await pg.query('select max(seq), count(*) from ai_credit_usage')).rows, [{ max: '300', count: '300' }])
    for (const app of apps) await checkAtRest(t, app)
  })

  t.test(`duplicates of a key are charged once where ${isolation} is the default`, async t => {
    const connectionString = await createLedgerDatabase(t)
    await alterDatabase(createPool(t, connectionString), `default_transaction_isolation to '${isolation}'`)
    const { credits } = await buildGateway(t, {}, { connectionString })
    const answers = await Promise.all(Array.from({ length: 50 }, () => credits.deduct({ ...charge, idempotencyKey: 'k' })))
    t.equal(answers.filter(({ replayed }) => !replayed).length, 1)
    t.equal((await credits.balance('ann')).used, 10)
    await t.rejects(credits.deduct({ ...charge, credits: 11, idempotencyKey: 'k' }), { code: 'FST_CREDITS_IDEMPOTENCY_CONFLICT' })
    await t.rejects(credits.deduct({ ...charge, credits: 10_000 }), { code: 'FST_CREDITS_INSUFFICIENT' })
  })
}

t.test('a failure inside our own transaction leaves none open', async t => {
  const connectionString = await createLedgerDatabase(t)
  await alterDatabase(createPool(t, connectionString), "default_transaction_isolation to 'serializable'")
  const app = await buildGateway(t, {}, { connectionString, pool: { max: 1 } })
  await failWith(app, '23514', 1)
  await t.rejects(app.credits.deduct(charge), unavailable)
  t.equal((await app.credits.deduct(charge)).balance.used, 10)
  await checkAtRest(t, app)
})

t.test('a COMMIT that was answered with ROLLBACK is no success', async t => {
  const connectionString = await createLedgerDatabase(t)
  const pool = createPool(t, connectionString, { max: 1 })
  await alterDatabase(pool, "default_transaction_isolation to 'serializable'")
  const ledger = createLedger(createPool(t, connectionString), { timeout: 5000 })
  await ledger.migrate()
  await ledger.balance('ann')
  for (const idempotencyKey of ['k', undefined]) {
    const { pool: swallowing, swallow } = poolThatRollsBack(createPool(t, connectionString, { max: 1 }))
    const other = createLedger(swallowing, { timeout: 5000 })
    await other.balance('ann')
    swallow()
    const call = other.deduct({ ...charge, idempotencyKey })
    if (idempotencyKey) t.equal((await call).balance.used, 10)
    else await t.rejects(call, unavailable)
    t.equal((await ledger.balance('ann')).used, 10)
  }
})

t.test('a database that is read-only is 503', async t => {
  const connectionString = await createLedgerDatabase(t)
  await (await buildGateway(t, {}, { connectionString })).credits.deduct(charge)
  await alterDatabase(createPool(t, connectionString), 'default_transaction_read_only to on')
  const app = await buildGateway(t, {}, { connectionString })
  t.equal((await postDeduct(app, body)).statusCode, 503)
  t.match(await app.credits.deduct(charge).catch(error => error), { ...unavailable, cause: { code: '25006' } })
  await t.rejects(app.credits.balance('new'), unavailable)
  t.equal((await app.credits.balance('ann')).used, 10, 'what needs no writing works')
})

t.test('a host that closes is answered too', async t => {
  const app = await buildGateway(t)
  const { deduct, balance, history } = app.credits
  await app.close()
  await t.rejects(deduct(charge), unavailable)
  await t.rejects(balance(), unavailable)
  await t.rejects(history(), unavailable)
})

t.test('a host that closes waits for calls under way', async t => {
  const app = await buildGateway(t)
  const other = createPool(t, app.pg.pool.options.connectionString!)
  const unlock = await lock(other, app)
  const call = app.credits.deduct(charge)
  await waiting(other, 1)
  const closing = app.close()
  await unlock()
  t.equal((await call).balance.used, 10)
  await closing
})

// Holds the lock of ann's account in another session, until the test releases it.
async function lock (pool: pg.Pool, app: FastifyInstance) {
  await app.credits.balance('ann')
  const session = await pool.connect()
  await session.query('begin')
  await session.query("select from ai_credits where user_id = 'ann' for update")
  return async () => {
    await session.query('commit')
    session.release()
  }
}

// Makes a call that waits for a lock, and sends its backend this signal.
async function interrupted (t: Test, signal: string, input: typeof charge & { idempotencyKey?: string | undefined }) {
  const app = await buildGateway(t)
  const other = createPool(t, app.pg.pool.options.connectionString!)
  const unlock = await lock(other, app)
  const call = app.credits.deduct(input)
  call.catch(() => {}) // not unhandled: the test waits for it later
  const [pid] = await waiting(other, 1)
  await other.query(`select ${signal}($1)`, [pid])
  return { app, call, unlock }
}

// Waits until so many backends wait for a lock, and returns them.
async function waiting (pool: pg.Pool, count: number): Promise<number[]> {
  for (;;) {
    const { rows } = await pool.query(`
      select pid from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'`)
    if (rows.length >= count) return rows.map(({ pid }) => pid)
  }
}

// Asserts that no statement runs any more, and that the pool has all connections back and can lend them.
async function checkAtRest (t: Test, app: FastifyInstance) {
  const { pool } = app.pg
  const observer = createPool(t, pool.options.connectionString!)
  while ((await observer.query(`
    select from pg_stat_activity
    where datname = current_database() and pid <> pg_backend_pid() and backend_type = 'client backend' and state <> 'idle'`
  )).rows.length > 0) await sleep(10)
  t.equal(pool.idleCount, pool.totalCount, 'no connection is lost')
  t.equal(pool.waitingCount, 0)
  await Promise.all(Array.from({ length: pool.options.max }, () => pool.query('select')))
}

async function terminateOthers (t: Test, app: FastifyInstance) {
  await createPool(t, app.pg.pool.options.connectionString!).query(`
    select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()`)
}

// Makes the next charges fail, so many of them.
async function failWith (app: FastifyInstance, sqlState: string, times: number) {
  await app.pg.query(`
    create sequence failures;
    create function fail() returns trigger language plpgsql as $$
    begin
      if nextval('public.failures') <= ${times} then raise 'made to fail' using errcode = '${sqlState}'; end if;
      return new;
    end $$;
    create trigger fail before insert on ai_credit_usage for each row execute function fail()`)
}

async function alterDatabase (pool: pg.Pool, setting: string) {
  const { rows: [{ name }] } = await pool.query('select current_database() as name')
  await pool.query(`alter database ${name} set ${setting}`)
}

async function silentServer (t: Test) {
  const sockets: Socket[] = []
  const server = createServer(socket => { sockets.push(socket.on('error', () => {})) }).listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.teardown(() => server.close())
  const { port } = server.address() as AddressInfo
  // Pools end only when their connections do.
  const disconnect = () => { for (const socket of sockets) socket.destroy() }
  return { connectionString: `postgresql://nobody@127.0.0.1:${port}/none?sslmode=disable`, disconnect }
}

// A proxy before a server that can cut all connections.
async function cuttable (t: Test, direct: string) {
  const url = new URL(direct)
  const { port, hostname } = url
  const sockets = new Set<Socket>()
  const proxy = createServer(near => {
    const far = createConnection(Number(port), hostname)
    for (const socket of [near, far]) sockets.add(socket.on('error', () => {}))
    near.pipe(far).pipe(near)
  }).listen(0, '127.0.0.1')
  await once(proxy, 'listening')
  t.teardown(() => proxy.close())
  url.host = `127.0.0.1:${(proxy.address() as AddressInfo).port}`
  const cut = () => {
    for (const socket of sockets) socket.destroy()
    sockets.clear()
  }
  return { connectionString: url.href, cut }
}

// Makes connections stop answering, like those of a server that swaps, or that a firewall has cut off.
function poolThatFreezes (pool: pg.Pool) {
  let frozen = false
  pool.on('acquire', client => {
    const query = client.query
    client.query = (...args: unknown[]) => frozen ? new Promise(() => {}) : Reflect.apply(query, client, args)
  })
  return { pool, freeze: () => { frozen = true } }
}

// Makes one COMMIT get the answer ROLLBACK, as if a proxy had lost the transaction.
function poolThatRollsBack (pool: pg.Pool) {
  let rollBack = false
  pool.on('acquire', client => {
    const query = client.query
    client.query = ((config: pg.QueryConfig, ...rest: unknown[]) => {
      if (!rollBack || config.text !== 'commit') return Reflect.apply(query, client, [config, ...rest])
      rollBack = false
      return Reflect.apply(query, client, [{ text: 'rollback' }])
    }) as typeof query
  })
  return { pool, swallow: () => { rollBack = true } }
}
