// not on Citus: starts a server of its own
// needs a real server
import { setTimeout as sleep } from 'node:timers/promises'
import type { FastifyInstance } from 'fastify'
import t from 'tap'
import { createPool } from '../helper/database.js'
import { buildCharged, open, reconciles, until } from '../helper/charging.js'
import { startPostgres } from '../../bench/postgres/postgres.js'

const video = { operation: 'video', cost: 100 }

function declare (waiting: (() => void)[]) {
  const work = () => new Promise<void>(resolve => waiting.push(resolve))
  return (app: FastifyInstance) => {
    app.get('/refuse', { config: { credits: video } }, async () => 'ok')
    app.get('/allow', { config: { credits: { ...video, onUnavailable: 'allow' } } }, async ({ credits }) => {
      credits!.use(1)
      credits!.cancel()
      return { holdId: credits!.holdId, held: credits!.held }
    })
    app.get('/before', { config: { credits: { ...video, capture: 'before' } } }, async () => {
      await work()
      return 'the result'
    })
    app.get('/work', { config: { credits: video } }, async () => {
      await work()
      return 'ok'
    })
    app.get('/short', { config: { credits: { ...video, ttl: 1000 } } }, async () => {
      await work()
      return 'ok'
    })
  }
}

t.test('a database that is away, and comes back', async t => {
  const server = await startPostgres()
  t.teardown(() => server.stop('immediate'))
  const waiting: (() => void)[] = []
  const gateway = await buildCharged(t, declare(waiting), {
    connectionString: server.connectionString, options: { timeout: 2000 }
  })
  const { ask, app, lines } = gateway
  const replies = ['/before', '/work', '/work', '/short'].map((path, index) => ask(`user ${index}`, path))
  await until(() => waiting.length, length => length === 4)
  await server.halt('immediate')

  const refused = await ask('ann', '/refuse')
  t.equal(refused.status, 503)
  t.equal(refused.headers.get('retry-after'), '1')
  t.match(JSON.parse(refused.text), { code: 'FST_CREDITS_UNAVAILABLE' })
  t.strictSame(JSON.parse((await ask('ann', '/allow')).text), { holdId: null, held: 0 })
  t.ok(lines.some(({ msg, userId }) => /served without charge/.test(msg) && userId === 'ann'))

  for (const resume of waiting) resume()
  const [before, ...after] = await Promise.all(replies)
  t.equal(before!.status, 503)
  t.notMatch(before!.text, /result/, 'an unpaid result is not sent')
  for (const { status } of after) t.equal(status, 200)
  const lost = await until(() => lines.find(({ msg }) => /could not be settled/.test(msg)), line => line)
  t.match(lost, { holdId: String, userId: 'user 3', credits: 100 }, 'of a hold that has lapsed, the log has the id')

  await server.restart()
  t.match(await gateway.settled('user 0'), { used: 0, available: 1000 }, 'what was not sent is given back')
  for (const user of ['user 1', 'user 2']) t.match(await gateway.settled(user), { used: 100 }, 'a capture is repeated')
  t.match(await app.credits.balance('user 3'), { used: 0 })
  t.match(await app.credits.balance('ann'), { used: 0 })
  await reconciles(t, gateway)
})

t.test('a gateway that closes settles what is in flight', async t => {
  const waiting: (() => void)[] = []
  const gateway = await buildCharged(t, declare(waiting), { server: { forceCloseConnections: 'idle' } })
  const { app } = gateway
  const { pool } = app.pg
  const observer = createPool(t, pool.options.connectionString!)
  const listening = open(`${gateway.url}/work`, 'ann', { connection: 'close' })
  const injected = app.inject({ url: '/work', headers: { 'x-user': 'bob' } })
  await until(() => waiting.length, length => length === 2)
  const closing = app.close()
  await sleep(20)
  for (const resume of waiting) resume()
  const reply = await listening
  t.equal(reply.statusCode, 200)
  await reply.toArray()
  t.equal((await injected).statusCode, 200)
  await closing
  const { rows } = await observer.query('select user_id, used_credits::int as used from ai_credits order by 1')
  t.strictSame(rows, [{ user_id: 'ann', used: 100 }, { user_id: 'bob', used: 100 }])
  t.ok(pool.ended)
})

t.test('a gateway that closes waits at most as long as a call may take, and logs the charges that are left', async t => {
  const waiting: (() => void)[] = []
  const gateway = await buildCharged(t, declare(waiting), { options: { timeout: 500 } })
  gateway.ask('ann', '/work').catch(() => {})
  await until(() => waiting.length, length => length === 1)
  await gateway.app.close()
  t.match(gateway.lines, [{ msg: /closes before a charged request is settled/, userId: 'ann', holdId: String }])
  waiting.pop()!()
  await sleep(50)
  t.equal(gateway.lines.length, 1, 'once')
})
