// not on Citus: about HTTP
import t from 'tap'
import fastifyPostgres from '@fastify/postgres'
import Fastify, { type FastifyInstance } from 'fastify'
import fp from 'fastify-plugin'
import credits from '../../src/index.js'
import { buildHost, defaults, getBalance } from '../helper/app.js'
import { createLedgerDatabase } from '../helper/database.js'

const one = { credits: 1, operation: 'chat' }

t.test('the routes go under the prefix, after the prefix of the context', async t => {
  const host = await buildHost(t)
  await host.register(async gateway => {
    await gateway.register(credits, { ...defaults, prefix: '/billing/' })
  }, { prefix: '/gw' })
  t.equal((await host.inject('/gw/billing/credits')).statusCode, 200)
  t.equal((await host.inject({ method: 'POST', url: '/gw/billing/credits/deduct', body: one })).statusCode, 200)
  t.equal((await host.inject('/billing/credits')).statusCode, 404)
})

t.test('an empty prefix', async t => {
  for (const prefix of ['', '/']) {
    const host = await buildHost(t)
    await host.register(credits, { ...defaults, prefix })
    t.equal((await host.inject('/credits')).statusCode, 200)
  }
})

t.test('several registrations, each with its own prefix, database, default user and allowance', async t => {
  const host = Fastify()
  t.teardown(() => host.close())
  for (const [name, allowance] of [['red', 100], ['blue', 200]] as const) {
    const connectionString = await createLedgerDatabase(t)
    await host.register(async gateway => {
      await gateway.register(fastifyPostgres, { connectionString })
      await gateway.register(credits, { ...defaults, prefix: `/${name}`, defaultUser: name, allowance })
      gateway.get(`/${name}/spend`, () => gateway.credits.deduct(one))
    })
  }
  t.equal((await host.inject('/red/spend')).json().userId, 'red')
  t.equal((await host.inject('/red/credits')).json().credits.available, 99)
  t.equal((await host.inject('/blue/credits')).json().credits.available, 200)
  t.notOk(host.hasDecorator('credits'))
})

t.test('a named instance of @fastify/postgres', async t => {
  const host = Fastify()
  t.teardown(() => host.close())
  await host.register(fastifyPostgres, { connectionString: 'postgres://nobody@127.0.0.1:1/unused' })
  await host.register(fastifyPostgres, { connectionString: await createLedgerDatabase(t), name: 'billing' })
  await host.register(credits, { ...defaults, pg: 'billing' })
  t.equal((await getBalance(host)).available, 10000)
})

t.test('a connection string of the plugin\'s own leaves the host\'s fastify.pg alone', async t => {
  const connectionString = await createLedgerDatabase(t)
  const host = Fastify()
  await host.register(credits, { ...defaults, connectionString })
  await host.register(fastifyPostgres, { connectionString })
  await host.register(async child => { await child.register(credits, { ...defaults, connectionString, prefix: '/child' }) })
  t.equal((await getBalance(host)).available, 10000)
  t.equal((await host.inject('/child/credits')).statusCode, 200)
  t.strictSame((await host.pg.query('select 1 as one')).rows, [{ one: 1 }])
  await host.close()
})

t.test('the plugin closes the pool that it has opened', async t => {
  const connectionString = await createLedgerDatabase(t)
  const host = Fastify()
  await host.register(credits, { ...defaults, connectionString })
  const { credits: decorated } = host
  await decorated.balance()
  await host.close()
  await t.rejects(decorated.balance(), { code: 'FST_CREDITS_UNAVAILABLE' })
})

t.test('twice in one context fails; in a child it shadows', async t => {
  const host = await buildHost(t)
  await host.register(credits, { ...defaults, defaultUser: 'outer' })
  await host.register(async child => {
    await child.register(credits, { ...defaults, defaultUser: 'inner', prefix: '/inner' })
    child.get('/spend', () => child.credits.deduct(one))
  })
  host.register(fp(async scope => { await scope.register(credits, { ...defaults, prefix: '/again' }) }))
  await t.rejects(async () => await host.ready(), {
    code: 'FST_CREDITS_ALREADY_REGISTERED', message: /registered in this context already: register it again in a context of its own/
  })
})

