import { Type, type TSchema, type TUnsafe } from '@sinclair/typebox'
import type { FastifySchema } from 'fastify'
import { Credits, Cursor, IdempotencyKey, MetadataField, Operation, UserId } from '../ledger/fields.js'
import type { Metadata } from '../ledger/metadata.js'

type RouteSchema = FastifySchema & Record<string, unknown>

/** A whole number. */
export const whole = (description: string) => Type.Integer({ description })

const Balance = Type.Object({
  available: whole('What can be spent now: total - used - held'),
  total: whole('What the account was given'),
  used: whole('What the account has spent'),
  held: Type.Optional(whole('What open holds have set aside; absent while it is 0'))
}, { $id: 'AiCreditsBalance', description: 'A balance, in credits' })

const UsageEntry = Type.Object({
  date: Type.String({ format: 'date', description: 'The day' }),
  used: whole('Credits spent'),
  operation: Type.String({ description: 'What they were spent on' })
}, {
  $id: 'AiCreditsUsageEntry',
  additionalProperties: true,
  description: 'Usage of one day with one operation and equal metadata; the keys of the metadata stand beside the others'
})

const error = {
  statusCode: whole('The HTTP status'),
  code: Type.String({ description: 'What went wrong, for programs' }),
  error: Type.String({ description: 'The name of the HTTP status' }),
  message: Type.String({ description: 'What went wrong, for people' })
}

const CreditsError = Type.Object(error, { $id: 'AiCreditsError', description: 'An error' })

const InsufficientCredits = Type.Object({
  ...error,
  credits: Type.Ref(Balance.$id!),
  required: whole('What the request asked for')
}, { $id: 'AiInsufficientCredits', description: 'The balance does not cover the request' })

/** Schemas that both routes refer to, by which @fastify/swagger names them. */
export const sharedSchemas: TSchema[] = [Balance, UsageEntry, CreditsError, InsufficientCredits]

/** A refusal, by what it means. */
export const refused = (description: string): object => ({ ...Type.Ref(CreditsError.$id!), description })

/** The refusals of every route. */
export const refusals: Record<number, object> = {
  400: refused('The request is malformed; the message names the field'),
  401: refused('The request does not say who is asking'),
  403: refused('The request names an account that is not its own'),
  503: {
    ...refused('The database did not answer in time; whether anything was charged is unknown'),
    headers: { 'Retry-After': { type: 'integer', description: 'Seconds to wait' } }
  }
}

/** The refusals of every route with a body. */
export const bodyRefusals: Record<number, object> = {
  413: refused('The body is larger than 64 KiB'),
  415: refused('The body is not JSON')
}

/** The refusal where the balance is short. */
export const insufficient: object = { ...Type.Ref(InsufficientCredits.$id!), description: 'The balance does not cover it; nothing was charged' }

/** `GET /credits` under `prefix`. `mustName`: there is no default user. */
export const readSchema = (mustName: boolean, prefix: string): RouteSchema => ({
  operationId: operationId('getCredits', prefix),
  summary: 'Balance and usage history',
  description: 'The balance of an account and its daily usage, newest day first. The account is created on first access.',
  tags: ['credits'],
  querystring: readQuery(mustName),
  response: {
    200: {
      description: 'The account',
      headers: { Link: { type: 'string', description: 'rel="next": the next page of the history, if there is one' } },
      ...Type.Object({ credits: Type.Composite([Balance, Type.Object({ usage_history: Type.Array(Type.Ref(UsageEntry.$id!)) })]) })
    },
    ...refusals
  }
})

/** `POST /credits/deduct` under `prefix`. `mustName`: there is no default user. */
export const deductSchema = (mustName: boolean, prefix: string): RouteSchema => ({
  operationId: operationId('deductCredits', prefix),
  summary: 'Deduct credits',
  description: 'Spends credits of an account, all or nothing. With an Idempotency-Key a repeated request is charged once.',
  tags: ['credits'],
  headers: IdempotencyHeaders,
  querystring: NoQuery,
  body: deductBody(mustName),
  response: {
    200: {
      description: 'The credits were deducted; the balance after it',
      headers: { 'Idempotency-Replayed': { type: 'string', description: 'true: the answer to the first request with this key' } },
      ...Type.Object({ message: Type.String(), credits: Type.Ref(Balance.$id!) })
    },
    ...refusals,
    ...bodyRefusals,
    402: insufficient,
    409: refused('The Idempotency-Key was used for a different request')
  }
})

/** The headers of a route that can be repeated. */
export const IdempotencyHeaders = Type.Object({ 'idempotency-key': Type.Optional(IdempotencyKey) })

/** The query of a route that has none: an account named there would not be the one charged. */
export const NoQuery = Type.Object({}, { additionalProperties: false })

/** The query of `GET /credits`. */
export const readQuery = (mustName: boolean) => Type.Object({
  user_id: account(mustName),
  cursor: Type.Optional(Cursor)
}, { additionalProperties: false })

/** The body of `POST /credits/deduct`. */
export const deductBody = (mustName: boolean) => Type.Object({
  user_id: account(mustName),
  credits: Credits,
  operation: Operation,
  metadata: Type.Optional(MetadataField)
}, { additionalProperties: false })

/**
 * An operation's id, unique in a document also where the plugin is registered several times: 'getCredits' under
 * '/api', else with the prefix in it.
 */
export function operationId (name: string, prefix: string) {
  return prefix === '/api' ? name : `${name}${prefix.replace(/\W+/g, '_') || '_'}`
}

/** The field that names the account. */
export function account (mustName: boolean): TUnsafe<string> {
  return mustName ? UserId : Type.Optional(UserId)
}

/** The query of `GET /credits`. */
export interface ReadQuery {
  user_id?: string
  cursor?: string
}

/** The body of `POST /credits/deduct`. */
export interface DeductBody {
  user_id?: string
  credits: number
  operation: string
  metadata?: Metadata
}
