import fc from 'fast-check'
import { damagedBody, damagedPath, damagedQuery } from './damage.js'
import { SERVICE } from './gateway.js'
import { budgets, hardJson, hardString, users } from './values.js'

/** A request that a fuzzer sends. */
export interface Sent {
  method: string
  /** Path and query, encoded. */
  url: string
  headers: Record<string, string>
  body: Buffer | undefined
}

const keys = Array.from({ length: 40 }, (_, index) => `k${index}`)

const PAST_AND_FUTURE = ['2001-01-01T00:00:00Z', '2099-12-31T23:59:59.999+14:00', '9999-12-31T23:59:59Z', '0001-01-01T00:00:00Z']

const often = <T>(value: fc.Arbitrary<T>, ...others: fc.Arbitrary<T>[]) => fc.oneof(
  { weight: 12, arbitrary: value }, ...others.map(arbitrary => ({ weight: 1, arbitrary })))

const cursor = fc.tuple(fc.constantFrom('2026-01-01', '2026-02-30', '9999-12-31', 'x'), fc.integer(), hardString, fc.constantFrom('0'.repeat(64), 'x'))
  .map(position => Buffer.from(JSON.stringify(position)).toString('base64url'))

// Many that are there or can be made, some that are not, and templates, which some fields take and others do not.
const budget = often<string>(fc.constantFrom(...budgets), fc.constantFrom('nothing', 'kind:x', 'KEY:K1', 'key:k1 ', 'key:*', 'team:*', ':*', '*', 'key:', ':'))

const limitOfPeriod = fc.oneof(fc.integer({ min: 0, max: 60 }), fc.integer({ min: 0, max: 20_000 }))

// What the document cannot say: which accounts, budgets, keys and ids exist.
const namedFields = (ids: number): Record<string, fc.Arbitrary<unknown>> => ({
  user_id: fc.constantFrom(...users),
  usage_id: fc.integer({ min: 1, max: ids }).map(String),
  deduct_key: fc.constantFrom(...keys),
  credits: fc.oneof(fc.integer({ min: 1, max: 12 }), fc.integer({ min: 1, max: 2000 })),
  budget,
  within: fc.oneof(fc.constantFrom('team', 'member'), budget),
  ...Object.fromEntries(['day', 'week', 'month', 'total'].map(period => [period, limitOfPeriod])),
  cursor: fc.oneof(cursor, fc.integer({ min: 0, max: 5 }).map(String), budget),
  limit: fc.integer({ min: 1, max: 200 }).map(String)
})

/** Generates values that match a schema. */
function valueOf (name: string, schema: any, named: Record<string, fc.Arbitrary<unknown>>): fc.Arbitrary<unknown> {
  if (named[name] !== undefined) return named[name]
  if (schema.enum !== undefined) return fc.constantFrom(...schema.enum)
  if (schema.format === 'date-time') return fc.constantFrom(...PAST_AND_FUTURE)
  if (schema.type === 'integer') return fc.integer({ min: schema.minimum, max: Math.min(schema.maximum, 2 ** 31) })
  if (schema.type === 'boolean') return fc.boolean()
  if (schema.type === 'object') return fc.dictionary(fc.string({ maxLength: 5 }), fc.jsonValue({ maxDepth: 1 }), { maxKeys: 2, noNullPrototype: true })
  return fc.constantFrom('chat', 'video_generation', 'ünï', "o'hara")
}

/** Generates fields that match the document, or of which one does not. */
function fieldsOf (properties: Record<string, any>, required: string[], named: Record<string, fc.Arbitrary<unknown>>) {
  const right = fc.record(
    Object.fromEntries(Object.entries(properties).map(([name, schema]) => [name, valueOf(name, schema, named)])),
    { requiredKeys: required, noNullPrototype: true })
  const name = fc.oneof(fc.constantFrom(...Object.keys(properties)), hardString)
  const wrong = fc.tuple(right, name, hardJson).map(([fields, name, value]) => defined(fields, name, value))
  const less = fc.tuple(right, name).map(([fields, name]) => Object.fromEntries(Object.entries(fields).filter(([key]) => key !== name)))
  return fc.oneof({ weight: 16, arbitrary: right }, { weight: 6, arbitrary: wrong }, { weight: 1, arbitrary: less })
}

// The fields are not assigned, because '__proto__' is a name like any other here.
const defined = (fields: object, name: string, value: unknown): object =>
  Object.fromEntries([...Object.entries(fields), [name, value]])

const contentType = often<string | undefined>(fc.constant('application/json'), fc.constantFrom(
  'application/json; charset=utf-8', 'application/json;charset=latin1', 'APPLICATION/JSON', 'application/jsonx', 'text/plain',
  'application/x-www-form-urlencoded', 'multipart/form-data; boundary=x', 'application/vnd.api+json', 'x', '', undefined))