t.test('names that the host has taken are refused by name, and nothing is added', async t => {
  const taken: Array<[name: string, take: (host: FastifyInstance) => unknown]> = [
    ['fastify.credits', host => host.decorate('credits' as string, {})],
    ['fastify.credits', host => host.decorate('credits' as string, { getter: () => 'mine' })],
    ['request.credits', host => host.decorateRequest('credits' as string, 5)],
    ['request.creditsUserId', host => host.decorateRequest('creditsUserId' as string, '')],
    ['request.creditsBudget', host => host.decorateRequest('creditsBudget' as string, '')]
  ]
  for (const [name, take] of taken) {
    const host = await buildHost(t)
    take(host)
    await t.rejects(async () => await host.register(credits, defaults), { code: 'FST_CREDITS_NAME_TAKEN', message: `${name} is there already` })
    t.strictSame((await host.pg.query("select from pg_class where relname = 'ai_credits'")).rows, [])
  }
  const host = await buildHost(t)
  host.decorateRequest('credits' as string, 5)
  host.register(async child => { await child.register(credits, defaults) })
  await t.rejects(async () => await host.ready(), { code: 'FST_CREDITS_NAME_TAKEN', message: 'request.credits is there already' })
})

t.test('fastify.credits of the host is shadowed in a child context, as any decorator is', async t => {
  const host = await buildHost(t)
  host.decorate('credits' as string, 'the host\'s')
  await host.register(async child => {
    await child.register(credits, defaults)
    child.get('/spend', () => child.credits.deduct(one))
  })
  t.equal((await host.inject('/spend')).json().credits, 1)
  t.equal(host.credits as unknown, 'the host\'s')
})

t.test('a child\'s registration shadows its parent\'s', async t => {
  const host = await buildHost(t)
  await host.register(credits, { ...defaults, defaultUser: 'outer' })
  await host.register(async child => {
    await child.register(credits, { ...defaults, defaultUser: 'inner', prefix: '/inner' })
    child.get('/spend', () => child.credits.deduct(one))
  })
  host.get('/spend-outside', () => host.credits.deduct(one))
  t.equal((await host.inject('/spend')).json().userId, 'inner')
  t.equal((await host.inject('/spend-outside')).json().userId, 'outer')
})

t.test('routes: false only decorates; each route can be left out or guarded alone', async t => {
  const none = await buildHost(t)
  await none.register(credits, { ...defaults, routes: false })
  t.equal((await none.inject('/api/credits')).statusCode, 404)
  t.equal((await none.credits.deduct(one)).credits, 1)

  const some = await buildHost(t)
  await some.register(credits, {
    ...defaults,
    routes: {
      deduct: {
        async onRequest (request) {
          if (request.headers.authorization !== 'Bearer secret') throw Object.assign(new Error('Who?'), { statusCode: 401 })
        },
        config: { rateLimit: { max: 1 } } as object
      }
    }
  })
  const post = (headers = {}) => some.inject({ method: 'POST', url: '/api/credits/deduct', headers, body: one })
  t.equal((await post()).statusCode, 401)
  t.equal((await post({ authorization: 'Bearer secret' })).statusCode, 200)
  t.equal((await some.inject('/api/credits')).statusCode, 200)

  const readOnly = await buildHost(t)
  await readOnly.register(credits, { ...defaults, routes: { deduct: false } })
  t.equal((await readOnly.inject({ method: 'POST', url: '/api/credits/deduct', body: one })).statusCode, 404)
  t.equal((await readOnly.inject('/api/credits')).statusCode, 200)
})
