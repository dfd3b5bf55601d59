// about HTTP, not the database
import { execFile } from 'node:child_process'
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import swagger, { type FastifyDynamicSwaggerOptions } from '@fastify/swagger'
import Fastify, { type FastifyInstance, type LightMyRequestResponse } from 'fastify'
import t, { type Test } from 'tap'
import credits, { type FastifyAiCreditsOptions } from '../../src/index.js'
import { buildHost, defaults, postDeduct } from '../helper/app.js'
import { createDatabase, pglite } from '../helper/database.js'

const redocly = fileURLToPath(new URL('../../node_modules/@redocly/cli/bin/cli.js', import.meta.url))

// The host's own part of the document. With it, a linter can only complain about our routes.
const openapi = {
  openapi: '3.0.3',
  info: { title: 'Gateway', version: '1.0.0', license: { name: 'MIT', url: 'https://opensource.org/license/mit' } },
  servers: [{ url: '/' }],
  security: []
}

const named: FastifyDynamicSwaggerOptions = { refResolver: { buildLocalReference: json => `${json.$id}` } }

async function buildDocumented (
  t: Test, options: FastifyAiCreditsOptions = {}, documentation: FastifyDynamicSwaggerOptions = {}
) {
  const app = await buildHost(t)
  await app.register(swagger, { openapi, ...documentation })
  await app.register(credits, { ...defaults, ...options })
  return app
}

const managed: FastifyAiCreditsOptions = { management: { authorize: () => true } }

async function documentOf (app: FastifyInstance): Promise<any> {
  await app.ready()
  return JSON.parse(JSON.stringify(app.swagger()))
}

function operationsOf (document: any): any[] {
  return Object.values(document.paths).flatMap(path => Object.values(path as object))
}

t.test('each operation and each response has a description', async t => {
  const operations = operationsOf(await documentOf(await buildDocumented(t)))
  t.strictSame(operations.map(({ operationId, tags }) => [operationId, tags]), [
    ['getCredits', ['credits']], ['getBudgets', ['credits']], ['deductCredits', ['credits']], ['checkCredits', ['credits']]
  ])
  for (const { summary, description, responses, parameters } of operations) {
    t.ok(summary && description)
    t.ok([...Object.values<any>(responses), ...parameters].every(part => part.description.length > 0))
  }
  const [read, budgets, deduct, checked] = operations.map(({ responses }) => Object.keys(responses))
  for (const route of [read, budgets]) t.strictSame(route, ['200', '400', '401', '403', '503'])
  t.strictSame(deduct, ['200', '400', '401', '402', '403', '404', '409', '413', '415', '503'])
  t.strictSame(checked, deduct)
})

t.test('so have the management routes, each under one path', async t => {
  const { paths } = await documentOf(await buildDocumented(t, managed))
  const operations = operationsOf({ paths }).filter(({ tags }) => tags[0] === 'credits management')
  t.strictSame(operations.map(({ operationId }) => operationId).sort(), [
    'captureHold', 'extendHold', 'getStatement', 'grantCredits', 'holdCredits', 'refundCredits', 'releaseHold', 'removeBudget', 'setBudget'
  ])
  for (const { summary, description, responses } of operations) {
    t.ok(summary && description)
    t.ok(Object.values<any>(responses).every(part => part.description.length > 0))
  }
  const { put, delete: remove } = paths['/api/credits/budgets/{budget}']
  t.strictSame(Object.keys(put.responses), ['200', '400', '401', '403', '404', '413', '415', '503'])
  t.strictSame(Object.keys(remove.responses), ['204', '400', '401', '403', '404', '409', '413', '415', '503'])
  for (const { parameters } of [put, remove]) t.match(parameters.find(({ name }: any) => name === 'budget'), { in: 'path', required: true })
  t.notOk(Object.keys(paths).some(path => path.includes('*')))
})

t.test('shared schemas are components with names', async t => {
  const names = ['AiCreditsBalance', 'AiCreditsBudget', 'AiCreditsError', 'AiCreditsRefusal', 'AiCreditsUsageEntry']
  const { schemas } = (await documentOf(await buildDocumented(t))).components
  t.strictSame(Object.values<any>(schemas).map(({ title }) => title).sort(), names)
  const document = await documentOf(await buildDocumented(t, {}, named))
  t.strictSame(Object.keys(document.components.schemas).sort(), names)
  const { 402: { content } } = document.paths['/api/credits/deduct'].post.responses
  t.strictSame(content['application/json'].schema, { $ref: '#/components/schemas/AiCreditsRefusal' })
})

