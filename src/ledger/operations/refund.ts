import { Type } from '@sinclair/typebox'
import { InvalidInputError } from '../../errors.js'
import type { Call } from '../context.js'
import { checker, ofAccount, resolveUserId, rowId, type ClientInput } from '../input/check.js'
import { Credits, Id, IdempotencyKey, Reason } from '../input/fields.js'
import { balanceOf, type Balance } from '../posting/balance.js'
import { functionCall } from '../posting/function-call.js'
import { isReplay, throwRefusal } from '../posting/verdict.js'
import { withOwner } from './owner.js'

/** The input of `refund`. */
export interface RefundInput extends ClientInput {
  /**
   * The account of `deductKey`, or of the usage record. If the record belongs to another account, throws NotFoundError.
   * Default with `deductKey`: the default user. Default with `usageId`: not checked.
   */
  userId?: string
  /** The usage record of a deduct or a capture. Either this or `deductKey` is required, and not both. */
  usageId?: string
  /** The idempotency key of a deduct. */
  deductKey?: string
  /** Credits to give back: a whole number from 1 to 2^53 - 1. Default: all credits of the record that are not yet refunded. */
  credits?: number
  /** The reason, which the statement shows: 1 to 255 characters. Default: none. */
  reason?: string
  /**
   * Names the request: 1 to 255 characters. If the request is repeated with the same key, `refund` returns the first result
   * again, and refunds nothing more.
   */
  idempotencyKey?: string
}

/** The result of `refund`. */
export interface Refund {
  /** The usage record of the refund, which has negative credits. */
  id: string
  /** The usage record that was refunded. */
  usageId: string
  userId: string
  /** Credits given back. */
  credits: number
  /** The balance after the refund. In a replay, the balance after the original. */
  balance: Balance
  /** Whether this is a replay: the same request was made before with this key, and nothing was refunded now. */
  replayed: boolean
}

const check = checker<RefundInput>({
  ...ofAccount,
  usageId: Type.Optional(Id),
  deductKey: Type.Optional(IdempotencyKey),
  credits: Type.Optional(Credits),
  reason: Type.Optional(Reason),
  idempotencyKey: Type.Optional(IdempotencyKey)
})

const RECORD = 'usage record'

const REFUND = functionCall('ai_credit_refund', [
  'bigint', 'varchar', 'varchar', 'bigint', 'varchar', 'varchar', 'jsonb', 'integer'
])

/** Gives back the spent credits of a usage record, or a part of them. See Credits. */
export async function refund (call: Call, input: RefundInput): Promise<Refund> {
  const {
    usageId, deductKey = null, credits = null, reason = null, idempotencyKey = null, client, ...rest
  } = check(input)
  if ((usageId === undefined) === (deductKey === null)) {
    throw new InvalidInputError('usageId', 'or deductKey is required, and not both')
  }
  // A usage record has one account. A key names a deduct only together with its account.
  const id = usageId === undefined ? null : rowId(usageId, RECORD)
  const post = (userId: string | null) => call.postings.post({
    userId,
    statement: {
      name: 'ai_credit_refund',
      text: REFUND,
      values: lockTimeout => [
        id, userId, deductKey, credits, reason, idempotencyKey, call.allowance, lockTimeout
      ],
      repeatable: idempotencyKey !== null
    }
  }, call.deadline, client)
  const row = id === null
    ? await post(resolveUserId(rest.userId, call.options.defaultUser))
    : await withOwner(call, { what: RECORD, id, userId: rest.userId ?? null, client }, post)
  throwRefusal(row, { what: RECORD })
  return {
    id: String(row.record_id),
    usageId: String(row.usage_id),
    userId: row.user_id,
    credits: Number(row.credits),
    balance: balanceOf(row),
    replayed: isReplay(row)
  }
}
