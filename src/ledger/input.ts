import { Type, type TProperties, type TSchema } from '@sinclair/typebox'
import { InvalidInputError } from '../errors.js'
import type { Queryable } from './database.js'
import type { DeductInput, HistoryInput } from './types.js'
import { compile, Credits, Cursor, Days, field, IdempotencyKey, Limit, MetadataField, Operation, UserId } from './fields.js'

const Client = field<Queryable>('client', {},
  value => typeof (value as Queryable | null)?.query === 'function', 'must have a query method, like a client of pg')

/** Checks what a caller handed in, and throws an InvalidInputError that names the field. */
export const checkDeduct = checker<DeductInput>({
  userId: Type.Optional(UserId),
  credits: Credits,
  operation: Operation,
  metadata: Type.Optional(MetadataField),
  idempotencyKey: Type.Optional(IdempotencyKey),
  client: Type.Optional(Client)
})

/** The same for the arguments of history. */
export const checkHistory = checker<HistoryInput>({
  days: Type.Optional(Days),
  limit: Type.Optional(Limit),
  cursor: Type.Optional(Cursor)
})

const userIdProblem = compile(UserId)

/** The account that a call is about: the one it names, or the default. */
export function resolveUserId (userId: string | undefined, defaultUser: string | null): string {
  const resolved = userId === undefined ? defaultUser : userId
  if (userId === undefined && resolved === null) throw new InvalidInputError('userId', 'is required')
  const problem = userIdProblem(resolved)
  if (problem !== undefined) throw new InvalidInputError('userId', problem.problem)
  return resolved as string
}

function checker<T> (properties: TProperties) {
  const names = Object.keys(properties)
  const problemOf = compile(Type.Object(properties, { additionalProperties: false }) as TSchema)
  return (input: unknown): T => {
    const fields = read(input, names)
    const problem = problemOf(fields)
    if (problem !== undefined) throw new InvalidInputError(problem.field || 'input', problem.problem)
    return fields as T
  }
}

// Each field is read once, so that what is checked is what is used, and inherited ones too: an object of a class may
// have a userId that is none of its own properties. Of the others only the names matter.
function read (input: unknown, names: string[]) {
  if (typeof input !== 'object' || input === null || Array.isArray(input)) return input
  const unknown = Object.keys(input).filter(name => !names.includes(name)).map(name => [name, undefined])
  const known = names.filter(name => name in input).map(name => [name, (input as Record<string, unknown>)[name]])
  return Object.fromEntries([...unknown, ...known])
}