t.test('user_id is required if nothing else names the account', async t => {
  const required = async (options: FastifyAiCreditsOptions) => {
    const [read, budgets, deduct] = operationsOf(await documentOf(await buildDocumented(t, options)))
    const [one, two] = [read, budgets].map(({ parameters }) => parameters.find(({ name }: { name: string }) => name === 'user_id').required)
    return [one, two, deduct.requestBody.content['application/json'].schema.required.includes('user_id')]
  }
  t.strictSame(await required({}), [false, false, false])
  t.strictSame(await required({ defaultUser: null }), [true, true, true])
  t.strictSame(await required({ defaultUser: null, identify: () => 'ann' }), [false, false, false])
})

// The document is the same on every database.
t.test('redocly finds no problem in the routes', { skip: pglite }, async t => {
  const documents = [
    await documentOf(await buildDocumented(t)),
    await documentOf(await buildDocumented(t, { defaultUser: null }, named)),
    await documentOf(await buildDocumented(t, {}, { openapi: { ...openapi, openapi: '3.1.0' } })),
    await documentOf(await buildDocumented(t, managed)),
    await documentOf(await buildDocumented(t, managed, { openapi: { ...openapi, openapi: '3.1.0' } })),
    await documentOf(await buildTwice(t))
  ]
  const folder = t.testdir({ 'redocly.yaml': 'extends: [recommended]\n' })
  const problems = await Promise.all(documents.map(async (document, index) => {
    const file = join(folder, `${index}.json`)
    await writeFile(file, JSON.stringify(document))
    return await lint(file, join(folder, 'redocly.yaml'))
  }))
  t.strictSame(problems.flat(), [])
})

t.test('two registrations share a document', async t => {
  const { paths, components } = await documentOf(await buildTwice(t, named))
  t.strictSame(Object.keys(paths).sort(), [
    '/api/credits', '/api/credits/budgets', '/api/credits/check', '/api/credits/deduct',
    '/eu/api/credits', '/eu/api/credits/budgets', '/eu/api/credits/check', '/eu/api/credits/deduct'
  ])
  t.equal(Object.keys(components.schemas).length, 5)
  t.equal(new Set(operationsOf({ paths }).map(({ operationId }) => operationId)).size, 8)
})

async function buildTwice (t: Test, documentation: FastifyDynamicSwaggerOptions = {}) {
  const connectionStrings = [await createDatabase(t), await createDatabase(t)]
  const app = Fastify()
  t.teardown(() => app.close())
  await app.register(swagger, { openapi, ...documentation })
  connectionStrings.forEach((connectionString, index) => {
    app.register(async scope => {
      await scope.register(credits, { ...defaults, connectionString })
    }, { prefix: index === 0 ? '' : '/eu' })
  })
  return app
}

async function lint (file: string, config: string): Promise<unknown[]> {
  const args = [redocly, 'lint', file, '--config', config, '--format', 'json']
  const quiet = { REDOCLY_TELEMETRY: 'off', REDOCLY_SUPPRESS_UPDATE_NOTICE: 'true', _TAPJS_PROCESSINFO_COVERAGE_: '0' }
  // redocly exits with 1 if there are problems.
  const { stdout } = await promisify(execFile)(process.execPath, args, { env: { ...process.env, ...quiet } })
    .catch((error: { stdout: string }) => error)
  const { problems } = JSON.parse(stdout)
  return problems.map(({ ruleId, message, location }: any) => ({ ruleId, message, at: location[0].pointer }))
}

t.test('replies match the document', async t => {
  const app = await buildDocumented(t, { allowance: 100, timeout: 2000 })
  const check = await buildCheck(t, await documentOf(app))
  const body = { credits: 10, operation: 'chat', metadata: { words: 5 } }
  const key = { 'idempotency-key': 'one' }
  check(200, await postDeduct(app, body, key))
  check(200, await postDeduct(app, body, key))
  check(409, await postDeduct(app, { ...body, credits: 11 }, key))
  check(402, await postDeduct(app, { ...body, credits: 91 }))
  check(400, await postDeduct(app, { ...body, credits: 0 }))
  check(400, await postDeduct(app, body, { 'idempotency-key': '' }))
  check(413, await postDeduct(app, { ...body, metadata: { words: 'w'.repeat(70_000) } }))
  check(415, await app.inject({ method: 'POST', url: '/api/credits/deduct', headers: { 'content-type': 'text/plain' }, body: '1' }))
  check(400, await app.inject({ method: 'POST', url: '/api/credits/deduct', headers: { 'content-type': 'application/json' }, body: '{' }))
  const postCheck = async (body: object, headers = {}) => await app.inject({ method: 'POST', url: '/api/credits/check', headers, body })
  check(200, await postCheck(body))
  check(200, await postCheck(body, key))
  check(409, await postCheck({ ...body, credits: 11 }, key))
  check(402, await postCheck({ ...body, credits: 91 }))
  check(200, await app.inject({ url: '/api/credits' }))
  check(400, await app.inject({ url: '/api/credits?user_id=' }))
  for (const name of ['month', 'total']) await app.credits.setBudget(undefined, name, { [name]: 20 })
  await app.credits.setBudget(undefined, 'every', { within: 'month', day: 0, week: 1, month: 2, total: 3 })
  check(200, await postDeduct(app, { ...body, budget: 'month' }))
  for (const budget of ['month', 'total', 'every']) check(402, await postDeduct(app, { ...body, budget, credits: 25 }))
  check(404, await postDeduct(app, { ...body, budget: 'nothing' }))
  check(200, await app.inject({ url: '/api/credits?budget=month' }))
  check(200, await app.inject({ url: '/api/credits/budgets' }))
  check(200, await app.inject({ url: '/api/credits/budgets?limit=1' }))
  check(400, await app.inject({ url: '/api/credits/budgets?limit=0' }))
  await app.pg.query('update ai_credits set held_credits = 40')
  check(200, await app.inject({ url: '/api/credits' }))
  check(402, await postDeduct(app, { ...body, credits: 91 }))
  app.pg.pool.connect = () => Promise.reject(new Error('gone'))
  for (const url of ['/api/credits', '/api/credits/budgets']) check(503, await app.inject({ url }))
  check(503, await postDeduct(app, body))
})

