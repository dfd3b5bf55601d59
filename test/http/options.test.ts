// not on Citus: about HTTP
import fastifyPostgres from '@fastify/postgres'
import Fastify, { type FastifyInstance, type FastifyReply, type FastifyRequest } from 'fastify'
import t, { type Test } from 'tap'
import { buildGateway, buildHost, defaults, getBalance, postDeduct } from '../helper/app.js'
import { createDatabase, createPool } from '../helper/database.js'
import credits, { createLedger, type FastifyAiCreditsOptions, type LedgerOptions } from '../../src/index.js'
import { parseLedgerOptions } from '../../src/ledger/options.js'
import { parsePluginOptions } from '../../src/options.js'

/** Malformed values of an option, each with its title. */
type Values = Array<[title: string, value: unknown]>

const notStrings: Values = [
  ['null', null], ['a number', 5], ['a boolean', true], ['a list', ['x']], ['an object', {}],
  ['a function', () => 'x'], ['a symbol', Symbol('x')]
]
const notFlags: Values = [
  ['null', null], ['0', 0], ['1', 1], ['a string', 'true'], ['empty', ''], ['an object', {}], ['a list', []]
]
const notWhole: Values = [
  ['null', null], ['a string', '5'], ['a boolean', true], ['a fraction', 1.5], ['NaN', NaN], ['Infinity', Infinity],
  ['a BigInt', 5n], ['a list', [5]], ['an object', {}],
  ['-1', -1], ['2^53', 2 ** 53]
]

const notThresholds: Values = [
  ['null', null], ['a number', 5], ['a string', '10%'], ['an object', {}],
  ...[...notWhole.filter(([, value]) => value !== '5'), ...['5', '', '0%', '100%', '010%', '1.5%', '-1%', '10 %', '10%%'].map(
    (value): [string, unknown] => [`'${value}'`, value])].map(([title, value]): [string, unknown] => [`a list of ${title}`, [1, value]])
]

const malformedLedgerOptions: Record<string, Values> = {
  defaultUser: [
    ...notStrings.slice(1), ['empty', ''], ['256 characters', 'x'.repeat(256)], ['256 emojis', '😀'.repeat(256)],
    ['a NUL', 'a\0'], ['a lone surrogate', '\ud800']
  ],
  allowance: notWhole,
  prices: [['null', null], ['a string', 'chat'], ['a number', 5], ['a list', []], ['a Map', new Map()]],
  priceVersion: [...notStrings, ['empty', ''], ['256 characters', 'x'.repeat(256)], ['a NUL', 'a\0']],
  historyDays: [...notWhole, ['0', 0], ['36501', 36_501]],
  historyLimit: [...notWhole, ['0', 0], ['100001', 100_001]],
  timeZone: [
    ...notStrings, ['empty', ''], ['nonsense', 'Mars/Olympus'], ['an offset', '+02:00'], ['a negative offset', '-5'],
    ['UTC with an offset', 'UTC+2'], ['spaces', ' UTC'],
    ['a NUL', 'UTC\0'], ['SQL', "UTC'; drop table ai_credits; --"]
  ],
  timeout: [...notWhole, ['0', 0], ['2^31', 2 ** 31]],
  maxQueue: [...notWhole, ['0', 0], ['1000001', 1_000_001]],
  low: notThresholds,
  budgetLow: notThresholds,
  prepare: notFlags
}

const malformedPluginOptions: Record<string, Values> = {
  ...malformedLedgerOptions,
  prefix: [
    ...notStrings, ['without slash', 'x'], ['relative', './x'], ['a wildcard', '/*'], ['a wildcard inside', '/a*b'],
    ['a URL', 'http://localhost/x']
  ],
  routes: [
    ['null', null], ['a string', 'true'], ['a number', 1], ['a list', []], ['a function', () => true],
    ['an unknown route', { hold: true }], ['a misspelt route', { deducts: { preHandler: [] } }],
    ...['read', 'deduct'].flatMap((name): Values => [
      [`${name} null`, { [name]: null }], [`${name} as string`, { [name]: 'x' }],
      [`${name} as number`, { [name]: 0 }], [`${name} as list`, { [name]: [] }],
      [`${name} as function`, { [name]: () => {} }],
      ...['preHandlers', 'schema', 'bodyLimit', 'handler', 'url', 'prefix', 'validatorCompiler', 'errorHandler'].map(
        (option): [string, unknown] => [`${name} with ${option}`, { [name]: { [option]: undefined } }])
    ])
  ],
  identify: [['null', null], ['a string', 'ann'], ['true', true], ['an object', {}]],
  pg: [...notStrings, ['empty', '']],
  connectionString: [...notStrings, ['empty', '']],
  migrate: notFlags,
  sampleData: notFlags
}

