// needs a real server
import { once } from 'node:events'
import { connect, type AddressInfo } from 'node:net'
import { text } from 'node:stream/consumers'
import Fastify, { type FastifyInstance, type FastifyServerOptions } from 'fastify'
import t, { type Test } from 'tap'
import credits, { createLedger, type FastifyAiCreditsOptions } from '../../src/index.js'
import { buildGateway, defaults, postDeduct, type GatewaySettings } from '../helper/app.js'
import { createLedgerDatabase, createPool } from '../helper/database.js'
import { partitioned } from '../helper/templates.js'

const hostile = [
  "'; drop table ai_credits; --", "' or '1'='1", "\\'; select 1; --", '"; drop table ai_credits; --', '$1', '$$; drop table ai_credits; $$',
  "'); update ai_credits set total_credits = 0; --", '%s', '${1}', '`id`', "E'\\x27'" // eslint-disable-line no-template-curly-in-string
]

const management = { authorize: () => true }

const post = (app: FastifyInstance, path: string, body: object, headers: Record<string, string> = {}) =>
  app.inject({ method: 'POST', url: `/api/credits${path}`, headers, body })

t.test('SQL in any string of any route is text', async t => {
  const app = await buildGateway(t, { management })
  for (const sql of hostile) {
    const account = { user_id: sql }
    const spend = { ...account, credits: 10, operation: sql, metadata: { [sql]: sql }, budget: sql }
    const key = { 'idempotency-key': sql }
    const budget = `/api/credits/budgets/${encodeURIComponent(sql)}`
    await app.credits.setBudget(sql, `above ${sql}`, {})
    const replies = [
      await app.inject({ method: 'PUT', url: budget, body: { ...account, within: `above ${sql}`, total: 100 } }),
      await post(app, '/deduct', spend, key),
      await post(app, '/grants', { ...account, credits: 5, reason: sql }, key),
      await post(app, '/refunds', { ...account, deduct_key: sql, credits: 1, reason: sql }, key)
    ]
    const hold = await post(app, '/holds', spend, key)
    replies.push(hold, await post(app, `/holds/${hold.json().id}/capture`, { ...account, credits: 4, metadata: { [sql]: sql } }, key))
    t.strictSame(replies.map(({ statusCode }) => statusCode), [200, 200, 200, 200, 200, 200], sql)
    const query = new URLSearchParams(account)
    const { credits } = (await app.inject(`/api/credits?${query}`)).json()
    t.match(credits, { available: 9992, total: 10005, used: 13, usage_history: [{ used: 13, operation: sql, [sql]: sql }] })
    const ofBudget = (await app.inject(`/api/credits?${new URLSearchParams({ ...account, budget: sql })}`)).json()
    t.match(ofBudget.credits.usage_history, [{ used: 13, operation: sql }])
    const budgets = (await app.inject(`/api/credits/budgets?${query}`)).json()
    t.match(budgets.entries.find((entry: any) => entry.budget === sql), { within: `above ${sql}`, used: { total: 13 } })
    t.equal((await app.inject({ method: 'DELETE', url: `${budget}?${query}` })).statusCode, 204)
    const { entries } = (await app.inject(`/api/credits/statement?${query}`)).json()
    t.strictSame(entries.map(({ operation, reason }: any) => operation ?? reason), [undefined, sql, sql, sql, sql, sql])
    for (const field of ['from', 'to', 'limit', 'cursor']) {
      t.equal((await app.inject(`/api/credits/statement?${new URLSearchParams({ [field]: sql })}`)).statusCode, 400)
    }
    t.equal((await app.inject(`/api/credits?${new URLSearchParams({ cursor: sql })}`)).statusCode, 400)
    t.equal((await post(app, `/holds/${encodeURIComponent(sql)}/release`, {})).statusCode, 404)
    t.equal((await post(app, '/refunds', { usage_id: sql })).statusCode, 404)
  }
  t.equal((await app.credits.reconcile()).ok, true)
  t.equal((await app.pg.query('select from ai_credits')).rows.length, hostile.length)
})

