import assert from 'node:assert'
import Fastify from 'fastify'

/** A reply, over HTTP or from `inject`. */
export interface Reply {
  status: number
  headers: Record<string, unknown>
  body: string
}

/** Throws if a reply to `method` on `route` is not what the document says; `route` is undefined if none was found. */
export type Check = (method: string, route: string | undefined, reply: Reply) => void

// Replies that Fastify and Node.js send before a route is found, so no document can list them: the path is no URL, a
// parameter has over 100 characters, or the request is not HTTP. If no route is found, the host's own parser reads the body
// before the reply 404, and may refuse it.
const BEFORE_ROUTING: Record<number, RegExp> = {
  400: /^(FST_ERR_BAD_URL|FST_ERR_CTP_\w+|Bad Request)$/,
  404: /^Not Found$/,
  408: /^Request Timeout$/,
  413: /^FST_ERR_CTP_BODY_TOO_LARGE$/,
  414: /^FST_ERR_MAX_PARAM_LENGTH$/,
  415: /^FST_ERR_CTP_INVALID_MEDIA_TYPE$/,
  417: /^none$/,
  431: /^Request Header Fields Too Large$/
}

/** Returns a check against an OpenAPI document. A reply must not have anything that the document does not mention. */
export async function buildCheck (document: any): Promise<Check> {
  const compile = await compiler({ $id: 'document', ...closed(document) })
  const validators = new Map<string, ReturnType<typeof compile>>()
  const validatorOf = (path: string[]) => {
    const pointer = path.map(part => part.replaceAll('~', '~0').replaceAll('/', '~1')).join('/')
    const known = validators.get(pointer) ?? compile({ $ref: `document#/${pointer}` })
    validators.set(pointer, known)
    return known
  }
  return (method, route, { status, headers, body }) => {
    assert(status < 500, `${status}: ${body}`)
    if (route === undefined || route === 'none') return beforeRouting(status, body)
    const path = route.replaceAll(/:(\w+)/g, '{$1}').replace(/\*$/, '{budget}') // the document has one path for both
    const verb = method === 'HEAD' ? 'get' : method.toLowerCase()
    const operation = document.paths[path]?.[verb]
    assert(operation, `${method} ${path} is not in the document`)
    assert(operation.responses[status], `${status} of ${method} ${path} is not in the document: ${body}`)
    if (method === 'HEAD') return assert.strictEqual(body, '')
    if (status === 204) return assert.deepStrictEqual([body, headers['content-type']], ['', undefined])
    assert.match(String(headers['content-type']), /^application\/json; charset=utf-8$/)
    const valid = validatorOf(['paths', path, verb, 'responses', `${status}`, 'content', 'application/json', 'schema'])
    const value = JSON.parse(body)
    assert(valid(value), `${status} of ${method} ${path}: ${body} ${JSON.stringify(valid.errors)}`)
    if (status !== 200) assert.strictEqual(value.statusCode, status)
  }
}

function beforeRouting (status: number, body: string): void {
  const allowed = BEFORE_ROUTING[status]
  assert(allowed, `${status} before any route: ${body}`)
  if (body === '') return // to HEAD, or by Node.js
  const { code, error, statusCode } = JSON.parse(body)
  assert.match(String(code ?? error), allowed)
  assert.strictEqual(statusCode ?? status, status)
}

type Validator = ((value: unknown) => boolean) & { errors?: unknown }

// Fastify's own validator, but without coercing values or removing fields.
async function compiler (schema: object): Promise<(schema: object) => Validator> {
  const app = Fastify({ ajv: { customOptions: { strict: false, coerceTypes: false, removeAdditional: false } } })
  app.addSchema(schema)
  let compile: ((schema: object) => Validator) | undefined
  app.get('/', async request => { compile = schema => request.compileValidationSchema(schema as any) })
  await app.inject('/')
  return schema => compile!(schema)
}

function closed (schema: unknown): any {
  if (typeof schema !== 'object' || schema === null) return schema
  if (Array.isArray(schema)) return schema.map(closed)
  const copy = Object.fromEntries(Object.entries(schema).map(([key, value]) => [key, closed(value)]))
  return copy.type === 'object' && !('additionalProperties' in copy) ? { ...copy, additionalProperties: false } : copy
}
