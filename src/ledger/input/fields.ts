import { Kind, Type, TypeRegistry, type TSchema } from '@sinclair/typebox'
import { TypeCompiler, ValueErrorType } from '@sinclair/typebox/compiler'
import { decodeCursor, isDay } from './cursor.js'
import { isText } from './text.js'
import { isMetadata, MAX_METADATA_BYTES, MAX_METADATA_DEPTH, type Metadata } from './metadata.js'

// The fields that callers send. JSON Schema cannot express all requirements (code points, lone surrogates, bytes), so each
// field is a TypeBox kind with its own check. The routes, the methods and the OpenAPI document share these definitions.

/** The maximum length of a user id, an operation, an idempotency key or a reason, in characters (code points). */
export const MAX_TEXT_LENGTH = 255

const expectations = new Map<string, string>()

/**
 * Defines a kind of field. `schema`: the requirements that JSON Schema can express, for documentation. `check`: returns
 * whether a value is valid. `expected`: the requirements in words, for error messages.
 */
export function field<T> (name: string, schema: object, check: (value: unknown) => boolean, expected: string) {
  const kind = `fastify-ai-credits:${name}`
  TypeRegistry.Set(kind, (_schema, value) => check(value))
  expectations.set(kind, expected)
  return Type.Unsafe<T>({ [Kind]: kind, ...schema })
}

const text = (name: string, description: string) => field<string>(name,
  { type: 'string', minLength: 1, maxLength: MAX_TEXT_LENGTH, description },
  value => isText(value, MAX_TEXT_LENGTH),
  `must be a string of 1 to ${MAX_TEXT_LENGTH} characters, without NUL and lone surrogates`)

const whole = (name: string, minimum: number, maximum: number, description: string) => field<number>(name,
  { type: 'integer', minimum, maximum, description },
  value => Number.isInteger(value) && (value as number) >= minimum && (value as number) <= maximum,
  `must be a whole number from ${minimum} to ${maximum}`)

/** A string that must be one of the given words. */
export const oneOf = (...words: string[]) => field<string>(`one of ${words}`, {},
  value => words.includes(value as string), `must be one of ${words.join(', ')}`)

/** The account: 1 to 255 characters. */
export const UserId = text('user_id', 'The account')

/** What the credits are spent on: 1 to 255 characters. */
export const Operation = text('operation', 'What the credits are spent on')

/** Names a request: 1 to 255 characters. A repeated request with the same key gets the first result, and is charged once. */
export const IdempotencyKey = text('idempotency_key', 'Repeat a request with the same key, and it is charged once')

/** The name of a price book's version: 1 to 255 characters. */
export const PriceVersion = text('price_version', 'The version of the prices')

/** The name of a budget, or a template. */
export const Budget = text('budget', 'The budget')

/** The name of a budget that is no template: one that charges can count in, and that others can be within. */
export const ChargedBudget = field<string>('charged_budget',
  { type: 'string', minLength: 1, maxLength: MAX_TEXT_LENGTH, description: 'The budget in which the credits count' },
  value => isText(value, MAX_TEXT_LENGTH) && !isTemplate(value),
  `must be a string of 1 to ${MAX_TEXT_LENGTH} characters, without NUL and lone surrogates, and no template`)

// From `kind:*` budgets are made whose names begin with `kind:`.
function isTemplate (budget: string) {
  return budget.endsWith(':*') && budget !== ':*'
}

/** Credits to spend: a whole number from 1 to 2^53 - 1. */
export const Credits = whole('credits', 1, Number.MAX_SAFE_INTEGER, 'Credits to spend')

/** Credits that may be none: a whole number from 0 to 2^53 - 1. */
export const CreditsOrNone = whole('credits_or_none', 0, Number.MAX_SAFE_INTEGER, 'Credits')

/** Days of history, including today: a whole number from 1 to 36500. */
export const Days = whole('days', 1, 36_500, 'Days of history, including today')

/** Entries on one page, or in one batch: a whole number from 1 to 100000. */
export const Limit = whole('limit', 1, 100_000, 'Entries on one page')

/** Budgets on one page: a whole number from 1 to 1000. */
export const BudgetsPerPage = whole('budget_limit', 1, 1000, 'Budgets on one page')

/** Milliseconds: a whole number from 1 to the longest time of a timer, 2^31 - 1. */
export const Milliseconds = whole('milliseconds', 1, 2 ** 31 - 1, 'Milliseconds')

