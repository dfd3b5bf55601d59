import swagger from '@fastify/swagger'
import { Type } from '@sinclair/typebox'
import type { FastifyInstance, FastifyRequest } from 'fastify'
import type { Test } from 'tap'
import { strictValidator } from '../../src/http/validation.js'
import credits, { type FastifyAiCreditsOptions, type Identity } from '../../src/index.js'
import { ChargedBudget, Credits, UserId } from '../../src/ledger/input/fields.js'
import { buildHost, defaults } from '../helper/app.js'
import { buildCheck, type Check } from './conformance.js'
import { PATIENCE } from './settings.js'
import type { Kind } from './shadow.js'
import { users } from './values.js'

/** The header in which the fuzzed gateways say which route has replied. No client sends it. */
export const ROUTE = 'x-fuzz-route'

/** The headers by which a service may use the management routes. */
export const SERVICE = { 'x-service': 'yes' }

/** A gateway that is fuzzed. */
export interface Gateway {
  title: string
  app: FastifyInstance
  /** The OpenAPI document of all its routes. */
  document: any
  check: Check
  /** Returns the account of a request without `user_id`: that of `identity`, or the default one. */
  accountOf: (identity: string | undefined) => string | undefined
  /** Returns the budget that `identity` is bound to; undefined: none. */
  budgetOf: (identity: string | undefined) => string | undefined
}

const manage: FastifyAiCreditsOptions = {
  management: { authorize: request => request.headers['x-service'] === SERVICE['x-service'] }
}

// The header has a user id, or a user id and the budget that the client is bound to.
const identify = (request: FastifyRequest): Identity => {
  const user = request.headers['x-user'] as string | undefined
  if (user === 'service') return { any: true }
  const [userId, budget] = user?.split('/') ?? []
  return budget === undefined ? userId : { userId: userId!, budget }
}

const PLENTY = 1_000_000_000

/** The options of the gateways that are fuzzed, by their titles. */
export const settings: Record<string, FastifyAiCreditsOptions> = {
  plain: { allowance: PLENTY, historyLimit: 3 },
  managed: { allowance: PLENTY, historyLimit: 3, ...manage },
  poor: { allowance: 5, defaultUser: null, historyLimit: 2, prefix: '/gw', ...manage },
  identified: { allowance: PLENTY, identify, ...manage }
}

interface WorkRoute {
  Body: { user_id: string, credits: number, budget?: string }
}

/** Adds a charged route of the host. It pays what its body says, before it replies, and its reply has the hold's id. */
async function addRoutes (app: FastifyInstance): Promise<void> {
  const body = Type.Object({ user_id: UserId, credits: Credits, budget: Type.Optional(ChargedBudget) }, { additionalProperties: false })
  const refusal = Type.Object({
    statusCode: Type.Integer(), code: Type.String(), error: Type.String(), message: Type.String()
  })
  const unpaid = Type.Composite([refusal, Type.Object({
    credits: Type.Object({ available: Type.Integer(), total: Type.Integer(), used: Type.Integer(), held: Type.Integer() }),
    required: Type.Integer(),
    budget: Type.Optional(Type.String()),
    period: Type.Optional(Type.String()),
    limit: Type.Optional(Type.Integer()),
    used: Type.Optional(Type.Integer()),
    held: Type.Optional(Type.Integer()),
    resetsAt: Type.Optional(Type.Unsafe({ type: ['string', 'null'], format: 'date-time' }))
  })])
  const answer = Type.Object({ id: Type.String(), user_id: Type.String(), credits: Type.Integer() })
  const asked = ({ body }: FastifyRequest) => body as WorkRoute['Body']
  app.post<WorkRoute>('/work', {
    schema: { body, response: { 200: answer, 402: unpaid, 404: refusal, 400: refusal, 413: refusal, 415: refusal } },
    validatorCompiler: strictValidator({ body }),
    config: {
      credits: {
        operation: 'work',
        cost: request => asked(request).credits,
        user: request => asked(request).user_id,
        budget: request => asked(request).budget,
        capture: 'before'
      }
    }
  }, async request => ({ id: request.credits!.holdId, user_id: request.credits!.userId, credits: request.body.credits }))
}

/** Gives most accounts budgets in three levels, the last of which are made by a template, and returns the accounts. */
export async function setBudgets ({ app }: Gateway): Promise<string[]> {
  const some = users.slice(0, -2)
  for (const userId of some) {
    await app.credits.setBudget(userId, 'team', { month: 5000 })
    await app.credits.setBudget(userId, 'member', { within: 'team', day: 300, week: 2000 })
    await app.credits.setBudget(userId, 'key:*', { within: 'member', day: 100, total: 1000 })
  }
  return some
}

/** The kinds of rows that an accepted POST has written, by the end of its route. */
export const writes: Array<[ending: string, ...kinds: Kind[]]> = [
  ['/credits/deduct', 'deduct'],
  ['/credits/holds', 'hold'],
  ['/credits/grants', 'grant'],
  ['/credits/refunds', 'refund'],
  ['/credits/holds/:id/capture', 'capture'],
  ['/work', 'hold', 'capture']
]

/** Builds the gateway of one of `settings`. It is closed after the test. `watch` may add hooks to it. */
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
    accountOf: identity => options.identify === undefined ? defaultUser ?? undefined : identity?.split('/')[0],
    budgetOf: identity => options.identify === undefined ? undefined : identity?.split('/')[1]
  }
}