const unknownOptions = [
  'default_user', 'defaultuser', 'Prefix', 'database', 'max', 'timezone', 'toString', 'constructor', ''
]

/** Asserts that registration fails with an error that names the option, before any query. */
async function refused (t: Test, options: object, name: string, title: string) {
  const app = Fastify()
  t.teardown(() => app.close())
  app.register(credits, options)
  const { code, option, message } = await app.ready().then(() => ({}), error => error)
  t.strictSame({ code, option }, { code: 'FST_CREDITS_INVALID_OPTION', option: name }, `${name}: ${title}`)
  t.ok(message?.startsWith(`Option ${name} `), message)
}

for (const [name, values] of Object.entries(malformedPluginOptions)) {
  t.test(`a malformed ${name} is refused`, async t => {
    for (const [title, value] of values) await refused(t, { [name]: value }, name, title)
  })
}

t.test('an unknown option is refused, even if it is undefined', async t => {
  for (const name of unknownOptions) await refused(t, { [name]: undefined }, name, 'unknown')
})

t.test('a malformed price is refused by its path', async t => {
  const prices = { chat: { per: { input_tokens: { credits: 1, each: 0 } } } }
  await refused(t, { prices }, 'prices.chat.per.input_tokens.each', '0')
})

t.test('options that contradict each other are refused', async t => {
  await refused(t, { pg: 'main', connectionString: 'postgresql://localhost/x' }, 'connectionString', 'together with pg')
  await refused(t, { priceVersion: 'may' }, 'priceVersion', 'without prices')
  await refused(t, { sampleData: true, defaultUser: null }, 'sampleData', 'nobody to give it to')
})

t.test('a missing instance of @fastify/postgres is refused', async t => {
  await refused(t, {}, 'pg', 'no @fastify/postgres')
  await refused(t, { pg: 'main' }, 'pg', 'no @fastify/postgres, but a name')
  await refused(t, { pg: '__proto__' }, 'pg', 'no instance, though the name is known')

  const connectionString = await createDatabase(t)
  for (const [registered, options] of [
    ['main', {}], ['main', { pg: 'other' }], ['main', { pg: 'toString' }], [undefined, { pg: 'main' }],
    [undefined, { pg: 'pool' }]
  ] as const) {
    const app = Fastify()
    t.teardown(() => app.close())
    await app.register(fastifyPostgres, { connectionString, ...registered && { name: registered } })
    app.register(credits, { ...defaults, ...options })
    const title = `${registered} registered, ${JSON.stringify(options)} asked for`
    await t.rejects(async () => await app.ready(), { code: 'FST_CREDITS_INVALID_OPTION', option: 'pg' }, title)
  }
})

t.test('hooks that are no functions are refused by Fastify', async t => {
  const connectionString = await createDatabase(t)
  for (const hook of ['onRequest', 'preValidation', 'preHandler']) {
    const app = await buildHost(t, { connectionString })
    app.register(credits, { ...defaults, routes: { deduct: { [hook]: 'guard' as never } } })
    await t.rejects(async () => await app.ready(), { code: 'FST_ERR_HOOK_INVALID_HANDLER' }, hook)
  }
})

t.test('createLedger refuses malformed and unknown options, those of the plugin too', t => {
  const refusal = (name: string) => ({ name: 'FastifyError', code: 'FST_CREDITS_INVALID_OPTION', option: name })
  const create = (options: unknown) => () => createLedger({} as never, options as LedgerOptions)
  for (const [name, values] of Object.entries(malformedLedgerOptions)) {
    for (const [title, value] of values) t.throws(create({ [name]: value }), refusal(name), `${name}: ${title}`)
  }
  const unknown = [...unknownOptions, 'prefix', 'routes', 'identify', 'pg', 'connectionString', 'migrate', 'sampleData']
  for (const name of unknown) t.throws(create({ [name]: undefined }), refusal(name), `unknown: ${name}`)
  for (const options of [null, 5, 'x', [], () => ({})]) {
    t.throws(create(options), { code: 'FST_CREDITS_INVALID_OPTION' }, typeof options)
  }
  t.end()
})

const documented = {
  defaultUser: 'default_user',
  allowance: 10_000,
  historyDays: 30,
  historyLimit: 1000,
  timeZone: 'UTC',
  timeout: 5000,
  maxQueue: 10_000,
  low: [],
  budgetLow: [],
  prepare: true
}

// Prices are parsed to functions: see prices.test.ts.
const plain = <T extends { prices: unknown }>({ prices: _prices, ...others }: T) => others

t.test('the defaults are those of the documentation, also where an option is undefined', t => {
  const plugin = { ...documented, prefix: '/api', routes: true, migrate: true, sampleData: false }
  t.strictSame(plain(parseLedgerOptions({})), documented)
  t.strictSame(plain(parsePluginOptions({})), plugin)
  const nothing = Object.fromEntries(Object.keys(malformedPluginOptions).map(name => [name, undefined]))
  t.strictSame(plain(parsePluginOptions(nothing as FastifyAiCreditsOptions)), plugin)
  t.end()
})

