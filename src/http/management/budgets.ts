import { Type, type TSchema } from '@sinclair/typebox'
import type { FastifyInstance, FastifyRequest, preHandlerAsyncHookHandler, RouteShorthandOptions } from 'fastify'
import { Budget } from '../../ledger/input/fields.js'
import { ofDefinition, type BudgetDefinition } from '../../ledger/operations/budgets.js'
import type { Credits } from '../../ledger/types.js'
import { shownBudget } from '../budgets.js'
import { BODY_LIMIT } from '../isolation.js'
import { account, bodyRefusals, budgetState, NoQuery, operationId, refusals, refused } from '../schemas.js'
import { asValidationError, strictValidator, validationError } from '../validation.js'

interface BudgetRoute {
  Params: { budget: string }
}

interface SetRoute extends BudgetRoute {
  Body: BudgetDefinition & { user_id?: string }
}

interface RemoveRoute extends BudgetRoute {
  Querystring: { user_id?: string }
}

// Fastify finds no route for a parameter that is longer than the host's maxParamLength, by default 100; a wildcard may be of
// any length. The document has the first path only.
const PATHS = ['/credits/budgets/:budget', '/credits/budgets/*']

const Params = Type.Object({ budget: Budget })

const definition = (mustName: boolean) => Type.Object({
  user_id: account(mustName), ...ofDefinition
}, { additionalProperties: false })

const named = (mustName: boolean) => Type.Object({ user_id: account(mustName) }, { additionalProperties: false })

/** Registers `PUT` and `DELETE /credits/budgets/:budget`, which make, change and remove the budgets of an account. */
export function budgetRoutes (
  fastify: FastifyInstance, ledger: Credits, mustName: boolean, preHandler: preHandlerAsyncHookHandler
): void {
  for (const path of PATHS) {
    const hide = path !== PATHS[0]
    fastify.put<SetRoute>(path, {
      ...routeOf({ body: definition(mustName), querystring: NoQuery }, preHandler),
      schema: { ...setSchema(mustName, fastify.prefix), hide }
    }, async ({ params: { budget }, body: { user_id: userId, ...limits } }) =>
      shownBudget(await asValidationError('body', ledger.setBudget(userId, budget, limits))))
    fastify.delete<RemoveRoute>(path, {
      ...routeOf({ querystring: named(mustName) }, preHandler),
      schema: { ...removeSchema(mustName, fastify.prefix), hide }
    }, async ({ params: { budget }, query: { user_id: userId } }, reply) => {
      await ledger.removeBudget(userId, budget)
      return reply.code(204).send()
    })
  }
}

function routeOf (parts: Record<string, TSchema>, preHandler: preHandlerAsyncHookHandler): RouteShorthandOptions {
  return {
    preHandler,
    bodyLimit: BODY_LIMIT,
    preValidation: [nameBudget, ...parts.body === undefined ? [refuseBody] : []],
    validatorCompiler: strictValidator({ ...parts, params: Params })
  }
}

// The prefix may have parameters of its own, even one that is called like this one.
async function nameBudget (request: FastifyRequest) {
  const params = request.params as { budget?: string, '*'?: string }
  request.params = { ...params, budget: params['*'] ?? params.budget }
}

// An account that is named in the body would not be the one whose budget is removed.
async function refuseBody ({ body }: FastifyRequest) {
  if (body !== undefined && body !== null) throw validationError('body', '', 'must not be there')
}

const setSchema = (mustName: boolean, prefix: string) => ({
  operationId: operationId('setBudget', prefix),
  summary: 'Make a budget, or replace its definition',
  description: 'Limits a part of the spending of an account. A limit that is left out is removed. The name kind:* is a template ' +
    'for new names of this kind. For trusted services: the host\'s authorize lets requests through.',
  tags: ['credits management'],
  params: Params,
  querystring: NoQuery,
  body: definition(mustName),
  response: {
    200: { ...budgetState, description: 'The budget' },
    ...refusals,
    ...bodyRefusals,
    404: refused('The account has no budget of the name within')
  }
})

const removeSchema = (mustName: boolean, prefix: string) => ({
  operationId: operationId('removeBudget', prefix),
  summary: 'Remove a budget',
  description: 'Its open holds stay, and its history can still be read. For trusted services: the host\'s authorize lets ' +
    'requests through.',
  tags: ['credits management'],
  params: Params,
  querystring: named(mustName),
  response: {
    204: Type.Null({ description: 'The budget is removed' }),
    ...refusals,
    ...bodyRefusals,
    404: refused('The account has no such budget'),
    409: refused('Other budgets are within this one')
  }
})
