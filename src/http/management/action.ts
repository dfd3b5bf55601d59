import { Type, type TProperties } from '@sinclair/typebox'
import type { FastifyInstance, FastifyRequest, FastifySchema, preHandlerAsyncHookHandler } from 'fastify'
import { InvalidInputError } from '../../errors.js'
import type { Balance } from '../../ledger/types.js'
import { shownBalance } from '../balance.js'
import { BODY_LIMIT } from '../isolation.js'
import { bodyRefusals, IdempotencyHeaders, NoQuery, operationId, refusals } from '../schemas.js'
import { strictValidator, validationError } from '../validation.js'

/** A `POST` route that does what a method of the ledger does. */
export interface Action {
  path: string
  /** The operation's name in the OpenAPI document. */
  operation: string
  summary: string
  /** The fields of the body, in snake_case. */
  body: TProperties
  /** The fields of the answer beside `balance`. */
  answer: TProperties
  /** Further refusals, by status. */
  refusals?: Record<number, object>
  /** Calls the method with the body's fields in camelCase. */
  call: (fields: any, id: string) => Promise<Answer>
}

interface Answer {
  balance: Balance
  replayed?: boolean
}

interface ActionRoute {
  Body: Record<string, unknown>
  Params: { id: string }
  Headers: { 'idempotency-key'?: string }
}

const Params = Type.Object({ id: Type.String({ description: 'The hold' }) })

/** Registers an action that `preHandler` guards. */
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
    const { replayed = false, ...answer } = await answering('body', action.call(fieldsOf(request), request.params.id))
    if (replayed) reply.header('idempotency-replayed', 'true')
    return toSnakeCase({ ...answer, balance: shownBalance(answer.balance) })
  })
}

function schemaOf (
  { path, operation, summary, answer, refusals: more }: Action, body: object, prefix: string
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
        ...Type.Object({ ...answer, balance: Type.Ref('AiCreditsBalance') })
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

/** What a schema cannot say (that a time is past, say) is refused by the method: as if the schema had said it. */
export async function answering<T> (part: string, call: Promise<T>): Promise<T> {
  try {
    return await call
  } catch (error) {
    if (!(error instanceof InvalidInputError)) throw error
    throw validationError(part, snakeCase(error.field), error.problem)
  }
}

function toCamelCase (fields: object) {
  return mapKeys(fields, key => key.replace(/_(.)/g, (_, letter) => letter.toUpperCase()))
}

/** An answer with its keys as replies have them. */
export function toSnakeCase (fields: object) {
  return mapKeys(fields, snakeCase)
}

function snakeCase (key: string) {
  return key.replace(/[A-Z]/g, letter => `_${letter.toLowerCase()}`)
}

function mapKeys (fields: object, name: (key: string) => string) {
  return Object.fromEntries(Object.entries(fields).map(([key, value]) => [name(key), value]))
}
