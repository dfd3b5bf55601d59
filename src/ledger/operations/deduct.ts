import { InvalidInputError } from '../../errors.js'
import type { Call } from '../context.js'
import type { Queryable } from '../database/types.js'
import { checker, creditsOrUsage, ofCharge, resolveUserId, type CreditsOrUsage } from '../input/check.js'
import type { Metadata } from '../input/metadata.js'
import { balanceOf, type Balance } from '../posting/balance.js'
import { functionCall } from '../posting/function-call.js'
import type { Posting } from '../posting/postings.js'
import { isReplay, throwRefusal } from '../posting/verdict.js'
import { deductCall } from '../posting/wire.js'
import type { Usage } from '../prices/types.js'

/** The input of `deduct`. */
export interface DeductInput {
  /** The account. Default: the default user. */
  userId?: string
  /** Credits to spend: a whole number from 1 to 2^53 - 1. */
  credits: number
  /** What the credits are spent on: 1 to 255 characters. */
  operation: string
  /** Facts about the usage, which the history shows: an object of at most 8 KiB of JSON. Default: `{}`. */
  metadata?: Metadata
  /**
   * Names the request: 1 to 255 characters. If the request is repeated with the same key, `deduct` returns the first result
   * again, and charges nothing more.
   */
  idempotencyKey?: string
  /**
   * The budget in which the credits count, and so in all above it: 1 to 255 characters, no template. Where there is none with
   * this name, the template `kind:*` of `kind:name` makes it. Default: none.
   */
  budget?: string
  /**
   * The host's own `pg` client, in a transaction: the charge commits or rolls back with the host's writes. Charge at the end
   * of the transaction, because the account stays locked until COMMIT. Charge several accounts in sorted order. PostgreSQL's
   * errors 40P01, 40001 and 55P03 are thrown unchanged. The host must retry its transaction then.
   */
  client?: Queryable
}

/** The input of `deduct` to charge by usage. The price of the operation determines the credits, which may be 0. */
export interface PricedDeductInput extends Omit<DeductInput, 'credits'> {
  /** The quantities that the operation is priced by. */
  usage: Usage
  credits?: undefined
}

/** The result of `deduct`. */
export interface Deduction {
  /** The usage record. */
  id: string
  userId: string
  /** Credits spent. In a replay of a charge by usage, those of the original, even if the price has changed since. */
  credits: number
  operation: string
  /** The balance after the charge. In a replay, the balance after the original. */
  balance: Balance
  /** Whether this is a replay: the same request was made before with this key, and nothing was charged now. */
  replayed: boolean
}

const check = checker<Omit<DeductInput, 'credits'> & CreditsOrUsage>({ ...ofCharge, ...creditsOrUsage })

const DEDUCT = functionCall('ai_credit_deduct', [
  'varchar', 'bigint', 'varchar', 'jsonb', 'varchar', 'varchar', 'jsonb', 'varchar', 'jsonb', 'integer', 'boolean'
])

/** The input of a deduct after its check. */
export type CheckedDeductInput = Omit<DeductInput, 'credits'> & CreditsOrUsage

/** Checks the input of a deduct and returns it. Throws InvalidInputError. */
export function checkDeduct (input: DeductInput | PricedDeductInput): CheckedDeductInput {
  const checked = check(input)
  const { credits, usage } = checked
  if (credits === undefined && usage === undefined) throw new InvalidInputError('credits', 'is required if usage is not given')
  if (credits !== undefined && usage !== undefined) {
    throw new InvalidInputError('credits', 'must not be given together with usage')
  }
  return checked
}

/** A deduct, in the form that the database takes. */
export interface DeductCharge {
  userId: string
  credits: number
  operation: string
  /** As JSON. */
  metadata: string
  idempotencyKey: string | null
  /** The version of the prices from which the credits were computed; null: the caller gave the credits. */
  version: string | null
  /** The quantities from which the credits were computed, as JSON; null: the caller gave the credits. */
  quantities: string | null
  /** null: none. */
  budget: string | null
}

/** Returns what a deduct charges, and whom. Throws NoPriceError, and InvalidInputError if no account is named. */
export function chargeOf ({ options }: Call, input: CheckedDeductInput): DeductCharge {
  const { userId: named, credits, usage, operation, metadata = {}, idempotencyKey = null, budget = null } = input
  const userId = resolveUserId(named, options.defaultUser)
  const quote = usage === undefined ? undefined : options.prices.quote(operation, usage)
  return {
    userId,
    credits: quote?.credits ?? credits!,
    operation,
    metadata: JSON.stringify(metadata), // at once, because the caller may change the object before the statement is sent
    idempotencyKey,
    version: quote?.version ?? null,
    quantities: quote === undefined ? null : JSON.stringify(quote.usage),
    budget
  }
}

/**
 * Returns the credits that a deduct has charged: those of its row if it is charged by usage, because a replay may have had another
 * price.
 */
export function creditsOf ({ credits, quantities }: DeductCharge, row: { credits?: unknown }): number {
  return quantities === null ? credits : Number(row.credits)
}

/** Spends credits. See Credits. */
export async function deduct (call: Call, input: DeductInput | PricedDeductInput): Promise<Deduction> {
  return await deductChecked(call, checkDeduct(input))
}

/** Does what `deduct` does, without checking the input, because the caller has checked it. */
export async function deductChecked (call: Call, input: CheckedDeductInput): Promise<Deduction> {
  const { postings, events, deadline } = call
  const { client } = input
  const charge = chargeOf(call, input)
  const { userId, credits, operation, metadata } = charge
  const row = await postings.post(postingOf(call, charge), deadline, client)
  if (client === undefined) events.deductReturned(row, { userId, credits, operation }, metadata)
  throwRefusal(row, { what: 'budget', credits })
  return {
    id: String(row.id), userId, credits: creditsOf(charge, row), operation, balance: balanceOf(row), replayed: isReplay(row)
  }
}

function postingOf ({ allowance, events }: Call, charge: DeductCharge): Posting {
  const { userId, credits, operation, metadata, idempotencyKey, version, quantities, budget } = charge
  const posting: Posting = {
    userId,
    call: deductCall(charge),
    token: idempotencyKey === null ? undefined : `deduct ${idempotencyKey}`,
    statement: {
      name: 'ai_credit_deduct',
      text: DEDUCT,
      values: lockTimeout => [
        userId, credits, operation, metadata, idempotencyKey, version, quantities, budget, allowance, lockTimeout,
        events.tellsOfBudgets
      ],
      repeatable: idempotencyKey !== null
    }
  }
  if (quantities !== null) posting.columns = ['credits']
  return posting
}
