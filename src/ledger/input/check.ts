import { Type, type TProperties, type TSchema } from '@sinclair/typebox'
import { InvalidInputError, NotFoundError } from '../../errors.js'
import type { Queryable } from '../database/types.js'
import type { Usage } from '../prices/types.js'
import { ChargedBudget, compile, Credits, field, Id, IdempotencyKey, MetadataField, Operation, UserId } from './fields.js'

/** The input of calls that can be part of the host's own transaction. */
export interface ClientInput {
  /** The host's own `pg` client, in a transaction: the change commits or rolls back with the host's writes; see DeductInput. */
  client?: Queryable
}

/** The field `client`: the host's own client. */
export const Client = field<Queryable>('client', {},
  value => typeof (value as Queryable | null)?.query === 'function', 'must have a query method, like a client of pg')

/** The fields of calls about an account. */
export const ofAccount = { userId: Type.Optional(UserId), client: Type.Optional(Client) }

/** The fields of charges. */
export const ofCharge = {
  ...ofAccount,
  operation: Operation,
  metadata: Type.Optional(MetadataField),
  idempotencyKey: Type.Optional(IdempotencyKey),
  budget: Type.Optional(ChargedBudget)
}

/** How much to charge: credits, or usage that is charged by prices. */
export interface CreditsOrUsage {
  credits?: number
  usage?: Usage
}

/** The fields of CreditsOrUsage. The price book checks the quantities of `usage`. */
export const creditsOrUsage = { credits: Type.Optional(Credits), usage: Type.Optional(Type.Any()) }

/**
 * Returns a function that checks an operation's input. The function returns the fields of the input, or throws
 * InvalidInputError, which names the wrong field.
 */
export function checker<T> (properties: TProperties): (input: unknown) => T {
  const names = Object.keys(properties)
  const problemOf = compile(Type.Object(properties, { additionalProperties: false }) as TSchema)
  return input => {
    const fields = read(input, names)
    const problem = problemOf(fields)
    if (problem !== undefined) throw new InvalidInputError(problem.field || 'input', problem.problem)
    return fields as T
  }
}

// Copies the input. Each known field is read only once, because a getter could return another value after the check.
// Inherited fields count too, because `userId` may be a getter of a class. Unknown fields are copied without their values.
function read (input: unknown, names: string[]) {
  if (typeof input !== 'object' || input === null || Array.isArray(input)) return input
  const known: Record<string, unknown> = {}
  for (const name of names) if (name in input) known[name] = (input as Record<string, unknown>)[name]
  const unknown = Object.keys(input).filter(name => !names.includes(name))
  if (unknown.length === 0) return known
  return Object.fromEntries([...unknown.map(name => [name, undefined]), ...Object.entries(known)])
}

const idProblem = compile(Id)

const MAX_ID = String(2n ** 63n - 1n)

/**
 * Checks the id of a row and returns it as PostgreSQL writes it, without zeros in front: JSON has no number that begins with a
 * zero, and one id must have one form. Throws InvalidInputError if it is not a string, and NotFoundError if it is a string that
 * no row can have. `what`: the kind of row, for the error.
 */
export function rowId (id: string, what: string): string {
  const problem = idProblem(id)
  if (problem !== undefined) throw new InvalidInputError('id', problem.problem)
  if (!/^\d{1,19}$/.test(id) || (id.length === MAX_ID.length && id > MAX_ID)) throw new NotFoundError(what)
  return id.startsWith('0') ? String(BigInt(id)) : id
}

const userIdProblem = compile(UserId)

/**
 * Returns the account of a call: the one that it names, otherwise the default user. Throws InvalidInputError if there is
 * neither, or if the name is malformed.
 */
export function resolveUserId (userId: string | undefined, defaultUser: string | null): string {
  const resolved = userId === undefined ? defaultUser : userId
  if (userId === undefined && resolved === null) throw new InvalidInputError('userId', 'is required')
  const problem = userIdProblem(resolved)
  if (problem !== undefined) throw new InvalidInputError('userId', problem.problem)
  return resolved as string
}

/** Checks an input with no other field than the host's client. Throws InvalidInputError. */
export const checkClient = checker<ClientInput>({ client: Type.Optional(Client) })
