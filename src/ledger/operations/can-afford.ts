import type { BudgetExceededError, InsufficientCreditsError } from '../../errors.js'
import type { Call } from '../context.js'
import { balanceOf, type Balance } from '../posting/balance.js'
import { functionCall } from '../posting/function-call.js'
import { isReplay, shortageOf, throwRefusal } from '../posting/verdict.js'
import {
  chargeOf, checkDeduct, creditsOf, type CheckedDeductInput, type DeductInput, type PricedDeductInput
} from './deduct.js'

/** The result of `canAfford`. */
export interface Affordability {
  userId: string
  /** Credits that the deduct would spend; if it would be a replay, those that the original has spent. */
  credits: number
  operation: string
  /** Whether the deduct would be accepted, or be a replay. */
  affordable: boolean
  /** Whether the deduct would be a replay: the same request was made before with this key. */
  replayed: boolean
  /** The balance as it is, before the deduct. If it would be a replay, the balance after the original. */
  balance: Balance
  /** The error that the deduct would throw; `null` if it is affordable. */
  refusal: InsufficientCreditsError | BudgetExceededError | null
}

const CAN_AFFORD = functionCall('ai_credit_can_afford', [
  'varchar', 'bigint', 'varchar', 'jsonb', 'varchar', 'jsonb', 'varchar', 'jsonb', 'integer'
])

/** Says whether an account can pay a deduct. See Credits. */
export async function canAfford (call: Call, input: DeductInput | PricedDeductInput): Promise<Affordability> {
  return await canAffordChecked(call, checkDeduct(input))
}

/** Does what `canAfford` does, without checking the input, because the caller has checked it. */
export async function canAffordChecked (call: Call, input: CheckedDeductInput): Promise<Affordability> {
  const { postings, allowance, deadline } = call
  const charge = chargeOf(call, input)
  const { userId, credits, operation, metadata, idempotencyKey, quantities, budget } = charge
  const row = await postings.attempt({
    userId,
    statement: {
      name: 'ai_credit_can_afford',
      text: CAN_AFFORD,
      values: lockTimeout => [userId, credits, operation, metadata, idempotencyKey, quantities, budget, allowance, lockTimeout],
      repeatable: true
    }
  }, deadline, input.client)
  const refusal = shortageOf(row, credits)
  if (refusal === null) throwRefusal(row, { what: 'budget', credits })
  return {
    userId,
    credits: creditsOf(charge, row),
    operation,
    affordable: refusal === null,
    replayed: isReplay(row),
    balance: balanceOf(row),
    refusal
  }
}
