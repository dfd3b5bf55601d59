import { Type, type TProperties, type TSchema } from '@sinclair/typebox'
import { InvalidInputError, NotFoundError } from '../errors.js'
import type { Queryable } from './database.js'
import type { Usage } from './prices/types.js'
import type {
  CaptureInput, ClientInput, DeductInput, ExtendInput, GrantInput, HistoryInput, HoldInput, PruneInput, ReconcileInput,
  RefundInput, ReleaseInput, RevokeInput, StatementInput
} from './types.js'
import {
  Callable, compile, Credits, CreditsOrNone, Cursor, Days, field, Flag, Id, IdempotencyKey, Limit, MetadataField,
  Operation, Priority, Reason, Shortfall, StatementCursor, Time, Ttl, UserId
} from './fields.js'

const Client = field<Queryable>('client', {},
  value => typeof (value as Queryable | null)?.query === 'function', 'must have a query method, like a client of pg')

const ofAccount = { userId: Type.Optional(UserId), client: Type.Optional(Client) }

const chargeFields = {
  ...ofAccount,
  operation: Operation,
  metadata: Type.Optional(MetadataField),
  idempotencyKey: Type.Optional(IdempotencyKey)
}

/** What says how much is charged. */
export interface CreditsOrUsage {
  credits?: number
  usage?: Usage
}

// Either of the two; the price book checks the quantities.
const creditsOrUsage = { credits: Type.Optional(Credits), usage: Type.Optional(Type.Any()) }

/** Checks what a caller handed in, and throws an InvalidInputError that names the field. */
export const checkDeduct = checker<Omit<DeductInput, 'credits'> & CreditsOrUsage>({ ...chargeFields, ...creditsOrUsage })

/** The same for the other operations. */
export const checkHistory = checker<HistoryInput>({
  days: Type.Optional(Days),
  limit: Type.Optional(Limit),
  cursor: Type.Optional(Cursor)
})

export const checkHold = checker<HoldInput>({
  ...chargeFields,
  credits: Credits,
  ttl: Type.Optional(Ttl)
})

export const checkCapture = checker<CaptureInput & CreditsOrUsage & { operation?: string }>({
  ...ofAccount,
  ...creditsOrUsage,
  operation: Type.Optional(Operation),
  metadata: Type.Optional(MetadataField),
  final: Type.Optional(Flag),
  shortfall: Type.Optional(Shortfall),
  idempotencyKey: Type.Optional(IdempotencyKey)
})

export const checkRelease = checker<ReleaseInput>(ofAccount)

export const checkExtend = checker<ExtendInput>({ ...ofAccount, ttl: Ttl })

export const checkGrant = checker<GrantInput>({
  ...ofAccount,
  credits: Credits,
  reason: Type.Optional(Reason),
  expiresAt: Type.Optional(Time),
  priority: Type.Optional(Priority),
  idempotencyKey: Type.Optional(IdempotencyKey)
})

export const checkRevoke = checker<RevokeInput>(ofAccount)

export const checkRefund = checker<RefundInput>({
  ...ofAccount,
  usageId: Type.Optional(Id),
  deductKey: Type.Optional(IdempotencyKey),
  credits: Type.Optional(Credits),
  reason: Type.Optional(Reason),
  idempotencyKey: Type.Optional(IdempotencyKey)
})

export const checkStatement = checker<StatementInput>({
  from: Type.Optional(Time),
  to: Type.Optional(Time),
  limit: Type.Optional(Limit),
  cursor: Type.Optional(StatementCursor),
  client: Type.Optional(Client)
})

export const checkReconcile = checker<ReconcileInput>({
  batch: Type.Optional(Limit),
  onProgress: Type.Optional(Callable)
})

export const checkPrune = checker<PruneInput>({
  before: Time,
  batch: Type.Optional(Limit),
  onProgress: Type.Optional(Callable)
})

export const checkClient = checker<ClientInput>({ client: Type.Optional(Client) })

/** What is wrong with an overdraft. */
export const overdraftProblem = compile(CreditsOrNone)

const idProblem = compile(Id)

/** An id as the database takes it. A string that no row can have is not found, rather than malformed. */
export function rowId (id: string, what: string): string {
  const problem = idProblem(id)
  if (problem !== undefined) throw new InvalidInputError('id', problem.problem)
  if (!/^\d{1,18}$/.test(id)) throw new NotFoundError(what)
  return id
}

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
  const known: Record<string, unknown> = {}
  for (const name of names) if (name in input) known[name] = (input as Record<string, unknown>)[name]
  const unknown = Object.keys(input).filter(name => !names.includes(name))
  if (unknown.length === 0) return known
  return Object.fromEntries([...unknown.map(name => [name, undefined]), ...Object.entries(known)])
}
