// needs a real server
import { randomUUID } from 'node:crypto'
import { execFile } from 'node:child_process'
import { mkdtemp, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { promisify } from 'node:util'
import pg from 'pg'
import t, { type Test } from 'tap'
import { buildGateway } from '../helper/app.js'
import { citus } from '../helper/citus.js'
import { createDatabase, createLedgerDatabase, createPool } from '../helper/database.js'
import { handOver, temporaryFolder } from '../../bench/postgres/unprivileged.js'
import { charge, checkRecovered, checkUnavailable, unavailable } from './rest.js'

const run = promisify(execFile)
const skip = citus !== undefined && 'needs triggers, or changes the settings of one server'

t.test('a server that turns read-only, and back', { skip }, async t => {
  const direct = await createLedgerDatabase(t)
  const admin = createPool(t, `${direct}&options=-c%20default_transaction_read_only%3Doff`)
  const app = await buildGateway(t, {}, { connectionString: direct, pool: { max: 3 } })
  await app.credits.deduct(charge)
  await alter(admin, 'set default_transaction_read_only to on')
  await terminateOthers(admin)
  for (const key of [undefined, 'k']) await checkUnavailable(t, app, key)
  const calls = Array.from({ length: 30 }, () => app.credits.deduct(charge))
  for (const outcome of await Promise.allSettled(calls)) t.match(outcome, { reason: { ...unavailable, cause: { code: '25006' } } })
  await alter(admin, 'reset default_transaction_read_only')
  // Connections keep what they began with: without new ones this would go on.
  await Promise.all(Array.from({ length: 3 }, () => app.credits.grant({ userId: 'ann', credits: 1 })))
  t.equal((await app.credits.deduct({ ...charge, idempotencyKey: 'k' })).balance.used, 20)
  await checkRecovered(t, app, direct)
})

t.test('out of connections', async t => {
  const direct = await createDatabase(t)
  const admin = createPool(t, direct)
  const user = await limitedUser(t, admin, 2)
  const connectionString = String(Object.assign(new URL(direct), { username: user }))
  const app = await buildGateway(t, {}, { connectionString, pool: { max: 2 } })
  await app.credits.deduct(charge)
  await app.pg.query('select')
  const others = [new pg.Client(connectionString), new pg.Client(connectionString)]
  for (const other of others) other.on('error', () => {})
  await admin.query('select pg_terminate_backend(pid) from pg_stat_activity where usename = $1', [user])
  await untilGone(admin, user)
  await Promise.all(others.map(other => other.connect()))
  await checkUnavailable(t, app)
  t.match(await app.credits.balance('ann').catch(error => error), { ...unavailable, cause: { code: '53300' } })
  await Promise.all(others.map(other => other.end()))
  await untilGone(admin, user)
  t.equal((await app.credits.deduct(charge)).balance.used, 20)
  await checkRecovered(t, app, direct)
})

t.test('a statement timeout that a statement cannot keep: 503 in time, tried a few times, and its neighbours go on', { skip }, async t => {
  const direct = await createLedgerDatabase(t)
  const app = await buildGateway(t, { timeout: 4000 }, { connectionString: direct })
  await Promise.all(['ann', 'bob', 'cleo'].map(user => app.credits.balance(user)))
  const admin = createPool(t, direct)
  await admin.query(`
    create sequence attempts;
    create function dawdle() returns trigger language plpgsql as $$
    begin perform nextval('public.attempts'); perform pg_sleep(600); return new; end $$;
    create trigger dawdle before insert on ai_credit_usage for each row when (new.user_id = 'ann') execute function dawdle()`)
  await alter(admin, "set statement_timeout to '500ms'")
  await terminateOthers(admin)
  while (app.pg.pool.totalCount > 0) await sleep(5) // else a call may be sent on a connection that is about to end
  const calls = ['ann', 'bob', 'cleo', 'ann'].map(userId => app.credits.deduct({ ...charge, userId }))
  t.match(await Promise.allSettled(calls), [
    { reason: { ...unavailable } }, { value: { userId: 'bob' } }, { value: { userId: 'cleo' } }, { reason: unavailable }
  ])
  const { rows: [{ attempts }] } = await admin.query('select last_value::int as attempts from attempts')
  t.ok(attempts > 1 && attempts < 20, `${attempts} attempts`)
  await admin.query('drop trigger dawdle on ai_credit_usage')
  t.equal((await app.credits.deduct(charge)).balance.used, 10)
  await checkRecovered(t, app, direct)
})

for (const sqlState of ['40001', '40P01', '57014']) {
  t.test(`what always fails with ${sqlState} is tried a few times, and not more`, { skip }, async t => {
    const direct = await createLedgerDatabase(t)
    const app = await buildGateway(t, { timeout: 1600 }, { connectionString: direct })
    await app.pg.query(`
      create sequence attempts;
      create function fail() returns trigger language plpgsql as $$
      begin perform nextval('public.attempts'); raise 'made to fail' using errcode = '${sqlState}'; end $$;
      create trigger fail before insert on ai_credit_usage for each row execute function fail()`)
    await checkUnavailable(t, app)
    const { rows: [{ attempts }] } = await app.pg.query('select last_value::int as attempts from attempts')
    // At least half of 25 ms before the second, and twice the one before from there on.
    t.ok(attempts > 1 && attempts <= 1 + Math.log2(1600 / 12.5 + 1), `${attempts} attempts`)
    await app.pg.query('drop trigger fail on ai_credit_usage')
    await app.credits.deduct(charge)
    await checkRecovered(t, app, direct)
  })
}

t.test('a table that somebody locks whole: 503 in time, and all is as before when it is free', async t => {
  const direct = await createLedgerDatabase(t)
  const app = await buildGateway(t, { timeout: 2000 }, { connectionString: direct })
  await app.credits.deduct({ ...charge, idempotencyKey: 'before' })
  const locker = await createPool(t, direct).connect()
  await locker.query('begin; lock table ai_credits in access exclusive mode')
  await Promise.all([undefined, 'k', 'k'].map(key => checkUnavailable(t, app, key)))
  await locker.query('commit')
  locker.release()
  await app.credits.deduct({ ...charge, idempotencyKey: 'k' })
  await checkRecovered(t, app, direct)
  const { rowCount } = await app.pg.query("select from ai_credit_usage where idempotency_key = 'k'")
  t.equal(rowCount, 1)
})

t.test('an account that somebody holds: calls on others do not feel it', async t => {
  const direct = await createLedgerDatabase(t)
  const app = await buildGateway(t, { timeout: 3000 }, { connectionString: direct, pool: { max: 5 } })
  await app.credits.balance('ann')
  const locker = await createPool(t, direct).connect()
  await locker.query("begin; select from ai_credits where user_id = 'ann' for update")
  const keys = Array.from({ length: 20 }, (_, i) => `held ${i}`)
  const held = keys.map(key => checkUnavailable(t, app, key))
  let others = 0
  const load = Array.from({ length: 8 }, async (_, i) => {
    for (let call = 0; call < 10; call++) {
      await app.credits.deduct({ ...charge, userId: `user ${(i + call) % 5}` })
      others++
    }
  })
  await Promise.all(load)
  t.equal(others, 80)
  await Promise.all(held)
  await locker.query('commit')
  locker.release()
  // One whose answer came too late for its caller may still be at it, and a repetition charges it once all the same.
  await Promise.all(keys.map(idempotencyKey => app.credits.deduct({ ...charge, idempotencyKey })))
  t.equal((await app.credits.balance('ann')).used, 200)
  await checkRecovered(t, app, direct)
})

t.test('a full disk', { skip }, async t => {
  const folder = await smallDisk(t)
  if (folder === undefined) {
    t.pass('no file system can be mounted here')
    return
  }
  const direct = await createLedgerDatabase(t)
  const admin = createPool(t, direct)
  const space = `space_${randomUUID().replaceAll('-', '')}`
  const app = await buildGateway(t, {}, { connectionString: direct })
  await Promise.all(['ann', 'bob'].map(userId => app.credits.deduct({ ...charge, userId })))
  await admin.query(`create tablespace ${space} location '${folder}'`)
  t.teardown(() => dropSpace(direct, space))
  await admin.query(`alter table ai_credit_usage set tablespace ${space}`)
  await admin.query(`create table ballast (filling text) tablespace ${space}`)
  await t.rejects(admin.query('insert into ballast select repeat(md5(n::text), 60) from generate_series(1, 20000) n'), { code: '53100' })
  const { used } = await exhaust(app)
  const calls = ['ann', 'bob', 'ann', 'bob'].map(userId => app.credits.deduct({ ...charge, userId }))
  const outcomes = await Promise.allSettled(calls)
  for (const outcome of outcomes) t.match(outcome, { reason: { ...unavailable, cause: { code: '53100' } } })
  await checkUnavailable(t, app, 'k')
  await admin.query('drop table ballast')
  t.equal((await app.credits.deduct({ ...charge, idempotencyKey: 'k' })).balance.used, used + 10)
  await checkRecovered(t, app, direct)
})

// Until not even the space that its pages still had is left; returns the balance.
async function exhaust (app: Awaited<ReturnType<typeof buildGateway>>) {
  for (;;) {
    try {
      await app.credits.deduct({ ...charge, credits: 1, metadata: { note: 'x'.repeat(500) } })
    } catch (error) {
      if ((error as { statusCode?: number }).statusCode !== 503) throw error
      return await app.credits.balance('ann')
    }
  }
}

// A file system of a few megabytes, where this process may mount one and the server can see it.
async function smallDisk (t: Test): Promise<string | undefined> {
  if (process.platform !== 'linux' || process.getuid?.() !== 0) return undefined
  const mountPoint = await mkdtemp(join(temporaryFolder, 'fastify-ai-credits-disk-'))
  t.teardown(() => rm(mountPoint, { recursive: true, force: true }))
  try {
    await run('mount', ['-t', 'tmpfs', '-o', 'size=4m', 'tmpfs', mountPoint])
  } catch {
    return undefined
  }
  t.teardown(() => run('umount', [mountPoint]))
  await handOver(mountPoint)
  return mountPoint
}

async function dropSpace (direct: string, space: string) {
  const client = new pg.Client(direct)
  await client.connect()
  await client.query('drop table ai_credit_usage cascade')
  await client.query(`drop tablespace ${space}`)
  await client.end()
}

async function limitedUser (t: Test, admin: pg.Pool, connections: number): Promise<string> {
  const name = `user_${randomUUID().replaceAll('-', '')}`
  await admin.query(`create role ${name} login connection limit ${connections}; grant all on schema public to ${name}`)
  t.teardown(async () => {
    await admin.query(`drop owned by ${name}; drop role ${name}`)
  })
  return name
}

async function untilGone (admin: pg.Pool, user: string) {
  while ((await admin.query('select from pg_stat_activity where usename = $1', [user])).rowCount! > 0) await sleep(10)
}

async function alter (admin: pg.Pool, change: string) {
  const { rows: [{ name }] } = await admin.query('select current_database() as name')
  await admin.query(`alter database ${name} ${change}`)
}

async function terminateOthers (admin: pg.Pool) {
  await admin.query(`
    select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()`)
}
