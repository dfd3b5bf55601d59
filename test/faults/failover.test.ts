// not on Citus: starts a server of its own
// needs a real server
import { basename } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import t, { type Test } from 'tap'
import { buildGateway } from '../helper/app.js'
import { createPool } from '../helper/database.js'
import { startPostgres, startStandby, type PostgresServer } from '../../bench/postgres/postgres.js'
import { Proxy } from './proxy.js'
import { charge, checkRecovered, checkUnavailable } from './rest.js'

const skip = process.platform === 'win32' && 'the standby is made with cp'
const CALLERS = 8

t.test('a standby that is promoted has all that was acknowledged, where it was synchronous', { skip }, async t => {
  const { primary, standby, proxy } = await open(t)
  await setStandby(t, primary, basename(standby.folder))
  const app = await buildGateway(t, { timeout: 3000 }, { connectionString: proxy.connectionString })
  const acknowledged: string[] = []
  const load = { over: false }
  const callers = Array.from({ length: CALLERS }, async (_, caller) => {
    for (let call = 0; !load.over; call++) {
      const key = `${caller} ${call}`
      const input = { ...charge, userId: `user ${call % 3}`, credits: 1, idempotencyKey: key }
      const done = await until(() => load.over, () => app.credits.deduct(input))
      if (done) acknowledged.push(key)
    }
  })
  while (acknowledged.length < 100) await sleep(10)
  await primary.kill()
  await checkUnavailable(t, app)
  const before = acknowledged.length
  await promote(t, standby)
  proxy.leadTo(standby.connectionString)
  while (acknowledged.length < before + 100) await sleep(10)
  load.over = true
  await Promise.all(callers)
  const { rows } = await createPool(t, standby.connectionString).query(`
    select idempotency_key as key, count(*)::int from ai_credit_usage where idempotency_key is not null group by 1`)
  const recorded = new Map(rows.map(({ key, count }) => [key, count]))
  t.strictSame(acknowledged.filter(key => recorded.get(key) !== 1), [], 'recorded once each')
  await checkRecovered(t, app, standby.connectionString)
})

t.test('the server of before, that is a standby now, is left as soon as the way leads to another', { skip }, async t => {
  const { primary, standby, proxy } = await open(t)
  const app = await buildGateway(t, {}, { connectionString: proxy.connectionString })
  await app.credits.deduct(charge)
  await untilFollowed(t, primary)
  proxy.leadTo(standby.connectionString)
  proxy.cutAll()
  await Promise.all(Array.from({ length: 20 }, () => checkUnavailable(t, app)))
  proxy.leadTo(primary.connectionString) // without a cut: what was connected to the standby is of no use
  const first = await Promise.allSettled(Array.from({ length: 10 }, () => app.credits.grant({ userId: 'ann', credits: 1 })))
  t.ok(first.every(({ status }) => status === 'fulfilled'))
  t.equal((await app.credits.deduct(charge)).balance.used, 20)
  await checkRecovered(t, app, primary.connectionString)
})

t.test('asynchronous: what had not arrived is lost, acknowledged or not, and the rest adds up', { skip }, async t => {
  const { primary, standby, proxy } = await open(t)
  const app = await buildGateway(t, {}, { connectionString: proxy.connectionString })
  const charged = (key: string) => app.credits.deduct({ ...charge, idempotencyKey: key })
  await charged('arrived')
  await untilFollowed(t, primary)
  await standby.halt('fast')
  t.equal((await charged('lost')).balance.used, 20)
  await primary.kill()
  await standby.restart()
  await promote(t, standby)
  proxy.leadTo(standby.connectionString)
  t.match(await charged('arrived'), { replayed: true, balance: { used: 10 } })
  t.match(await charged('lost'), { replayed: false, balance: { used: 20 } }, 'sent again, it is charged again: once')
  await checkRecovered(t, app, standby.connectionString)
})

// Two servers of which one follows the other, and a way to the first.
async function open (t: Test) {
  const primary = await startPostgres({ settings: { fsync: 'on' } })
  t.teardown(() => primary.stop('immediate'))
  await primary.halt()
  const standby = await startStandby(primary, { settings: { fsync: 'on' } })
  t.teardown(() => standby.stop('immediate'))
  await primary.restart()
  const proxy = await Proxy.open(t, primary.connectionString)
  return { primary, standby, proxy }
}

async function setStandby (t: Test, primary: PostgresServer, name: string) {
  const pool = createPool(t, primary.connectionString)
  await pool.query(`alter system set synchronous_standby_names to '"${name}"'`)
  await pool.query('select pg_reload_conf()')
  while ((await pool.query("select from pg_stat_replication where sync_state = 'sync'")).rowCount === 0) await sleep(20)
}

async function untilFollowed (t: Test, primary: PostgresServer) {
  const pool = createPool(t, primary.connectionString)
  while ((await pool.query('select from pg_stat_replication where replay_lsn >= pg_current_wal_lsn()')).rowCount === 0) await sleep(20)
}

async function promote (t: Test, standby: PostgresServer) {
  const { rows: [{ promoted }] } = await createPool(t, standby.connectionString).query('select pg_promote() as promoted')
  t.ok(promoted)
}

// Whether it was answered before nobody cared any more.
async function until (over: () => boolean, call: () => Promise<unknown>): Promise<boolean> {
  while (!over()) {
    try {
      await call()
      return true
    } catch {
      await sleep(20)
    }
  }
  return false
}
