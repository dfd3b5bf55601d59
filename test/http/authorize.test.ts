// about HTTP, not the database
import auth from '@fastify/auth'
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import t, { type Test } from 'tap'
import credits, { type Authorize } from '../../src/index.js'
import { buildHost, defaults } from '../helper/app.js'
import { createLedgerDatabase, createPool } from '../helper/database.js'

type Row = [title: string, authorize: unknown, status: number]

const refusal = Object.assign(new Error('Who?'), { statusCode: 401 })
const later = async () => await new Promise(resolve => setImmediate(resolve))

const connectionString = await createLedgerDatabase(t)
const pool = createPool(t, connectionString)

/** A gateway with a slow onSend hook, for instance one that compresses: a reply that a hook has sent is not yet written. */
async function build (t: Test, authorize: unknown, prepare = async (_host: FastifyInstance) => {}): Promise<FastifyInstance> {
  const host = await buildHost(t, { connectionString })
  host.addHook('onSend', later)
  await prepare(host)
  await host.register(credits, { ...defaults, management: { authorize: authorize as Authorize } })
  return host
}

async function grant (host: FastifyInstance, userId = 'ann') {
  return await host.inject({ method: 'POST', url: '/api/credits/grants', body: { user_id: userId, credits: 1_000_000 } })
}

const yes: Array<[title: string, authorize: unknown]> = [
  ['true', () => true],
  ['a promise of true', async () => true],
  ['a promise of nothing', async () => {}],
  ['a promise of a payload', async () => ({ sub: 'service' })],
  ['a thenable', () => ({ then: (resolve: () => void) => resolve() })],
  ['done()', (_request: unknown, _reply: unknown, done: () => void) => done()],
  ['done(null)', (_request: unknown, _reply: unknown, done: (error: null) => void) => done(null)],
  ['done() later', (_request: unknown, _reply: unknown, done: () => void) => { setImmediate(done) }],
  ['done() of a function with rest parameters', (...[, , done]: Array<() => void>) => done!()],
  ['a promise of a function that takes done', (_request: unknown, _reply: unknown, _done: unknown) => later()],
  ['a list of yes', [() => true, async () => {}, (_request: unknown, _reply: unknown, done: () => void) => done()]]
]

for (const [title, authorize] of yes) {
  t.test(`authorize lets through: ${title}`, async t => {
    t.equal((await grant(await build(t, authorize))).statusCode, 200)
  })
}

const no: Row[] = [
  ['false', () => false, 403],
  ['a promise of false', async () => false, 403],
  ['a promise of null', async () => null, 403],
  ['a promise of 0', async () => 0, 403],
  ['a promise of no text', async () => '', 403],
  ['an error', () => { throw refusal }, 401],
  ['a promise that rejects', async () => { throw refusal }, 401],
  ['a promise that rejects with nothing', async () => await Promise.reject(), 500], // eslint-disable-line prefer-promise-reject-errors
  ['done(error)', (_request: unknown, _reply: unknown, done: (error: Error) => void) => done(refusal), 401],
  ['done(error) later', (_request: unknown, _reply: unknown, done: (error: Error) => void) => { setImmediate(done, refusal) }, 401],
  ['done(error), then done()', (_request: unknown, _reply: unknown, done: (error?: Error) => void) => { done(refusal); done() }, 401],
  ['done(false)', (_request: unknown, _reply: unknown, done: (error: unknown) => void) => done(false), 500],
  ['done(null, false)', (_request: unknown, _reply: unknown, done: (error: unknown, said: unknown) => void) => done(null, false), 403],
  ['false of a function that takes done', (_request: unknown, _reply: unknown, _done: unknown) => false, 403],
  ['an error of a function that takes done', (_request: unknown, _reply: unknown, _done: unknown) => { throw refusal }, 401],
  ['a promise of false, of a function that takes done', (_request: unknown, _reply: unknown, _done: unknown) => Promise.resolve(false), 403],
  ['nothing', () => {}, 500],
  ['null', () => null, 500],
  ['something', () => 'yes', 500],
  ['a promise that is not returned', () => { later() }, 500],
  ['done of a wrapper that loses its parameters', (...[, , done]: Array<() => void>) => { setImmediate(done!) }, 500],
  ['a generator', function * () { yield true }, 500],
  ['a reply', (_request: unknown, reply: FastifyReply) => { reply.code(418).send({}) }, 418],
  ['a reply that is returned', (_request: unknown, reply: FastifyReply) => reply.code(418).send({}), 418],
  ['a reply of an async function', async (_request: unknown, reply: FastifyReply) => { reply.code(418).send({}) }, 418],
  ['a reply of an async function that returns it', async (_request: unknown, reply: FastifyReply) => reply.code(418).send({}), 418],
  ['a reply, then done()', (_request: unknown, reply: FastifyReply, done: () => void) => { reply.code(418).send({}); done() }, 418],
  ['a reply without done()', (_request: unknown, reply: FastifyReply, _done: unknown) => { reply.code(418).send({}) }, 418],
  ['a reply, then true', (_request: unknown, reply: FastifyReply) => { reply.code(418).send({}); return true }, 418],
  ['an error that is sent', async (_request: unknown, reply: FastifyReply) => { reply.send(refusal) }, 401],
  ['a redirect', async (_request: unknown, reply: FastifyReply) => { reply.redirect('/login') }, 302],
  ['the reply of a missing route', async (_request: unknown, reply: FastifyReply) => { reply.callNotFound() }, 404],
  ['a raw reply', async (_request: unknown, { raw }: FastifyReply) => { raw.writeHead(418); setImmediate(() => raw.end()) }, 418],
  ['a hijacked reply', async (_request: unknown, reply: FastifyReply) => { reply.hijack(); reply.raw.writeHead(418).end() }, 418],
  ['one no in a list', [() => true, async () => false, () => { throw new Error('is not asked any more') }], 403],
  ['a reply in a list', [async (_request: unknown, reply: FastifyReply) => { reply.code(418).send({}) }, () => true], 418]
]

