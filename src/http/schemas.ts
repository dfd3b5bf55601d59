import { Type, type TSchema, type TUnsafe } from '@sinclair/typebox'
import type { FastifySchema } from 'fastify'
import { Budget, ChargedBudget, Credits, Cursor, IdempotencyKey, MetadataField, Operation, UserId, WholeNumber } from '../ledger/input/fields.js'
import type { Metadata } from '../ledger/input/metadata.js'

type RouteSchema = FastifySchema & Record<string, unknown>

/** Returns the schema of a whole number. */
export const whole = (description: string) => Type.Integer({ description })

const Balance = Type.Object({
  available: whole('What can be spent now: total - used - held'),
  total: whole('What the account has been given'),
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
  description: 'Usage of one day with one operation and equal metadata; the keys of the metadata are fields of the entry'
})

const error = {
  statusCode: whole('The HTTP status'),
  code: Type.String({ description: 'What went wrong, for programs' }),
  error: Type.String({ description: 'The name of the HTTP status' }),
  message: Type.String({ description: 'What went wrong, for people' })
}

const CreditsError = Type.Object(error, { $id: 'AiCreditsError', description: 'An error' })

const timeOrNull = (description: string) => Type.Unsafe<string | null>({ type: ['string', 'null'], format: 'date-time', description })

// One schema for both errors, and not two in an anyOf: most code generators make a class of the one, and of an anyOf something
// without types.
const Refusal = Type.Object({
  ...error,
  code: Type.Unsafe<string>({
    type: 'string',
    enum: ['FST_CREDITS_INSUFFICIENT', 'FST_CREDITS_BUDGET_EXCEEDED'],
    description: 'What does not cover the request: the balance, or a budget'
  }),
  credits: Type.Ref(Balance.$id!),
  required: whole('The credits that the request needs'),
  budget: Type.Optional(Type.String({ description: 'The budget; absent if it is the balance, as are the fields from here on' })),
  period: Type.Optional(Type.String({ description: 'The period of its limit: day, week, month or total' })),
  limit: Type.Optional(whole('The credits of this limit')),
  used: Type.Optional(whole('What was spent in this period')),
  held: Type.Optional(whole('What open holds have set aside')),
  resetsAt: Type.Optional(timeOrNull('When this period ends; null: never'))
}, { $id: 'AiCreditsRefusal', description: 'The balance, or a budget, does not cover the request' })

const byPeriod = (description: string, value: TSchema, total = value) => Type.Object({
  day: Type.Optional(value), week: Type.Optional(value), month: Type.Optional(value), total: Type.Optional(total)
}, { description })

const BudgetState = Type.Object({
  budget: Type.String({ description: 'Its name' }),
  within: Type.Unsafe<string | null>({ type: ['string', 'null'], description: 'The budget that it is within; null: none' }),
  limits: byPeriod('The credits of each limit', whole('Credits')),
  used: byPeriod('What was spent in the running period of each limit', whole('Credits')),
  held: whole('What open holds have set aside'),
  resets_at: byPeriod('When the running period of each limit ends', Type.String({ format: 'date-time' }), timeOrNull('null: never'))
}, { $id: 'AiCreditsBudget', description: 'A budget, at the moment of the reply' })

/** The schemas that the routes refer to. Their `$id` gives them their names in @fastify/swagger. */
export const sharedSchemas: TSchema[] = [Balance, UsageEntry, CreditsError, Refusal, BudgetState]

/** The schema of a budget in a reply. */
export const budgetState = Type.Ref(BudgetState.$id!)

/** Returns the schema of an error reply. */
export const refused = (description: string): object => ({ ...Type.Ref(CreditsError.$id!), description })

/** The error replies of every route, by status. */
export const refusals: Record<number, object> = {
  400: refused('The request is malformed; the message names the field'),
  401: refused('The request does not say who is asking'),
  403: refused('The request names an account or a budget that is not its own'),
  503: {
    ...refused('The database did not answer in time; whether anything was charged is unknown'),
    headers: { 'Retry-After': { type: 'integer', description: 'Seconds to wait' } }
  }
}

/** The further error replies of every route with a body, by status. */
export const bodyRefusals: Record<number, object> = {
  413: refused('The body is larger than 64 KiB'),
  415: refused('The body is not JSON')
}

/** The error reply if the balance, or a budget, does not cover the request. */
export const refusedCharge: object = {
  ...Type.Ref(Refusal.$id!), description: 'The balance, or a budget, does not cover the request; nothing was charged'
}

/** The error reply if the account has no budget of this name. */
export const noBudget: object = refused('The account has no such budget, and no template that makes it')

/** The headers of a page. */
export const pageHeaders = { Link: { type: 'string', description: 'rel="next": the next page, if there is one' } }

/** The schema of a page's cursor. */
export const PageCursor = Type.Unsafe<string | null>({
  type: ['string', 'null'], description: 'The cursor of this page, to get the next one; null: it is the last'
})

