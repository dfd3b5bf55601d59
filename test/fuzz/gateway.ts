import swagger from '@fastify/swagger'
import { Type } from '@sinclair/typebox'
import type { FastifyInstance, FastifyRequest } from 'fastify'
import type { Test } from 'tap'
import { strictValidator } from '../../src/http/validation.js'
import credits, { type FastifyAiCreditsOptions, type Identity } from '../../src/index.js'
import { Credits, UserId } from '../../src/ledger/fields.js'
import { buildHost, defaults } from '../helper/app.js'
import { buildCheck, type Check } from './conformance.js'
import { PATIENCE } from './settings.js'
import type { Kind } from './shadow.js'

/** The header in which the fuzzed gateways tell which route has answered: nothing that a client could guess at. */
export const ROUTE = 'x-fuzz-route'

/** What a service sends to be let through to the management routes. */
export const SERVICE = { 'x-service': 'yes' }

/** A gateway under fire. */
export interface Gateway {
  title: string
  app: FastifyInstance
  /** The OpenAPI document of all its routes. */
  document: any
  check: Check
  /** What the account is of a request that names none: of the one in `identity`, or of everybody. */
  accountOf: (identity: string | undefined) => string | undefined
}

const manage: FastifyAiCreditsOptions = {
  management: { authorize: request => request.headers['x-service'] === SERVICE['x-service'] }
}

const identify = (request: FastifyRequest): Identity =>
  request.headers['x-user'] === 'service' ? { any: true } : request.headers['x-user'] as string | undefined

const PLENTY = 1_000_000_000

/** The gateways that are fuzzed, by what they are registered with. */
export const settings: Record<string, FastifyAiCreditsOptions> = {
  plain: { allowance: PLENTY, historyLimit: 3 },
  managed: { allowance: PLENTY, historyLimit: 3, ...manage },
  poor: { allowance: 5, defaultUser: null, historyLimit: 2, prefix: '/gw', ...manage },
  identified: { allowance: PLENTY, identify, ...manage }
}

interface WorkRoute {
  Body: { user_id: string, credits: number }
}

/** A route of the gateway's own that is charged, as much as its body says, before it replies; it tells what its hold was. */
async function addRoutes (app: FastifyInstance): Promise<void> {
  const body = Type.Object({ user_id: UserId, credits: Credits }, { additionalProperties: false })
  const refusal = Type.Object({
    statusCode: Type.Integer(), code: Type.String(), error: Type.String(), message: Type.String()
  })
  const insufficient = Type.Composite([refusal, Type.Object({
    credits: Type.Object({ available: Type.Integer(), total: Type.Integer(), used: Type.Integer(), held: Type.Integer() }),
    required: Type.Integer()
  })])
  const answer = Type.Object({ id: Type.String(), user_id: Type.String(), credits: Type.Integer() })
  const asked = ({ body }: FastifyRequest) => body as WorkRoute['Body']
  app.post<WorkRoute>('/work', {
    schema: { body, response: { 200: answer, 402: insufficient, 400: refusal, 413: refusal, 415: refusal } },
    validatorCompiler: strictValidator({ body }),
    config: {
      credits: {
        operation: 'work',
        cost: request => asked(request).credits,
        user: request => asked(request).user_id,
        capture: 'before'
      }
    }
  }, async request => ({ id: request.credits!.holdId, user_id: request.credits!.userId, credits: request.body.credits }))
}

/** What an accepted POST to a route of this ending has written. */
export const writes: Array<[ending: string, ...kinds: Kind[]]> = [
  ['/credits/deduct', 'deduct'],
  ['/credits/holds', 'hold'],
  ['/credits/grants', 'grant'],
  ['/credits/refunds', 'refund'],
  ['/credits/holds/:id/capture', 'capture'],
  ['/work', 'hold', 'capture']
]

/** Builds one of `settings`, closed after the test. `watch` adds hooks of a test's own. */
export async function buildFuzzed (t: Test, title: string, watch: (app: FastifyInstance) => void = () => {}): Promise<Gateway> {
  const options = settings[title]!
  const app = await buildHost(t, { server: { pluginTimeout: PATIENCE } })
  watch(app)
  app.addHook('onSend', async (request, reply) => { reply.header(ROUTE, request.routeOptions.url ?? 'none') })
  await app.register(swagger, { openapi: { openapi: '3.0.3', info: { title: 'Fuzzed', version: '1.0.0' } } })
  await app.register(credits, { ...defaults, timeout: PATIENCE, ...options })
  await addRoutes(app)
  await app.ready()
  const document = JSON.parse(JSON.stringify(app.swagger()))
  const { defaultUser = 'default_user' } = options
  return {
    title,
    app,
    document,
    check: await buildCheck(document),
    accountOf: identity => options.identify === undefined ? defaultUser ?? undefined : identity
  }
}
