import { Type } from '@sinclair/typebox'
import { InvalidInputError } from '../../errors.js'
import type { Call } from '../context.js'
import { checker, creditsOrUsage, ofAccount, rowId, type ClientInput, type CreditsOrUsage } from '../input/check.js'
import { Flag, IdempotencyKey, MetadataField, Operation, Shortfall } from '../input/fields.js'
import type { Metadata } from '../input/metadata.js'
import { balanceOf, type Balance } from '../posting/balance.js'
import { functionCall } from '../posting/function-call.js'
import { isReplay, throwRefusal } from '../posting/verdict.js'
import { captureCall } from '../posting/wire.js'
import type { Usage } from '../prices/types.js'
import { HOLD, postOfHold } from './of-hold.js'

/** The input of `capture`. */
export interface CaptureInput extends ClientInput {
  /** The hold's account. If the hold belongs to another account, throws NotFoundError. Default: not checked. */
  userId?: string
  /**
   * Credits to spend: a whole number from 1 to 2^53 - 1. They may be more than the held credits. Default: the credits that
   * the hold still has.
   */
  credits?: number
  /** Facts about the usage. They are added to those of the hold, and replace those with the same key. Default: `{}`. */
  metadata?: Metadata
  /** `true`: closes the hold and gives back its rest. `false`: keeps the rest held, for further captures. Default: true. */
  final?: boolean
  /**
   * What to do if `credits` are more than the hold and the balance cover. `'partial'`: take what is available. `'reject'`:
   * throw InsufficientCreditsError and leave the hold unchanged. Default: `'partial'`.
   */
  shortfall?: 'partial' | 'reject'
  /**
   * Names this capture among the captures of the hold: 1 to 255 characters. It distinguishes a retry, which is replayed,
   * from the next capture.
   */
  idempotencyKey?: string
}

/** The input of `capture` to charge by usage. The price of the operation determines the credits, which may be 0. */
export interface PricedCaptureInput extends Omit<CaptureInput, 'credits'> {
  /** The hold's operation. If it is another one, throws InvalidInputError and charges nothing. */
  operation: string
  /** The quantities that the operation is priced by. */
  usage: Usage
  credits?: undefined
}

/** The result of `capture`. */
export interface Capture {
  /** The usage record. */
  id: string
  holdId: string
  userId: string
  /** Credits spent. */
  credits: number
  /** Credits that were to be captured but were not available. */
  uncollected: number
  /** The balance after the capture. In a replay, the balance after the original. */
  balance: Balance
  /** Whether this is a replay: the same capture was made before, and nothing was charged now. */
  replayed: boolean
}

const check = checker<CaptureInput & CreditsOrUsage & { operation?: string }>({
  ...ofAccount,
  ...creditsOrUsage,
  operation: Type.Optional(Operation),
  metadata: Type.Optional(MetadataField),
  final: Type.Optional(Flag),
  shortfall: Type.Optional(Shortfall),
  idempotencyKey: Type.Optional(IdempotencyKey)
})

const CAPTURE = functionCall('ai_credit_capture', [
  'bigint', 'varchar', 'bigint', 'jsonb', 'boolean', 'varchar', 'varchar', 'varchar', 'varchar', 'jsonb', 'jsonb', 'integer', 'boolean'
])

/** Spends the credits of a hold, or a part of them. See Credits. */
export async function capture (
  call: Call, holdId: string, input: CaptureInput | PricedCaptureInput = {}
): Promise<Capture> {
  const {
    userId = null, metadata = null, final = true, shortfall = 'partial', idempotencyKey = null, client, ...rest
  } = check(input)
  const { credits, operation, version, quantities } = priceOf(call, rest)
  const id = rowId(holdId, HOLD)
  const json = metadata && JSON.stringify(metadata)
  const row = await postOfHold(call, id, userId, {
    call: captureCall({ idempotencyKey, credits, operation, metadata: json, version, quantities }, id, final, shortfall),
    statementFor: account => ({
      name: 'ai_credit_capture',
      text: CAPTURE,
      values: lockTimeout => [
        id, account, credits, json, final, shortfall, idempotencyKey, operation, version, quantities,
        call.allowance, lockTimeout, call.events.tellsOfBudgets
      ],
      repeatable: idempotencyKey !== null || final // a final capture closes the hold, so a repetition is a replay
    })
  }, client)
  if (client === undefined) call.events.captureReturned(row, row.user_id, holdId)
  throwRefusal(row, { what: HOLD, credits: Number(row.required) })
  return {
    id: String(row.id),
    holdId,
    userId: row.user_id,
    credits: Number(row.credits),
    uncollected: Number(row.uncollected),
    balance: balanceOf(row),
    replayed: isReplay(row)
  }
}

// Returns the charge of a capture: the given credits (null: all that the hold still has), or the cost of the usage.
function priceOf ({ options }: Call, { credits, operation, usage }: CreditsOrUsage & { operation?: string }) {
  if (usage === undefined) {
    if (operation !== undefined) throw new InvalidInputError('usage', 'is required with operation')
    return { credits: credits ?? null, operation: null, version: null, quantities: null }
  }
  if (credits !== undefined) throw new InvalidInputError('credits', 'must not be given together with usage')
  if (operation === undefined) throw new InvalidInputError('operation', 'is required with usage')
  const quote = options.prices.quote(operation, usage)
  return { credits: quote.credits, operation, version: quote.version, quantities: JSON.stringify(quote.usage) }
}