/** The schema of `GET /credits` under `prefix`. `mustName`: requests must have `user_id`. */
export const readSchema = (mustName: boolean, prefix: string): RouteSchema => ({
  operationId: operationId('getCredits', prefix),
  summary: 'Balance and usage history',
  description: 'The balance of an account and its daily usage, or that of one budget, newest day first. The account is ' +
    'created on first access.',
  tags: ['credits'],
  querystring: readQuery(mustName),
  response: {
    200: {
      description: 'The account',
      headers: { Link: { type: 'string', description: 'rel="next": the next page of the history, if there is one' } },
      ...Type.Object({
        credits: Type.Composite([Balance, Type.Object({ usage_history: Type.Array(Type.Ref(UsageEntry.$id!)) })])
      })
    },
    ...refusals
  }
})

/** The schema of `POST /credits/deduct` under `prefix`. `mustName`: requests must have `user_id`. */
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
      description: 'The credits were deducted; the balance after the charge',
      headers: { 'Idempotency-Replayed': { type: 'string', description: 'true: the reply to the first request with this key' } },
      ...Type.Object({ message: Type.String(), credits: Type.Ref(Balance.$id!) })
    },
    ...refusals,
    ...bodyRefusals,
    402: refusedCharge,
    404: noBudget,
    409: refused('The Idempotency-Key was used for a different request')
  }
})

/** The schema of `GET /credits/budgets` under `prefix`. `mustName`: requests must have `user_id`. */
export const budgetsSchema = (mustName: boolean, prefix: string): RouteSchema => ({
  operationId: operationId('getBudgets', prefix),
  summary: 'Budgets of an account',
  description: 'The budgets of an account, by name. A client that is bound to a budget gets its own and those above it, ' +
    'its own first.',
  tags: ['credits'],
  querystring: budgetsQuery(mustName),
  response: {
    200: {
      description: 'A page of budgets',
      headers: pageHeaders,
      ...Type.Object({ entries: Type.Array(budgetState), cursor: PageCursor })
    },
    ...refusals
  }
})

/** The schema of `POST /credits/check` under `prefix`. `mustName`: requests must have `user_id`. It refuses as a deduct does. */
export const checkSchema = (mustName: boolean, prefix: string): RouteSchema => {
  const { response, ...deduct } = deductSchema(mustName, prefix)
  return {
    ...deduct,
    operationId: operationId('checkCredits', prefix),
    summary: 'Check whether credits could be deducted',
    description: 'Replies to a request what the route that deducts would reply now, and spends nothing. Another request may spend the ' +
      'credits before it comes.',
    response: {
      ...response as object,
      200: {
        description: 'The credits could be deducted; the balance as it is',
        headers: { 'Idempotency-Replayed': { type: 'string', description: 'true: the key was used for the same request, which gets its reply again' } },
        ...Type.Object({
          affordable: Type.Boolean({ description: 'Always true: what is not affordable is an error' }),
          required: whole('The credits that the request needs'),
          credits: Type.Ref(Balance.$id!)
        })
      }
    }
  }
}

/** The headers of a route that takes an idempotency key. */
export const IdempotencyHeaders = Type.Object({ 'idempotency-key': Type.Optional(IdempotencyKey) })

/** The query of a route that takes none. It refuses every parameter: a `user_id` there would not be the account charged. */
export const NoQuery = Type.Object({}, { additionalProperties: false })

/** The query of `GET /credits`. */
export const readQuery = (mustName: boolean) => Type.Object({
  user_id: account(mustName),
  budget: Type.Optional(Budget),
  cursor: Type.Optional(Cursor)
}, { additionalProperties: false })

const BudgetCursor: TSchema = { ...Budget, description: 'Where the page begins: the cursor of the page before' }

/** The query of `GET /credits/budgets`. */
export const budgetsQuery = (mustName: boolean) => Type.Object({
  user_id: account(mustName),
  limit: Type.Optional(WholeNumber),
  cursor: Type.Optional(BudgetCursor)
}, { additionalProperties: false })

/** The body of `POST /credits/deduct` and `POST /credits/check`. */
export const deductBody = (mustName: boolean) => Type.Object({
  user_id: account(mustName),
  credits: Credits,
  operation: Operation,
  metadata: Type.Optional(MetadataField),
  budget: Type.Optional(ChargedBudget)
}, { additionalProperties: false })

/**
 * Returns an operation's id in the OpenAPI document: its name under '/api', otherwise its name with the prefix added. So it
 * is unique even if the plugin is registered several times.
 */
export function operationId (name: string, prefix: string) {
  return prefix === '/api' ? name : `${name}${prefix.replace(/\W+/g, '_') || '_'}`
}

/** The schema of `user_id`: required if `mustName`. */
export function account (mustName: boolean): TUnsafe<string> {
  return mustName ? UserId : Type.Optional(UserId)
}

/** The query of `GET /credits`. */
export interface ReadQuery {
  user_id?: string
  budget?: string
  cursor?: string
}

/** The query of `GET /credits/budgets`. */
export interface BudgetsQuery {
  user_id?: string
  limit?: string
  cursor?: string
}

/** The body of `POST /credits/deduct` and `POST /credits/check`. */
export interface DeductBody {
  user_id?: string
  credits: number
  operation: string
  metadata?: Metadata
  budget?: string
}
