import { Type } from '@sinclair/typebox'
import type { Call } from '../context.js'
import { checker, ofCharge, resolveUserId, type ClientInput } from '../input/check.js'
import { Credits, Ttl } from '../input/fields.js'
import type { Metadata } from '../input/metadata.js'
import { balanceOf, type Balance } from '../posting/balance.js'
import { functionCall } from '../posting/function-call.js'
import { isReplay, throwRefusal } from '../posting/verdict.js'
import { holdCall } from '../posting/wire.js'

/** The input of `hold`. */
export interface HoldInput extends ClientInput {
  /** The account. Default: the default user. */
  userId?: string
  /** Credits to set aside: a whole number from 1 to 2^53 - 1. */
  credits: number
  /** What the credits will be spent on: 1 to 255 characters. */
  operation: string
  /** Facts about the usage, for the usage records of the hold's captures. Default: `{}`. */
  metadata?: Metadata
  /** Milliseconds until the hold lapses: from 1 second to 24 hours. Default: 15 minutes. */
  ttl?: number
  /**
   * Names the request: 1 to 255 characters. If the request is repeated with the same key, `hold` returns the first result
   * again, and holds nothing more.
   */
  idempotencyKey?: string
  /**
   * The budget in which the hold and its captures count, and so in all above it: 1 to 255 characters, no template. Where there is none with
   * this name, the template `kind:*` of `kind:name` makes it. Default: none.
   */
  budget?: string
}

/** The result of `hold`. */
export interface Hold {
  /** The hold, for `capture`, `release` and `extend`. */
  id: string
  userId: string
  credits: number
  operation: string
  /** When the hold lapses. */
  expiresAt: Date
  /** The balance after the hold. In a replay, the balance after the original. */
  balance: Balance
  /** Whether this is a replay: the same request was made before with this key, and nothing was held now. */
  replayed: boolean
}

const check = checker<HoldInput>({ ...ofCharge, credits: Credits, ttl: Type.Optional(Ttl) })

const HOLD = functionCall('ai_credit_hold', [
  'varchar', 'bigint', 'varchar', 'jsonb', 'integer', 'varchar', 'varchar', 'jsonb', 'integer', 'boolean'
])

/** The default time until a hold lapses, in milliseconds. */
export const DEFAULT_TTL = 15 * 60_000

/** Sets credits aside. See Credits. */
export async function hold (
  { postings, owners, events, options, allowance, deadline }: Call, input: HoldInput
): Promise<Hold> {
  const {
    userId: named, credits, operation, metadata = {}, ttl = DEFAULT_TTL, idempotencyKey = null, budget = null, client
  } = check(input)
  const userId = resolveUserId(named, options.defaultUser)
  const json = JSON.stringify(metadata) // at once, because the caller may change the object before the statement is sent
  const row = await postings.post({
    userId,
    call: holdCall({ idempotencyKey, credits, operation, metadata: json, budget }, ttl),
    token: idempotencyKey === null ? undefined : `hold ${idempotencyKey}`,
    columns: ['expires_at'],
    statement: {
      name: 'ai_credit_hold',
      text: HOLD,
      values: lockTimeout => [
        userId, credits, operation, json, ttl, idempotencyKey, budget, allowance, lockTimeout, events.tellsOfBudgets
      ],
      repeatable: idempotencyKey !== null
    }
  }, deadline, client)
  if (client === undefined) events.holdReturned(row, { userId, credits, operation })
  throwRefusal(row, { what: 'budget', credits })
  const id = String(row.id)
  owners.remember(id, userId)
  return {
    id, userId, credits, operation, expiresAt: new Date(row.expires_at), balance: balanceOf(row), replayed: isReplay(row)
  }
}