t.test('replies with identify match the document', async t => {
  const app = await buildDocumented(t, { identify: request => request.headers['x-user'] as string | undefined })
  const check = await buildCheck(t, await documentOf(app))
  const body = { user_id: 'ann', credits: 1, operation: 'chat' }
  check(401, await app.inject({ url: '/api/credits' }))
  check(401, await postDeduct(app, body))
  check(403, await app.inject({ url: '/api/credits?user_id=ann', headers: { 'x-user': 'bob' } }))
  check(403, await postDeduct(app, body, { 'x-user': 'bob' }))
  check(401, await app.inject({ url: '/api/credits/budgets' }))
  check(403, await app.inject({ url: '/api/credits/budgets?user_id=ann', headers: { 'x-user': 'bob' } }))
})

t.test('replies of the routes of budgets for services match the document', async t => {
  const app = await buildDocumented(t, { ...managed, timeout: 2000 })
  const check = await buildCheck(t, await documentOf(app), '/api/credits/budgets/{budget}')
  const put = (budget: string, body: object) => app.inject({ method: 'PUT', url: `/api/credits/budgets/${budget}`, body })
  const remove = (budget: string) => app.inject({ method: 'DELETE', url: `/api/credits/budgets/${budget}` })
  check(200, await put('all', { day: 1, week: 2, month: 3, total: 4 }))
  check(200, await put('below', { within: 'all' }))
  check(404, await put('lost', { within: 'nothing' }))
  check(400, await put('all', { within: 'below' }))
  check(400, await put('all', { day: '1' }))
  check(413, await put('all', { within: 'w'.repeat(70_000) }))
  check(409, await remove('all'))
  check(404, await remove('nothing'))
  const { statusCode, headers, body } = await remove('below')
  t.strictSame([statusCode, headers['content-type'], body], [204, undefined, ''])
  app.pg.pool.connect = () => Promise.reject(new Error('gone'))
  check(503, await put('all', {}))
  check(503, await remove('all'))
})

/**
 * Returns a check of a reply's status, and of its body against the document's schema for that status. `route`: the path in the
 * document. Default: that of the request.
 */
async function buildCheck (t: Test, document: any, route?: string) {
  // Fastify's own validator, but without coercing values or removing fields.
  const validator = Fastify({ ajv: { customOptions: { strict: false, coerceTypes: false, removeAdditional: false } } })
  validator.addSchema({ $id: 'document', ...closed(document) })
  validator.get('/', async () => {})
  let compile: (schema: object) => ((body: unknown) => boolean) & { errors?: unknown } = () => () => false
  validator.addHook('onRequest', async request => { compile = schema => request.compileValidationSchema(schema as any) })
  await validator.inject('/')
  return (status: number, reply: LightMyRequestResponse) => {
    const { method, url } = reply.raw.req as { method: string, url: string }
    const path = ['paths', route ?? url.split('?')[0]!, method.toLowerCase(), 'responses', `${status}`, 'content', 'application/json', 'schema']
    const valid = compile({ $ref: `document#/${path.map(pointer).join('/')}` })
    t.equal(reply.statusCode, status)
    t.ok(valid(reply.json()), `${status} of ${method} ${url}`, { errors: valid.errors, body: reply.body })
  }
}

const pointer = (part: string) => part.replaceAll('~', '~0').replaceAll('/', '~1')

// Closes all objects of a schema: a reply must not have anything that the document does not mention.
function closed (schema: unknown): any {
  if (typeof schema !== 'object' || schema === null) return schema
  if (Array.isArray(schema)) return schema.map(closed)
  const copy = Object.fromEntries(Object.entries(schema).map(([key, value]) => [key, closed(value)]))
  return copy.type === 'object' && !('additionalProperties' in copy) ? { ...copy, additionalProperties: false } : copy
}