/** How many calls may wait: a whole number from 1 to 1000000. */
export const QueueLength = whole('queue_length', 1, 1_000_000, 'Calls that may wait')

/** Milliseconds until a hold lapses: from 1 second to 24 hours. */
export const Ttl = whole('ttl', 1000, 86_400_000, 'Milliseconds until the hold lapses')

/** The priority of a grant, from 0 to 100. The lower number burns first. */
export const Priority = whole('priority', 0, 100, 'The lower number burns first')

/** True or false. */
export const Flag = field<boolean>('flag', { type: 'boolean' }, value => typeof value === 'boolean', 'must be true or false')

/** What a capture does if the hold and the balance do not cover it: take what is available, or refuse. */
export const Shortfall = field<'partial' | 'reject'>('shortfall', { type: 'string', enum: ['partial', 'reject'] },
  value => value === 'partial' || value === 'reject', "must be 'partial' or 'reject'")

/** The reason of a grant or a refund: 1 to 255 characters. */
export const Reason = text('reason', 'The reason')

/** A time: a Date or an ISO 8601 string with a zone, from the year 1 to 9999, which PostgreSQL and JavaScript both represent. */
export const Time = field<Date | string>('time', { type: 'string', format: 'date-time' }, isTime,
  'must be a Date or an ISO 8601 time with a zone, from the year 1 to 9999')

const ISO_8601 = /^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}(:\d{2}(\.\d{1,9})?)?(Z|[+-]\d{2}:\d{2})$/

function isTime (value: unknown) {
  if (!(value instanceof Date) && !(typeof value === 'string' && isIso8601(value))) return false
  const year = new Date(value).getUTCFullYear()
  return year >= 1 && year <= 9999
}

// Date parses February 30 as March 2.
function isIso8601 (text: string) {
  return ISO_8601.test(text) && isDay(text.slice(0, 10))
}

/** Facts about the usage: an object of at most 8 KiB of JSON. */
export const MetadataField = field<Metadata>('metadata',
  { type: 'object', additionalProperties: true, description: 'Facts about the usage, at most 8 KiB of JSON' },
  isMetadata,
  `must be an object of at most ${MAX_METADATA_BYTES} bytes of JSON and ${MAX_METADATA_DEPTH} levels, without NUL, ` +
  'lone surrogates, numbers that JSON cannot hold, and the key __proto__')

/** Where a page of history begins: the cursor of the page before. */
export const Cursor = field<string>('cursor',
  { type: 'string', minLength: 1, description: 'Where the page begins: the cursor of the page before' },
  value => decodeCursor(value) !== undefined,
  'must be the cursor of an earlier page')

const digits = (name: string, description: string, expected: string) => field<string>(name,
  { type: 'string', pattern: '^\\d{1,18}$', description },
  value => typeof value === 'string' && /^\d{1,18}$/.test(value), expected)

/** Where a page of a statement begins: the cursor of the page before. */
export const StatementCursor = digits('statement_cursor', 'Where the page begins: the cursor of the page before',
  'must be the cursor of an earlier page')

/** A whole number in a query string: 1 to 18 digits. */
export const WholeNumber = digits('whole_number', 'A whole number', 'must be a whole number')

/** The id of a hold, a grant or a usage record. */
export const Id = field<string>('id', { type: 'string', description: 'An id that the ledger returned' },
  value => typeof value === 'string', 'must be a string')

/** A function. */
export const Callable = field<(...args: any[]) => any>('function', {},
  value => typeof value === 'function', 'must be a function')

/** A problem of a value: the wrong field ('' for the value itself), and the requirement that it does not meet. */
export interface Problem {
  field: string
  problem: string
}

function describe (schema: TSchema, type: ValueErrorType) {
  if (type === ValueErrorType.ObjectAdditionalProperties) return 'is not a known field'
  if (type === ValueErrorType.ObjectRequiredProperty) return 'is required'
  return expectations.get(schema[Kind]) ?? `must be an ${schema.type}` // the only other kind used is an object
}

/** Compiles a schema. Returns a function that returns the first problem of a value, or undefined. It coerces no value. */
export function compile (schema: TSchema): (value: unknown) => Problem | undefined {
  const compiled = TypeCompiler.Compile(schema)
  return value => {
    if (compiled.Check(value)) return undefined
    const error = compiled.Errors(value).First()!
    return { field: error.path.slice(1), problem: describe(error.schema, error.type) }
  }
}