for (const [title, authorize, status] of no) {
  t.test(`authorize does not let through: ${title}`, async t => {
    const host = await build(t, authorize, async host => {
      host.setNotFoundHandler(async (_request, reply) => { // slower than the hook
        await later()
        return await reply.code(404).send({})
      })
    })
    t.equal((await grant(host, title)).statusCode, status)
    await host.close()
    t.strictSame((await pool.query('select from ai_credits where user_id = $1', [title])).rows, [], 'nothing was granted')
  })
}

t.test('a hook that says nothing keeps the request waiting, as Fastify\'s hooks do, and done() lets it through', async t => {
  const asked: Array<() => void> = []
  const host = await build(t, (_request: unknown, _reply: unknown, done: () => void) => { asked.push(done) })
  const reply = grant(host)
  while (asked.length === 0) await later()
  t.equal(await Promise.race([reply, later()]), undefined)
  asked[0]!()
  t.equal((await reply).statusCode, 200)
})

t.test('errors say what is wrong', async t => {
  t.match((await grant(await build(t, () => false))).json(), { code: 'FST_CREDITS_FORBIDDEN', message: 'The request is not authorized' })
  t.match((await grant(await build(t, () => {}))).json(), {
    code: 'FST_CREDITS_INVALID_AUTHORIZATION', message: /must return true, false or a promise.*it returned undefined/
  })
})

t.test('what @fastify/auth makes guards every route', async t => {
  const isService = (request: FastifyRequest, _reply: FastifyReply, done: (error?: Error) => void) =>
    done(request.headers['x-service'] === 'yes' ? undefined : new Error('not the service'))
  const isAdmin = async ({ headers }: FastifyRequest) => { if (headers['x-admin'] !== 'yes') throw new Error('not an admin') }
  const host = await buildHost(t, { connectionString })
  await host.register(auth)
  await host.register(credits, { ...defaults, management: { authorize: host.auth([isService, isAdmin]) } })
  for (const [headers, status] of [[{}, 401], [{ 'x-service': 'yes' }, 200], [{ 'x-admin': 'yes' }, 200]] as const) {
    const statement = await host.inject({ url: '/api/credits/statement', headers })
    const hold = await host.inject({ method: 'POST', url: '/api/credits/holds', headers, body: { credits: 1, operation: 'chat' } })
    t.strictSame([statement.statusCode, hold.statusCode], [status, status])
  }
})

t.test('a hook is called on the instance, as Fastify\'s are', async t => {
  const host = await build(t, async function (this: FastifyInstance) { this.vouch() },
    async host => { host.decorate('vouch', () => true) })
  t.equal((await grant(host)).statusCode, 200)
})

t.test('an authorize that could never guard is refused at registration', async t => {
  const never: unknown[] = [
    [], ['yes'], [() => true, undefined], async (_request: unknown, _reply: unknown, _done: unknown) => {},
    [() => true, async (_request: unknown, _reply: unknown, _done: unknown) => {}], null, undefined
  ]
  for (const authorize of never) {
    await t.rejects(build(t, authorize), { code: 'FST_CREDITS_INVALID_OPTION', message: /management must be \{ authorize \}/ })
  }
})

declare module 'fastify' {
  interface FastifyInstance {
    vouch (): boolean
  }
}