t.test('SQL in any argument of any method is text', async t => {
  const app = await buildGateway(t)
  const { credits } = app
  for (const sql of hostile) {
    const spend = { userId: sql, credits: 10, operation: sql, metadata: { [sql]: [sql] }, idempotencyKey: sql }
    await credits.deduct(spend)
    const { id } = await credits.hold(spend)
    await credits.extend(id, { userId: sql, ttl: 1000 })
    await credits.capture(id, { userId: sql, credits: 3, final: false, metadata: { [sql]: sql }, idempotencyKey: sql })
    await credits.release(id, { userId: sql })
    const grant = await credits.grant({ userId: sql, credits: 7, reason: sql, idempotencyKey: sql })
    await credits.revoke(grant.id, { userId: sql })
    await credits.refund({ userId: sql, deductKey: sql, reason: sql, idempotencyKey: sql })
    await credits.setOverdraft(sql, 5)
    t.strictSame(await credits.balance(sql), { available: 9997, total: 10000, used: 3, held: 0 })
    t.equal((await credits.history(sql)).entries[0]!.operation, sql)
    t.equal((await credits.statement(sql)).entries.length, 8)
    t.match(await credits.reconcile(sql), { ok: true, accounts: 1 })
    for (const method of ['capture', 'release', 'revoke'] as const) await t.rejects(credits[method](sql) as Promise<unknown>, { code: 'FST_CREDITS_NOT_FOUND' })
    await t.rejects(credits.extend(sql, { ttl: 1000 }), { code: 'FST_CREDITS_NOT_FOUND' })
    await t.rejects(credits.setAllowance(sql, { credits: 1, every: sql as 'day' }), { code: 'FST_CREDITS_INVALID' })
  }
  t.equal((await credits.reconcile()).ok, true)
})

t.test('SQL in an option is text, or refused', async t => {
  const connectionString = await createLedgerDatabase(t)
  const pool = createPool(t, connectionString)
  for (const sql of hostile) {
    const ledger = createLedger(pool, { ...defaults, defaultUser: sql })
    await ledger.migrate()
    t.equal((await ledger.balance()).available, 10_000)
    for (const name of ['timeZone', 'allowance', 'historyDays', 'historyLimit', 'timeout', 'maxQueue', 'prepare']) {
      t.throws(() => createLedger(pool, { [name]: sql }), { code: 'FST_CREDITS_INVALID_OPTION' }, name)
    }
    t.throws(() => createLedger(pool, { allowance: { credits: 1, every: 'day', rollover: sql as 'all' } }), { code: 'FST_CREDITS_INVALID_OPTION' })
    await t.rejects(buildGateway(t, { pg: sql }, { connectionString }), { code: 'FST_CREDITS_INVALID_OPTION' })
  }
  t.equal((await pool.query('select from ai_credits')).rows.length, hostile.length)
})

t.test('what belongs to one account is not found, changed or paid back through another', async t => {
  const { credits } = await buildGateway(t)
  const { id: hold } = await credits.hold({ userId: 'ann', credits: 10, operation: 'chat' })
  const { id: grant } = await credits.grant({ userId: 'ann', credits: 10 })
  const { id: usageId } = await credits.deduct({ userId: 'ann', credits: 10, operation: 'chat', idempotencyKey: 'k' })
  const before = await credits.statement('ann')
  const userId = 'bob'
  for (const call of [
    () => credits.capture(hold, { userId }), () => credits.release(hold, { userId }), () => credits.extend(hold, { userId, ttl: 5000 }),
    () => credits.revoke(grant, { userId }), () => credits.refund({ userId, usageId }), () => credits.refund({ userId, deductKey: 'k' })
  ]) await t.rejects(call() as Promise<unknown>, { code: 'FST_CREDITS_NOT_FOUND' }, String(call))
  t.strictSame(await credits.statement('ann'), before)
  t.equal((await credits.balance('bob')).available, 10_000)
})

t.test('an idempotency key of one account never answers another\'s, whatever the operation', async t => {
  const { credits } = await buildGateway(t)
  const operations: Record<string, (userId: string, credits: number) => Promise<{ userId: string, replayed: boolean }>> = {
    deduct: (userId, amount) => credits.deduct({ userId, credits: amount, operation: 'chat', idempotencyKey: 'same' }),
    hold: (userId, amount) => credits.hold({ userId, credits: amount, operation: 'chat', idempotencyKey: 'same' }),
    grant: (userId, amount) => credits.grant({ userId, credits: amount, idempotencyKey: 'same' }),
    refund: (userId, amount) => credits.refund({ userId, deductKey: 'same', credits: amount, idempotencyKey: 'same' })
  }
  for (const [name, call] of Object.entries(operations)) {
    const users = ['ann', 'bob', 'Ann', 'ann ']
    const answers = await Promise.all(users.map((userId, index) => call(userId, 5 + (name === 'refund' ? -index : index))))
    t.match(answers, users.map(userId => ({ userId, replayed: false })), name)
    t.match(await call('bob', name === 'refund' ? 4 : 6), { userId: 'bob', replayed: true }, name)
  }
  const holds = await Promise.all(['ann', 'bob'].map(userId => credits.hold({ userId, credits: 9, operation: 'chat' })))
  for (const [index, { id, userId }] of holds.entries()) {
    t.match(await credits.capture(id, { credits: 1 + index, final: false, idempotencyKey: 'same' }), { userId, credits: 1 + index, replayed: false })
  }
})

