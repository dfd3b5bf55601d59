// POST {prefix}/credits/check: whether a deduct would be accepted.
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import t, { type Test } from 'tap'
import { buildGateway, postDeduct } from '../helper/app.js'
import { dumpRows } from '../helper/schema-dump.js'

const chat = { credits: 10, operation: 'chat' }

const check = async (app: FastifyInstance, body: unknown, headers: Record<string, string> = {}) =>
  await app.inject({ method: 'POST', url: '/api/credits/check', headers, body: body as object })

t.test('it replies what the deduct would need, and the balance, which stays as it is', async t => {
  const app = await buildGateway(t, { allowance: 100 })
  await app.credits.hold({ credits: 30, operation: 'chat' })
  const before = await dumpRows(app.pg)
  const reply = await check(app, { ...chat, credits: 70, metadata: { words: 3 } }, { 'idempotency-key': 'one' })
  t.equal(reply.statusCode, 200)
  t.strictSame(reply.json(), { affordable: true, required: 70, credits: { available: 70, total: 100, used: 0, held: 30 } })
  t.equal(reply.headers['idempotency-replayed'], undefined)
  t.equal(await dumpRows(app.pg), before, 'nothing is written')
  t.match((await check(app, { ...chat, user_id: 'new' })).json(), { credits: { available: 100 } })
})

// Sends a request to both routes, the check first. Returns the reply that both gave.
async function both (t: Test, app: FastifyInstance, body: unknown, headers: Record<string, string> = {}) {
  const [checked, deducted] = [await check(app, body, headers), await postDeduct(app, body as object, headers)]
  t.equal(checked.statusCode, deducted.statusCode)
  t.strictSame(checked.json(), deducted.json(), deducted.body)
  t.strictSame(checked.headers['retry-after'], deducted.headers['retry-after'])
  return deducted
}

t.test('what the deduct refuses gets the same reply', async t => {
  const app = await buildGateway(t, { allowance: 100, timeout: 2000 })
  const key = { 'idempotency-key': 'one' }
  await postDeduct(app, chat, key)
  t.match((await both(t, app, { ...chat, credits: 91 })).json(), {
    statusCode: 402, code: 'FST_CREDITS_INSUFFICIENT', credits: { available: 90, total: 100, used: 10 }, required: 91
  })
  t.match((await both(t, app, { ...chat, credits: 11 }, key)).json(), { statusCode: 409 })
  for (const body of [{ ...chat, credits: '1' }, { ...chat, credits: 0 }, { ...chat, userid: 'ann' }, { credits: 1 }, { ...chat, metadata: [] }, []]) {
    t.equal((await both(t, app, body)).statusCode, 400)
  }
  t.equal((await both(t, app, chat, { 'idempotency-key': '' })).statusCode, 400)
  t.equal((await both(t, app, '{', { 'content-type': 'application/json' })).statusCode, 400)
  t.equal((await both(t, app, 'x', { 'content-type': 'text/plain' })).statusCode, 415)
  t.equal((await both(t, app, { ...chat, metadata: { words: 'w'.repeat(70_000) } })).statusCode, 413)
  t.equal((await app.inject({ method: 'POST', url: '/api/credits/check?user_id=ann', body: chat })).statusCode, 400)
  t.equal((await app.credits.balance()).used, 10)
  app.pg.pool.connect = () => Promise.reject(new Error('gone'))
  t.equal((await both(t, app, chat)).statusCode, 503)
})

t.test('a request that was made with its key is answered as a replay', async t => {
  const app = await buildGateway(t, { allowance: 100 })
  const key = { 'idempotency-key': 'one' }
  await postDeduct(app, { ...chat, credits: 60 }, key)
  await postDeduct(app, { ...chat, credits: 40 })
  const reply = await check(app, { ...chat, credits: 60 }, key)
  t.strictSame(reply.json(), { affordable: true, required: 60, credits: { available: 40, total: 100, used: 60 } })
  t.equal(reply.headers['idempotency-replayed'], 'true')
})

