// about HTTP, not the database
import { parse } from 'node:querystring'
import Fastify, {
  type FastifyError, type FastifyInstance, type FastifyReply, type FastifyServerOptions, type InjectOptions
} from 'fastify'
import t, { type Test } from 'tap'
import { buildHost, defaults } from '../helper/app.js'
import credits from '../../src/index.js'

/** Settings of a host: options of its server, and calls on it. */
interface HostSettings {
  server?: FastifyServerOptions
  set?: (app: FastifyInstance) => unknown
}

const surprise = () => { throw new Error('A setting of the host was used on a route of the plugin') }

/** Settings that would each change the plugin's routes, if these followed them. */
const hosts: Record<string, HostSettings> = {
  'a validator compiler that accepts everything': {
    set: app => app.setValidatorCompiler(() => () => true)
  },
  'a validator compiler that refuses everything': {
    set: app => app.setValidatorCompiler(() => () => ({ error: new Error('no') }))
  },
  'a validator compiler that throws when it compiles': {
    set: app => app.setValidatorCompiler<{ properties: object }>(
      ({ schema }) => 'size' in schema.properties ? () => true : surprise())
  },
  'a serializer compiler': {
    set: app => app.setSerializerCompiler(() => () => '"compiled"')
  },
  'a reply serializer': {
    set: app => app.setReplySerializer(() => '"serialized"')
  },
  'a body parser for JSON': {
    set: app => {
      app.removeContentTypeParser('application/json')
      app.addContentTypeParser('application/json', { parseAs: 'string' }, (_request, _body, done) => done(null, { size: 77 }))
    }
  },
  'a body parser for everything': {
    set: app => {
      app.removeAllContentTypeParsers()
      app.addContentTypeParser('*', { parseAs: 'string' }, (_request, _body, done) => done(null, { size: 78 }))
    }
  },
  'a body parser for text': {
    set: app => app.addContentTypeParser(/^text\//, { parseAs: 'string' }, (_request, _body, done) => done(null, { size: 79 }))
  },
  'no body parsers': {
    set: app => app.removeAllContentTypeParsers()
  },
  'a formatter of schema errors': {
    server: { schemaErrorFormatter: () => Object.assign(new Error('formatted'), { statusCode: 418 }) }
  },
  'a formatter of schema errors, set later': {
    set: app => app.setSchemaErrorFormatter(() => Object.assign(new Error('formatted'), { statusCode: 418 }))
  },
  'options of Ajv': {
    server: { ajv: { customOptions: { coerceTypes: false, removeAdditional: false, allErrors: true } } }
  },
  'a small body limit': {
    server: { bodyLimit: 10 }
  },
  'a large body limit': {
    server: { bodyLimit: 2_000_000 }
  },
  'no protection of prototypes': {
    server: { onProtoPoisoning: 'ignore', onConstructorPoisoning: 'ignore' }
  },
  'removal of prototypes': {
    server: { onProtoPoisoning: 'remove', onConstructorPoisoning: 'remove' }
  },
  'a query parser that keeps the last of two': {
    server: { routerOptions: { querystringParser: query => Object.fromEntries(new URLSearchParams(query)) } }
  },
  'a query parser that nests objects and converts numbers': {
    server: { routerOptions: { querystringParser: nestedQuery } }
  },
  'a query parser that drops everything': {
    server: { routerOptions: { querystringParser: () => ({}) } }
  },
  'the query parser of Node.js': {
    server: { routerOptions: { querystringParser: query => ({ ...parse(query) }) } }
  },
  'a semicolon before the query': {
    server: { useSemicolonDelimiter: true }
  },
  'a schema controller': {
    server: {
      schemaController: {
        compilersFactory: {
          buildValidator: () => () => Object.assign(() => true, { errors: [] }) as never,
          buildSerializer: () => () => () => '"controlled"'
        }
      }
    }
  }
}

function nestedQuery (query: string): Record<string, unknown> {
  const parsed: Record<string, unknown> = {}
  for (const [key, value] of new URLSearchParams(query)) {
    const [, outer, inner] = /^(\w+)\[(\w*)\]$/.exec(key) ?? []
    const converted = Number.isNaN(Number(value)) ? value : Number(value)
    if (outer === undefined) parsed[key] = converted
    else parsed[outer] = { ...parsed[outer] as object, [inner!]: converted }
  }
  return parsed
}

const deduct = (payload: string | undefined, headers: Record<string, string> = {}): InjectOptions => ({
  method: 'POST',
  url: '/api/credits/deduct',
  headers: payload === undefined ? headers : { 'content-type': 'application/json', ...headers },
  ...payload !== undefined && { payload }
})

const check = (payload: string): InjectOptions => ({ ...deduct(payload), url: '/api/credits/check' })

const setBudget = (budget: string, payload: string): InjectOptions => ({
  ...deduct(payload), method: 'PUT', url: `/api/credits/budgets/${budget}`
})

const chat = (fields: object = {}) => JSON.stringify({ user_id: 'ann', credits: 1, operation: 'chat', ...fields })

/** Requests to the plugin's routes, of each kind that the settings might change. */
const requests: InjectOptions[] = [
  { url: '/api/credits' },
  { url: '/api/credits?user_id=5' },
  { url: '/api/credits?user_id=ann&user_id=bob' },
  { url: '/api/credits?user_id[x]=ann' },
  { url: '/api/credits?userid=ann' },
  { url: '/api/credits?user_id=%FF' },
  { url: '/api/credits?user_id=a;b' },
  { url: '/api/credits?cursor=x' },
  deduct(chat()),
  deduct(chat({ metadata: { constructor: 1, text: 'x'.repeat(5000) } })),
  deduct(chat(), { 'idempotency-key': 'k' }),
  deduct(chat(), { 'idempotency-key': 'k' }),
  deduct(chat({ credits: 2 }), { 'idempotency-key': 'k' }),
  deduct(chat(), { 'idempotency-key': '' }),
  deduct(chat({ credits: 10_001 })),
  deduct(chat({ credits: true })),
  deduct(chat({ credits: '5' })),
  deduct(chat({ extra: 1 })),
  deduct(chat({ user_id: null })),
  deduct(chat().replace('{', '{"__proto__":{},')),
  deduct(chat().replace('{', '{"metadata":{"__proto__":{}},')),
  deduct(chat().replace('{', '{"constructor":{"prototype":{}},')),
  deduct(chat().replace('{', '{"metadata":{"constructor":{"prototype":{}}},')),
  deduct('{'),
  deduct(''),
  deduct('null'),
  deduct(undefined),
  deduct(chat(), { 'content-type': 'text/plain' }),
  deduct(chat(), { 'content-type': 'application/xml' }),
  deduct(chat().padEnd(65_536)),
  deduct(chat().padEnd(65_537)),
  { url: '/api/credits?user_id=ann' },
  { url: '/api/credits/budgets?user_id=team&limit=1' },
  { url: '/api/credits/budgets?user_id=team&user_id=bob' },
  { url: '/api/credits/budgets?limit=1.5' },
  { url: '/api/credits?user_id=team&budget=small' },
  deduct(chat({ user_id: 'team', budget: 'small', credits: 6 })),
  deduct(chat({ user_id: 'team', budget: 'nothing' })),
  deduct(chat({ user_id: 'team', budget: ['small'] })),
  check(chat({ user_id: 'team', budget: 'small' })),
  check(chat({ user_id: 'team', budget: 'small', credits: 6 })),
  check(chat({ credits: true })),
  setBudget('small', '{"user_id":"team","day":4,"within":"large"}'),
  setBudget('small', '{"user_id":"team","day":"4"}'),
  setBudget('50%25%2F', '{"user_id":"team","__proto__":{}}'),
  { method: 'DELETE', url: '/api/credits/budgets/large?user_id=team' },
  { method: 'DELETE', url: '/api/credits/budgets/small?user_id=team' },
  { method: 'DELETE', url: '/api/credits/budgets/large?user_id=team&user_id=bob' }
]

const own = (payload: string, type = 'application/json'): InjectOptions =>
  ({ method: 'POST', url: '/own', headers: { 'content-type': type }, payload })

/** Requests to the host's own routes, whose replies each setting changes. */
const ownRequests: InjectOptions[] = [
  own('{"size":1}'), own('{"size":"1","extra":true}'), own('{"size":"x"}'), own('{}'), own('{"size":1}', 'text/csv'),
  own('{"size":1}'.padEnd(1_500_000)), own('{"size":1,"__proto__":{}}'),
  own('{"size":1,"constructor":{"prototype":{}}}'),
  { url: '/own?a=1&a=2' }, { url: '/own?a[x]=y' }, { url: '/own;a=1' }, { url: '/own?a=%FF' }
]

async function registerCredits (app: FastifyInstance) {
  await app.register(credits, { ...defaults, management: { authorize: () => true } })
  await app.credits.setBudget('team', 'large', { month: 50 })
  await app.credits.setBudget('team', 'small', { within: 'large', day: 5 })
}

function addOwnRoutes (app: FastifyInstance) {
  const body = { type: 'object', properties: { size: { type: 'integer' } }, required: ['size'], additionalProperties: false }
  const response = { 200: { type: 'object', properties: { size: { type: 'integer' } } } }
  app.post('/own', { schema: { body, response } }, async request => request.body)
  app.get('/own', async request => ({ query: request.query }))
}

async function answers (app: FastifyInstance, requests: InjectOptions[]) {
  const answers = []
  for (const request of requests) {
    const { statusCode, headers: { date, ...headers }, body } = await app.inject(request)
    answers.push({ statusCode, headers, body: body.replaceAll(/\d{4}-\d{2}-\d{2}/g, 'a day') })
  }
  return answers
}

async function answersWithoutPlugin (t: Test, { server, set }: HostSettings) {
  const app = Fastify(server)
  t.teardown(() => app.close())
  await set?.(app)
  addOwnRoutes(app)
  return await answers(app, ownRequests)
}

/** The replies of a host without settings. */
const plain: Record<'routes' | 'own', Awaited<ReturnType<typeof answers>>> = { routes: [], own: [] }

t.test('a host without settings', async t => {
  const app = await buildHost(t)
  await registerCredits(app)
  plain.routes = await answers(app, requests)
  plain.own = await answersWithoutPlugin(t, {})
  t.strictSame(plain.routes.map(({ statusCode }) => statusCode), [
    200, 200, 400, 400, 400, 400, 200, 400, 200, 200, 200, 200, 409, 400, 402, 400, 400, 400, 400, 400, 400, 400, 400,
    400, 400, 400, 400, 415, 415, 200, 413, 200, 200, 400, 400, 200, 402, 404, 400, 200, 402, 400, 200, 400, 400, 409, 204, 400
  ])
})

for (const [title, settings] of Object.entries(hosts)) {
  for (const when of ['before', 'after'] as const) {
    if (when === 'after' && settings.set === undefined) continue

    t.test(`${title}, set ${when} the plugin: neither changes the other's routes`, async t => {
      const app = await buildHost(t, { server: settings.server ?? {} })
      if (when === 'before') await settings.set?.(app)
      await registerCredits(app)
      if (when === 'after') await settings.set?.(app)
      addOwnRoutes(app)
      t.strictSame(await answers(app, requests), plain.routes)
      const own = await answersWithoutPlugin(t, settings)
      t.strictSame(await answers(app, ownRequests), own)
      t.notSame(own, plain.own, 'the setting makes a difference')
    })
  }
}

t.test('if a semicolon begins the query, its user_id is the account that is read', async t => {
  const app = await buildHost(t, { server: { useSemicolonDelimiter: true } })
  await app.register(credits, defaults)
  t.equal((await app.inject('/api/credits;user_id=ann')).statusCode, 200)
  t.strictSame((await app.pg.query('select user_id from ai_credits')).rows, [{ user_id: 'ann' }])
})

t.test('the error handler of the host gets the errors of the routes, and what it sends arrives whole', async t => {
  const app = await buildHost(t)
  app.setErrorHandler(async (error: FastifyError & { credits?: unknown, required?: number }, request, reply) => {
    const { statusCode, code, message, credits, required, validationContext } = error
    reply.code(statusCode ?? 500).header('x-handled', 'yes')
    const isError = error instanceof Error
    return { problem: { statusCode, code, message, credits, required, validationContext, isError }, path: request.url }
  })
  await app.register(credits, { ...defaults, identify: request => request.headers.user as string | undefined })

  const user = { user: 'ann' }
  await app.inject(deduct(chat(), { ...user, 'idempotency-key': 'k' }))
  const balance = { available: 9999, total: 10000, used: 1, held: 0 }
  const rows: Array<[InjectOptions, object]> = [
    [deduct(chat({ credits: true }), user),
      { statusCode: 400, code: 'FST_ERR_VALIDATION', validationContext: 'body', message: /^body\/credits must be/ }],
    ...['x=1', 'user_id=%FF'].map((query): [InjectOptions, object] => [{ url: `/api/credits?${query}`, headers: user },
      { statusCode: 400, code: 'FST_ERR_VALIDATION', validationContext: 'querystring' }]),
    [deduct(chat(), { ...user, 'idempotency-key': '' }),
      { statusCode: 400, code: 'FST_ERR_VALIDATION', validationContext: 'headers' }],
    [deduct('{', user), { statusCode: 400, code: 'FST_ERR_CTP_INVALID_JSON_BODY' }],
    [deduct('', user), { statusCode: 400, code: 'FST_ERR_CTP_EMPTY_JSON_BODY' }],
    [{ url: '/api/credits' }, { statusCode: 401, code: 'FST_CREDITS_UNIDENTIFIED' }],
    [{ url: '/api/credits?user_id=bob', headers: user }, { statusCode: 403, code: 'FST_CREDITS_FORBIDDEN' }],
    [deduct(chat({ credits: 10_001 }), user),
      { statusCode: 402, code: 'FST_CREDITS_INSUFFICIENT', required: 10_001, credits: balance }],
    [deduct(chat({ credits: 2 }), { ...user, 'idempotency-key': 'k' }),
      { statusCode: 409, code: 'FST_CREDITS_IDEMPOTENCY_CONFLICT' }],
    [deduct(chat().padEnd(65_537), user), { statusCode: 413, code: 'FST_ERR_CTP_BODY_TOO_LARGE' }],
    [deduct(chat(), { ...user, 'content-type': 'text/plain' }), { statusCode: 415, code: 'FST_ERR_CTP_INVALID_MEDIA_TYPE' }]
  ]
  for (const [request, problem] of rows) {
    const reply = await app.inject(request)
    const { statusCode, code } = problem as { statusCode: number, code: string }
    t.equal(reply.statusCode, statusCode, code)
    t.match(reply.json(), { problem: { ...problem, isError: true }, path: /^\/api\/credits/ })
    t.equal(reply.headers['x-handled'], 'yes')
  }
})

t.test('the host\'s error handler may send any reply', async t => {
  const app = await buildHost(t)
  const sent: Record<string, [(reply: FastifyReply, error: Error) => unknown, string]> = {
    text: [reply => reply.type('text/plain').send('no'), 'no'],
    bytes: [reply => reply.send(Buffer.from('no')), 'no'],
    list: [reply => reply.send([1, { a: 2 }]), '[1,{"a":2}]'],
    serializer: [reply => reply.serializer(() => 'mine').send({}), 'mine'],
    error: [(reply, error) => reply.send(error),
      '{"statusCode":400,"code":"FST_ERR_VALIDATION","error":"Bad Request",' +
      '"message":"body/credits must be a whole number from 1 to 9007199254740991"}']
  }
  app.setErrorHandler((error: Error, request, reply) => sent[request.headers.want as string]![0](reply.code(400), error))
  await app.register(credits, defaults)
  for (const [want, [, body]] of Object.entries(sent)) {
    t.equal((await app.inject(deduct(chat({ credits: 0 }), { want }))).body, body, want)
  }
})

t.test('hooks of the host may reply instead of the routes, and their replies arrive whole', async t => {
  const app = await buildHost(t)
  const answer = { credits: { available: 'none', extra: [1] }, error: 5, secret: { deep: true } }
  const preHandler = async (_request: unknown, reply: FastifyReply) => reply.code(403).send(answer)
  await app.register(credits, { ...defaults, routes: { deduct: { preHandler } } })
  const reply = await app.inject(deduct(chat()))
  t.strictSame([reply.statusCode, reply.json()], [403, answer])
  t.strictSame((await app.pg.query('select from ai_credits')).rows, [])
})

t.test('schemas in other contexts of the host may have the names of the plugin\'s', async t => {
  const app = await buildHost(t)
  await app.register(async scope => {
    for (const $id of ['AiCreditsBalance', 'AiCreditsUsageEntry', 'AiCreditsError', 'AiInsufficientCredits']) {
      scope.addSchema({ $id, type: 'string' })
    }
  })
  await app.register(credits, defaults)
  t.equal((await app.inject('/api/credits')).statusCode, 200)
})