t.test('the extremes of every number are accepted', t => {
  const most = { allowance: Number.MAX_SAFE_INTEGER, historyDays: 36_500, historyLimit: 100_000, timeout: 2 ** 31 - 1, maxQueue: 1_000_000 }
  const least = { allowance: 0, historyDays: 1, historyLimit: 1, timeout: 1, maxQueue: 1 }
  for (const options of [most, least]) t.strictSame(plain(parseLedgerOptions(options)), { ...documented, ...options })
  t.end()
})

t.test('the defaults take effect', async t => {
  const app = await buildGateway(t)
  t.strictSame(await getBalance(app, 'default_user'), { available: 10000, total: 10000, used: 0 })
  t.strictSame((await app.pg.query("select value from ai_credit_settings where name = 'time_zone'")).rows, [{ value: 'UTC' }])

  const daily = `insert into ai_credit_daily_usage (user_id, day, operation, metadata_hash, metadata, used_credits)
    select 'ann', (now() at time zone 'UTC')::date - age, 'op' || age || '-' || entry, sha256('{}'), '{}', 1
    from generate_series(1, $1) entry, unnest($2::integer[]) age`
  await app.pg.query(daily, [1, [0, 29, 30]])
  const { usage_history: days } = (await app.inject('/api/credits?user_id=ann')).json().credits
  t.strictSame(days.map(({ operation }: { operation: string }) => operation), ['op0-1', 'op29-1'], '30 days, today included')

  await app.pg.query(daily, [999, [1]])
  t.notOk((await app.credits.history('ann', { days: 2 })).cursor, '1000 entries are one page')
  await app.pg.query(daily, [1, [2]])
  t.ok((await app.credits.history('ann', { days: 3 })).cursor, '1001 are not')
})

t.test('options of the history take effect', async t => {
  const app = await buildGateway(t, { historyDays: 1, historyLimit: 1, defaultUser: 'house', allowance: 0 })
  await app.credits.balance('ann')
  await app.pg.query(`insert into ai_credit_daily_usage (user_id, day, operation, metadata_hash, metadata, used_credits)
    select 'ann', (now() at time zone 'UTC')::date - age, 'op' || age || entry, sha256('{}'), '{}', 1
    from generate_series(1, 2) entry, unnest('{0,1}'::integer[]) age`)
  const { entries, cursor } = await app.credits.history('ann')
  t.strictSame(entries.map(entry => entry.operation), ['op01'])
  const next = await app.credits.history('ann', { cursor: cursor! })
  t.strictSame([next.entries.map(entry => entry.operation), next.cursor], [['op02'], null])
  t.strictSame(await getBalance(app, 'house'), { available: 0, total: 0, used: 0 })
  t.equal((await postDeduct(app, { credits: 1, operation: 'chat' })).statusCode, 402)
})

const prefixes: Array<[prefix: string | undefined, path: string]> = [
  [undefined, '/api'], ['', ''], ['/', ''], ['//', ''], ['/x', '/x'], ['/x/', '/x'], ['/x//', '/x'], ['/x/y', '/x/y'],
  ['/:tenant', '/acme'], ['/x/:tenant/', '/x/acme']
]

t.test('the prefix says where the routes are, after that of the context', async t => {
  const connectionString = await createDatabase(t)
  for (const [prefix, path] of prefixes) {
    for (const outer of ['', '/gw']) {
      const app = await buildHost(t, { connectionString })
      const options = { ...defaults, ...prefix !== undefined && { prefix } }
      await app.register(async scope => { await scope.register(credits, options) }, { prefix: outer })
      await app.ready()
      const title = `${prefix} in ${outer || 'the root'}`
      t.equal((await app.inject(`${outer}${path}/credits`)).statusCode, 200, title)
      const body = { credits: 1, operation: 'chat' }
      const reply = await app.inject({ method: 'POST', url: `${outer}${path}/credits/deduct`, body })
      t.equal(reply.statusCode, 200, title)
      // '/:tenant' matches '/api'.
      const there = prefix === undefined || prefix.startsWith('/:')
      t.equal((await app.inject(`${outer}/api/credits`)).statusCode, there ? 200 : 404, `${title}, the default prefix`)
      await app.close()
    }
  }
})

/** Returns whether there is the route that reads, and whether there are those that deduct and check. */
async function routesOf (app: FastifyInstance) {
  await app.ready()
  const has = (method: string, url: string) => app.hasRoute({ method, url })
  t.equal(has('POST', '/api/credits/check'), has('POST', '/api/credits/deduct'))
  return [has('GET', '/api/credits'), has('POST', '/api/credits/deduct')]
}