const idempotencyKey = fc.oneof<fc.Arbitrary<string | undefined>[]>(
  fc.constant(undefined), fc.constantFrom(...keys), fc.constantFrom(...keys), hardString)

const oddHeader = fc.tuple(fc.constantFrom(
  'accept', 'accept-encoding', 'accept-version', 'content-encoding', 'expect', 'x-http-method-override', 'x-forwarded-for', 'origin',
  'x-fuzz-route', 'authorization', 'cookie', 'range', 'if-none-match', '__proto__'), fc.oneof(hardString, fc.constantFrom('gzip', '*/*')))

const headersOf = (ids: boolean) => fc.tuple(
  contentType, idempotencyKey, often(fc.constant(true), fc.constant(false)),
  fc.oneof(fc.constantFrom('ann', 'ben', 'service'), fc.constantFrom('ann', 'service', '__proto__', undefined), fc.constantFrom(...bound)), fc.option(oddHeader, { freq: 6 })
).map(([type, key, service, user, odd]) => Object.fromEntries([
  ...ids && type !== undefined ? [['content-type', type]] : [],
  ...key !== undefined ? [['idempotency-key', key]] : [],
  ...service ? Object.entries(SERVICE) : [],
  ...user !== undefined ? [['x-user', user]] : [],
  ...odd === null ? [] : [odd]
]) as Record<string, string>)

const bound = ['ann/key:k1', 'ben/member', '__proto__/key:new', 'ann/nothing']

const oddMethod = fc.constantFrom('HEAD', 'PUT', 'PATCH', 'DELETE', 'OPTIONS', 'GET', 'POST')

/** Generates valid and invalid requests for the operations of an OpenAPI document. Ids up to `ids` probably exist. */
export function requestsOf (document: any, ids: number): fc.Arbitrary<Sent> {
  const named = namedFields(ids)
  const operations = Object.entries<any>(document.paths).flatMap(([path, methods]) =>
    Object.entries<any>(methods).map(([method, operation]) => operationRequests(path, method.toUpperCase(), operation, named, ids)))
  return fc.oneof(...operations)
}

function operationRequests (
  path: string, method: string, { parameters = [], requestBody }: any, named: Record<string, fc.Arbitrary<unknown>>, ids: number
): fc.Arbitrary<Sent> {
  const id = often<string>(path.includes('{budget}') ? budget : fc.integer({ min: 1, max: ids }).map(String), hardString)
  const url = fc.tuple(often(fc.constant(path), damagedPath(path)), id).map(([path, id]) => path.replace(/\{\w+\}/, encode(id)))
  const query = parameters.filter((parameter: any) => parameter.in === 'query')
  const schema = requestBody?.content['application/json'].schema
  return fc.record({
    method: often(fc.constant(method), oddMethod),
    url: fc.tuple(url, queryOf(query, named)).map(([path, query]) => query === '' ? path : `${path}?${query}`),
    headers: headersOf(schema !== undefined),
    body: schema === undefined ? often<Buffer | undefined>(fc.constant(undefined), fc.constant(Buffer.from('{}'))) : bodyOf(schema, named)
  })
}

function queryOf (parameters: any[], named: Record<string, fc.Arbitrary<unknown>>): fc.Arbitrary<string> {
  if (parameters.length === 0) return often(fc.constant(''), damagedQuery(fc.constant('')))
  const properties = Object.fromEntries(parameters.map(({ name, schema }) => [name, schema]))
  const required = parameters.filter(({ required }) => required).map(({ name }) => name)
  const right = fieldsOf(properties, required, named).map(fields =>
    Object.entries(fields).map(([name, value]) => `${encode(name)}=${encode(asText(value))}`).join('&'))
  return fc.oneof({ weight: 6, arbitrary: right }, { weight: 1, arbitrary: damagedQuery(right) })
}

function bodyOf (schema: any, named: Record<string, fc.Arbitrary<unknown>>): fc.Arbitrary<Buffer | undefined> {
  const json = fieldsOf(schema.properties, schema.required ?? [], named).map(fields => JSON.stringify(fields))
  return fc.oneof(
    { weight: 12, arbitrary: json.map(text => Buffer.from(text)) },
    { weight: 3, arbitrary: damagedBody(json) },
    { weight: 1, arbitrary: hardJson.map(value => Buffer.from(JSON.stringify(value))) },
    { weight: 1, arbitrary: fc.constant(undefined) })
}

const asText = (value: unknown) => typeof value === 'string' ? value : JSON.stringify(value)

// A lone surrogate has no encoding.
function encode (text: string): string {
  return encodeURIComponent(text.toWellFormed())
}
