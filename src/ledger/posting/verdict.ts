import {
  BudgetExceededError, BudgetInUseError, GrantClosedError, HoldClosedError, IdempotencyConflictError, InsufficientCreditsError,
  InvalidInputError, NotFoundError, RefundExceedsError
} from '../../errors.js'
import type { BudgetRefusal } from '../budgets/types.js'
import { balanceOf } from './balance.js'

/** The columns that every posting function of the ledger returns. Each function has further columns. */
export interface Verdict {
  verdict: string
  total: unknown
  used: unknown
  held: unknown
  /** With the verdict 'budget': the limit that refused the call, as JSON. */
  refusal?: string
}

/** The subject of a call, for its error message. */
export interface VerdictSubject {
  /** The kind of thing that the id names: 'hold', 'grant', 'usage record' or 'budget'. */
  what?: string
  /** The credits that the call required. */
  credits?: number
}

/** Throws the error that the verdict stands for. Returns if the call was accepted or replayed. */
export function throwRefusal (row: Verdict, { what = '', credits = 0 }: VerdictSubject): void {
  const shortage = shortageOf(row, credits)
  if (shortage !== null) throw shortage
  switch (row.verdict) {
    case 'conflict': throw new IdempotencyConflictError()
    case 'missing': throw new NotFoundError(what)
    case 'closed': throw what === 'hold' ? new HoldClosedError() : new GrantClosedError()
    case 'exceeds': throw new RefundExceedsError()
    case 'in use': throw new BudgetInUseError()
    case 'cycle': throw new InvalidInputError('within', 'must not be the budget itself, or below it')
    case 'depth': throw new InvalidInputError('within', 'would make more than 8 levels of budgets')
    case 'past': throw new InvalidInputError('expiresAt', 'must be in the future')
    case 'operation': throw new InvalidInputError('operation', "must be the hold's operation")
    case 'overflow': throw new InvalidInputError('credits', 'would take the total past 2^53 - 1')
  }
}

/** An error with the status 402: the account, or a budget in it, does not have the credits. */
export type Shortage = InsufficientCreditsError | BudgetExceededError

/** Returns true for an error with the status 402, also for one that Fastify has copied. */
export function isShortage (error: unknown): error is Shortage {
  return error instanceof InsufficientCreditsError || error instanceof BudgetExceededError
}

/** Returns the error (402) of a call that the account, or a budget, does not have `credits` for; null: it is no such refusal. */
export function shortageOf (row: Verdict, credits: number): Shortage | null {
  switch (row.verdict) {
    case 'insufficient': return new InsufficientCreditsError(balanceOf(row), credits)
    case 'budget': return new BudgetExceededError(budgetRefusalOf(row), balanceOf(row), credits)
    default: return null
  }
}

/** Returns the limit that refused a call, from a row with the verdict 'budget'. */
export function budgetRefusalOf (row: Verdict): BudgetRefusal {
  const { resetsAt, ...refusal } = JSON.parse(row.refusal!)
  return { ...refusal, resetsAt: resetsAt && new Date(resetsAt) }
}

/**
 * Returns whether the call is a replay: the same request was made before, and has used the idempotency key, or closed the
 * hold or grant.
 */
export function isReplay ({ verdict }: Verdict): boolean {
  return verdict === 'replayed'
}