t.test('nothing that is sent reaches a prototype', async t => {
  const app = await buildGateway(t, { management })
  const before = Object.getOwnPropertyNames(Object.prototype).sort()
  const pollution = ['"__proto__":{"polluted":1}', '"constructor":{"prototype":{"polluted":1}}', '"metadata":{"a":{"__proto__":{"polluted":1}}}',
    '"metadata":{"constructor":{"prototype":{"polluted":1}}}', '"\\u005f_proto__":{"polluted":1}']
  for (const path of ['/deduct', '/grants', '/holds', '/holds/1/capture', '/refunds']) {
    for (const part of pollution) {
      const payload = `{"credits":1,"operation":"chat",${part}}`
      const reply = await app.inject({ method: 'POST', url: `/api/credits${path}`, headers: { 'content-type': 'application/json' }, payload })
      t.equal(reply.statusCode, 400, `${path} ${part}`)
    }
  }
  for (const query of ['__proto__=1', '__proto__[polluted]=1', 'constructor[prototype][polluted]=1']) {
    t.equal((await app.inject(`/api/credits?${query}`)).statusCode, 400)
  }
  await app.credits.deduct({ userId: '__proto__', credits: 1, operation: 'constructor', idempotencyKey: '__proto__' })
  t.equal((await app.credits.balance('__proto__')).used, 1)
  t.strictSame(Object.getOwnPropertyNames(Object.prototype).sort(), before)
  t.notOk('polluted' in {})
})

// The functions of docs/partition-usage.sql, which name partitions by months.
const namingTables = ['ai_credit_usage_add_partitions', 'ai_credit_usage_drop_partitions']

t.test('no function of the ledger executes text as SQL', async t => {
  const app = await buildGateway(t)
  const { rows } = await app.pg.query("select proname, prosrc from pg_proc where proname like 'ai_credit%' order by proname")
  t.ok(rows.length > 10)
  t.strictSame(rows.filter(({ prosrc }) => /\bexecute\b/i.test(prosrc)).map(({ proname }) => proname), partitioned ? namingTables : [])
})

t.test('a function with rights of its own looks up nothing where others may create, and nobody may call it unasked', async t => {
  const app = await buildGateway(t)
  const { rows } = await app.pg.query(`select proname, prosecdef, proconfig, has_function_privilege('public', oid, 'execute') as everybody
    from pg_proc where proname like 'ai_credit%'`)
  const own = rows.filter(({ prosecdef }) => prosecdef)
  t.ok(own.length > 10)
  t.strictSame(own.filter(({ proconfig }) => !proconfig.includes('search_path=pg_catalog, pg_temp')), [])
  t.strictSame(rows.filter(({ everybody }) => everybody), [])
})

/** A client that sends the headers of a deduct and a part of its body, and then nothing. */
async function halfADeduct (t: Test, app: FastifyInstance) {
  const socket = connect((app.server.address() as AddressInfo).port, '127.0.0.1')
  t.teardown(() => socket.destroy())
  await once(socket, 'connect')
  socket.write('POST /api/credits/deduct HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 40\r\n\r\n{"credits":1,"op')
  return socket
}

t.test('slow bodies hold up nobody else, are charged nothing, and hold no connection of the database', async t => {
  const app = await buildGateway(t, {}, { pool: { max: 2 } })
  await app.listen({ port: 0, host: '127.0.0.1' })
  await Promise.all(Array.from({ length: 50 }, () => halfADeduct(t, app)))
  t.equal((await postDeduct(app, { credits: 1, operation: 'chat' })).statusCode, 200)
  t.equal((await app.credits.balance()).used, 1)
})

// By default Node.js looks for slow requests every 30 seconds, and applies the longer of its two limits to bodies.
const quick = { requestTimeout: 50, http: { headersTimeout: 50, connectionsCheckingInterval: 50 } } as FastifyServerOptions