t.test('identify says whose balance it is, as for a deduct', async t => {
  const app = await buildGateway(t, {
    identify: ({ headers }) => headers['x-user'] === 'service' ? { any: true } : headers['x-user'] as string | undefined
  })
  const as = (user: string) => ({ 'x-user': user })
  t.equal((await both(t, app, chat)).statusCode, 401)
  t.equal((await both(t, app, { ...chat, user_id: 'bob' }, as('ann'))).statusCode, 403)
  t.equal((await both(t, app, chat, as('service'))).statusCode, 400)
  await postDeduct(app, chat, as('ann'))
  t.match((await check(app, chat, as('ann'))).json(), { credits: { used: 10 } })
  t.match((await check(app, { ...chat, user_id: 'ann' }, as('service'))).json(), { credits: { used: 10 } })
  t.match((await check(app, chat, as('bob'))).json(), { credits: { used: 0 } })
})

t.test('a budget counts as for a deduct, also one that identify binds the client to', async t => {
  const app = await buildGateway(t, {
    allowance: 100,
    identify: ({ headers }) => headers['x-key'] === undefined ? 'acme' : { userId: 'acme', budget: `key:${headers['x-key'] as string}` }
  })
  await app.credits.setBudget('acme', 'team', { month: 50 })
  await app.credits.setBudget('acme', 'key:*', { within: 'team', day: 20 })
  t.match((await check(app, { ...chat, credits: 20, budget: 'key:1' })).json(), { affordable: true, required: 20, credits: { available: 100 } })
  t.match((await check(app, { ...chat, credits: 20 }, { 'x-key': '1' })).json(), { affordable: true })
  t.equal((await app.credits.budgets('acme')).entries.length, 2, 'none is made')
  const refused = { statusCode: 402, code: 'FST_CREDITS_BUDGET_EXCEEDED', budget: 'key:1', limit: 20, used: 0, required: 21 }
  t.match((await both(t, app, { ...chat, credits: 21, budget: 'key:1' })).json(), refused)
  t.match((await both(t, app, { ...chat, credits: 21 }, { 'x-key': '1' })).json(), refused)
  t.equal((await both(t, app, { ...chat, budget: 'team' }, { 'x-key': '1' })).statusCode, 403)
  t.equal((await both(t, app, { ...chat, budget: 'nobody' })).statusCode, 404)
  t.equal((await both(t, app, { ...chat, budget: 'key:*' })).statusCode, 400)
})

t.test('user_id is required where nothing else names the account', async t => {
  const app = await buildGateway(t, { defaultUser: null })
  t.match((await both(t, app, chat)).json(), { statusCode: 400, message: 'body/user_id is required' })
  t.equal((await check(app, { ...chat, user_id: 'ann' })).statusCode, 200)
})

t.test('the host\'s options of the route that deducts guard it, too', async t => {
  const calls: string[] = []
  const note = (name: string) => async (request: FastifyRequest, reply: FastifyReply) => {
    calls.push(`${name} ${request.routeOptions.url}`)
    if (request.headers.stop === name) await reply.code(418).send({ stopped: name })
  }
  const app = await buildGateway(t, {
    routes: { deduct: { onRequest: note('onRequest'), preValidation: note('preValidation'), preHandler: note('preHandler'), constraints: { host: 'a.example' } } }
  })
  const host = 'a.example'
  t.equal((await check(app, chat)).statusCode, 404, 'the constraint holds')
  t.equal((await check(app, chat, { host })).statusCode, 200)
  const all = ['onRequest', 'preValidation', 'preHandler']
  t.strictSame(calls, all.map(name => `${name} /api/credits/check`))
  for (const stop of all) t.strictSame((await check(app, chat, { host, stop })).json(), { stopped: stop })
})
