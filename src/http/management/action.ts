import { Type, type TProperties } from '@sinclair/typebox'
import type { FastifyInstance, FastifyRequest, FastifySchema, preHandlerAsyncHookHandler } from 'fastify'
import type { Balance } from '../../ledger/posting/balance.js'
import { shownBalance } from '../balance.js'
import { BODY_LIMIT } from '../isolation.js'
import { bodyRefusals, IdempotencyHeaders, NoQuery, operationId, refusals } from '../schemas.js'
import { toCamelCase, toSnakeCase } from '../snake-case.js'
import { asValidationError, strictValidator } from '../validation.js'

/** A `POST` route that calls one method of the ledger. */
export interface Action {
  /** The URL after the prefix. */
  path: string
  /** The operation's name in the OpenAPI document. */
  operation: string
  summary: string
  /** The fields of the request body, in snake_case. */
  body: TProperties
  /** The fields of the reply besides `balance`, in snake_case. */
  reply: TProperties
  /** The schemas of further error replies, by status. */
  refusals?: Record<number, object>
  /** Calls the method with the body's fields in camelCase, the idempotency key, and the `:id` of the path. */
  call: (fields: any, id: string) => Promise<Result>
}

interface Result {
  balance: Balance
  replayed?: boolean
}

interface ActionRoute {
  Body: Record<string, unknown>
  Params: { id: string }
  Headers: { 'idempotency-key'?: string }
}

const Params = Type.Object({ id: Type.String({ description: 'The hold' }) })

/** Registers the route of an action; `preHandler` guards it. */
export function actionRoute (
  fastify: FastifyInstance, action: Action, preHandler: preHandlerAsyncHookHandler
): void {
  const body = Type.Object(action.body, { additionalProperties: false })
  const allOptional = body.required === undefined
  fastify.post<ActionRoute>(action.path, {
    preHandler,
    bodyLimit: BODY_LIMIT,
    schema: schemaOf(action, body, fastify.prefix),
    preValidation: async request => { if (allOptional) request.body ??= {} },
    validatorCompiler: strictValidator({ body, headers: IdempotencyHeaders, querystring: NoQuery, params: Params })
  }, async (request, reply) => {
    const { replayed = false, ...result } = await asValidationError('body', action.call(fieldsOf(request), request.params.id))
    if (replayed) reply.header('idempotency-replayed', 'true')
    return toSnakeCase({ ...result, balance: shownBalance(result.balance) })
  })
}

function schemaOf (
  { path, operation, summary, reply, refusals: more }: Action, body: object, prefix: string
): FastifySchema & Record<string, unknown> {
  return {
    operationId: operationId(operation, prefix),
    summary,
    description: `${summary}. For trusted services: the host's authorize lets requests through.`,
    tags: ['credits management'],
    headers: IdempotencyHeaders,
    querystring: NoQuery,
    ...path.includes(':id') && { params: Params },
    body,
    response: {
      200: {
        description: 'Done, or done before by a request with the same Idempotency-Key',
        ...Type.Object({ ...reply, balance: Type.Ref('AiCreditsBalance') })
      },
      ...refusals,
      ...bodyRefusals,
      ...more
    }
  }
}

function fieldsOf ({ body, headers }: FastifyRequest<ActionRoute>) {
  const idempotencyKey = headers['idempotency-key']
  return { ...toCamelCase(body), ...idempotencyKey !== undefined && { idempotencyKey } }
}