t.test('a host that sets requestTimeout is rid of slow bodies', async t => {
  const app = await buildGateway(t, {}, { server: quick })
  await app.listen({ port: 0, host: '127.0.0.1' })
  const socket = await halfADeduct(t, app)
  t.match(await text(socket), /^HTTP\/1\.1 408 /)
  t.strictSame((await app.pg.query('select from ai_credits')).rows, [])
})

const SECRET = 's3cr3t-passw0rd'
const PARAMETERS = { user_id: 'parameter-user', operation: 'parameter-operation', metadata: { note: 'parameter-metadata' } }
const SQL = /select \*|insert into|update ai_credit|ai_credit_deduct\(|ai_credit_execute\(|jsonb_|PL\/pgSQL/i

/** A gateway that keeps its log, at the level trace. */
async function buildLogged (t: Test, options: FastifyAiCreditsOptions = {}, settings: GatewaySettings = {}) {
  const lines: string[] = []
  const stream = { write: (line: string) => { lines.push(line) } }
  const app = await buildGateway(t, options, { ...settings, server: { ...settings.server, logger: { level: 'trace', stream } } })
  return { app, log: () => lines.join('') }
}

function nothingLeaks (t: Test, text: string, what: string) {
  t.notMatch(text, SQL, `no SQL in ${what}`)
  t.notMatch(text, SECRET, `no password in ${what}`)
  t.notMatch(text, /parameter-/, `no parameter in ${what}`)
}

t.test('a failing database tells its own log, and neither the client nor the gateway\'s log, what was asked', async t => {
  const connectionString = new URL(await createLedgerDatabase(t))
  connectionString.password = SECRET
  const { app, log } = await buildLogged(t, {}, { connectionString: connectionString.href })
  const body = { ...PARAMETERS, credits: 1 }
  const send = async () => {
    const replies = await Promise.all([
      postDeduct(app, body, { 'idempotency-key': 'parameter-key' }), postDeduct(app, body), postDeduct(app, body), app.inject('/api/credits?user_id=parameter-user')
    ])
    return replies.map(reply => {
      if (reply.statusCode !== 200) nothingLeaks(t, reply.body, 'a refusal')
      return reply.statusCode
    })
  }
  t.strictSame(await send(), [200, 200, 200, 200])
  // An error whose text quotes the row, one that quotes the statement, and a lost connection.
  await app.pg.query('alter table ai_credit_usage add constraint no_more check (id < 0) not valid')
  t.strictSame(await send(), [200, 503, 503, 200])
  await app.pg.query('alter function ai_credit_days rename to elsewhere')
  t.strictSame(await send(), [200, 503, 503, 503])
  const logged = log()
  nothingLeaks(t, logged.replaceAll('user_id=parameter-user', ''), 'the log') // Fastify itself logs each URL
  t.match(logged, /FST_CREDITS_UNAVAILABLE/, 'the log says what went wrong')
})

t.test('a lost connection is logged without what the connection knows', async t => {
  const connectionString = new URL(await createLedgerDatabase(t))
  connectionString.password = SECRET
  const { app, log } = await buildLogged(t, {}, { connectionString: connectionString.href })
  await app.credits.deduct({ userId: PARAMETERS.user_id, operation: PARAMETERS.operation, credits: 1 })
  const other = createPool(t, connectionString.href)
  await other.query('select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()')
  while (!log().includes('A connection of the credits pool was lost')) await new Promise(resolve => setTimeout(resolve, 10))
  nothingLeaks(t, log(), 'the log')
  t.notMatch(log(), /secretKey|processID|connectionParameters/, 'nothing of the client')
})

t.test('an error at start does not tell the connection string', async t => {
  for (const connectionString of [
    `postgres://user:${SECRET}@127.0.0.1:1/db`, `postgres://user:${SECRET}@not a host:99999/db`, `postgres://user:${SECRET}@127.0.0.1:port/db`,
    `postgres://user:${SECRET}@nowhere.invalid/db`
  ]) {
    const lines: string[] = []
    const app = Fastify({ logger: { level: 'trace', stream: { write: (line: string) => { lines.push(line) } } } })
    t.teardown(() => app.close())
    app.register(credits, { ...defaults, connectionString, timeout: 1000 })
    const error = await Promise.resolve(app.ready()).then(() => undefined, error => error)
    t.ok(error, connectionString)
    app.log.error(error)
    t.notMatch(lines.join('') + String(error) + error.stack + JSON.stringify(error), SECRET, connectionString)
  }
})