t.test('the option routes says which routes there are; the methods are there even without routes', async t => {
  const connectionString = await createDatabase(t)
  const rows: Array<[FastifyAiCreditsOptions['routes'], boolean[]]> = [
    [undefined, [true, true]], [true, [true, true]], [{}, [true, true]], [{ read: {}, deduct: {} }, [true, true]],
    [{ read: true }, [true, true]],
    [{ read: false }, [false, true]], [{ deduct: false }, [true, false]], [false, [false, false]],
    [{ read: false, deduct: false }, [false, false]]
  ]
  for (const [routes, expected] of rows) {
    const app = await buildGateway(t, { ...routes !== undefined && { routes } }, { connectionString })
    t.strictSame(await routesOf(app), expected, JSON.stringify(routes))
    t.equal((await app.credits.balance()).total, 10000)
    await app.close()
  }
})

t.test('the host\'s options of one route leave the other alone', async t => {
  const calls: string[] = []
  const note = (name: string) => async (request: FastifyRequest, reply: FastifyReply) => {
    calls.push(name)
    if (request.headers.stop === name) await reply.code(418).send({ stopped: name })
  }
  const app = await buildGateway(t, {
    routes: {
      deduct: {
        onRequest: note('onRequest'),
        preValidation: [note('preValidation 1'), note('preValidation 2')],
        preHandler: [note('preHandler 1'), note('preHandler 2')],
        config: { cost: 5 } as object,
        constraints: { host: 'gateway.example' }
      }
    }
  })
  t.equal((await getBalance(app)).used, 0)
  t.strictSame(calls, [])

  t.equal((await postDeduct(app, { credits: 1, operation: 'chat' })).statusCode, 404, 'the constraint holds')
  const host = 'gateway.example'
  t.equal((await postDeduct(app, { credits: 1, operation: 'chat' }, { host })).statusCode, 200)
  const all = ['onRequest', 'preValidation 1', 'preValidation 2', 'preHandler 1', 'preHandler 2']
  t.strictSame(calls.splice(0), all)
  for (const stop of all) {
    t.strictSame((await postDeduct(app, { credits: 1, operation: 'chat' }, { host, stop })).json(), { stopped: stop })
  }
  t.equal((await getBalance(app)).used, 1, 'what a hook stopped was not charged')
})

t.test('a single preHandler runs after validation, and before identify', async t => {
  const calls: string[] = []
  const app = await buildGateway(t, {
    routes: { read: { preHandler: async () => { calls.push('preHandler') } } },
    identify: () => {
      calls.push('identify')
      return 'ann'
    }
  })
  t.equal((await app.inject('/api/credits?x=1')).statusCode, 400)
  t.strictSame(calls, [])
  t.equal((await app.inject('/api/credits')).statusCode, 200)
  t.strictSame(calls, ['preHandler', 'identify'])
})

t.test('the config of a route is there for the host\'s hooks', async t => {
  const app = await buildHost(t)
  const seen: unknown[] = []
  app.addHook('onRequest', async request => { seen.push((request.routeOptions.config as { cost?: number }).cost) })
  await app.register(credits, { ...defaults, routes: { read: { config: { cost: 5 } as object } } })
  await getBalance(app)
  await postDeduct(app, { credits: 1, operation: 'chat' })
  t.strictSame(seen, [5, undefined])
})

t.test('a database keeps its days in one time zone', async t => {
  const connectionString = await createDatabase(t)
  const first = await buildGateway(t, { timeZone: 'Europe/Berlin' }, { connectionString })
  await first.close()
  const second = await buildHost(t, { connectionString })
  second.register(credits, defaults)
  await t.rejects(async () => await second.ready(), {
    code: 'FST_CREDITS_TIME_ZONE', message: 'Option timeZone is UTC, and this database keeps its days in Europe/Berlin'
  })
  const ledger = createLedger(createPool(t, connectionString, { max: 1 }), { timeZone: 'America/Lima', prepare: false })
  await t.rejects(ledger.migrate(), { code: 'FST_CREDITS_TIME_ZONE' })
  await t.rejects(ledger.balance(), { code: 'FST_CREDITS_TIME_ZONE' })
  const third = await buildGateway(t, { timeZone: 'Europe/Berlin' }, { connectionString })
  t.equal((await third.credits.balance()).total, 10000)
})

t.test('time zones by their names are accepted', t => {
  for (const timeZone of [
    'UTC', 'Etc/UTC', 'Europe/Berlin', 'America/Argentina/Buenos_Aires', 'Asia/Kathmandu', 'Etc/GMT+2'
  ]) {
    t.equal(parseLedgerOptions({ timeZone }).timeZone, timeZone)
  }
  t.end()
})
