import type { BudgetLimit, BudgetRefusal } from '../budgets/types.js'
import type { RecurringAllowance } from '../input/allowance.js'
import type { Metadata } from '../input/metadata.js'
import type { Balance } from '../posting/balance.js'

/**
 * The threshold at which an account, or a budget, is low: a number of credits, or a whole percentage, such as `'10%'`, of the account's
 * total, or of the budget's limit.
 */
export type LowThreshold = number | `${number}%`

/** A deduct or a capture spent credits. */
export interface DeductedEvent {
  userId: string
  /** The usage record. */
  id: string
  /** Credits spent. */
  credits: number
  operation: string
  /** Facts about the usage. A capture has those of its hold, too. */
  metadata: Metadata
  /** The balance after the event. */
  balance: Balance
  /** For a capture only: its hold. */
  holdId?: string
}

/**
 * A deduct, a hold or a capture was refused (402), because the balance did not cover it. If a budget refused it, that is the event
 * `budget_exceeded`.
 */
export interface RefusedEvent {
  userId: string
  /** Credits that were required. */
  credits: number
  operation: string
  /** The balance that did not cover them. */
  balance: Balance
}

/** A deduct or a hold was refused (402), because a budget did not have the credits left, while the balance covered them. */
export interface BudgetExceededEvent extends BudgetRefusal {
  userId: string
  /** Credits that were required. */
  required: number
  operation: string
  /** The balance of the account. */
  balance: Balance
}

/** An account was granted credits. */
export interface GrantedEvent {
  userId: string
  /** The grant. */
  id: string
  credits: number
  /** The reason; `null`: none was given. */
  reason: string | null
  /** When it expires; `null`: never. */
  expiresAt: Date | null
  priority: number
  /** The balance after the event. */
  balance: Balance
}

/** A hold lapsed: nobody captured, released or extended it in time. */
export interface LapsedEvent {
  userId: string
  holdId: string
  /** Credits that are available again. */
  credits: number
  /** When it lapsed. The event comes later: with the next call on the account. */
  at: Date
  /** The balance after the event. */
  balance: Balance
}

/** The available credits fell to a threshold of the option `low`, or below it. */
export interface LowEvent {
  userId: string
  /** The threshold, in the form of the option. */
  threshold: LowThreshold
  /** The balance after the event. */
  balance: Balance
}

/** A charge let what is left of a limit of a budget fall to a threshold of the option `budgetLow`, or below it. */
export interface BudgetLowEvent extends BudgetLimit {
  userId: string
  /** What is left: `limit - used - held`; below 0 if a capture took more than was left. */
  left: number
  /** The threshold, in the form of the option. */
  threshold: LowThreshold
}

/** The available credits fell to 0, or below it. */
export interface ExhaustedEvent {
  userId: string
  /** The balance after the event. */
  balance: Balance
}

/** The effects of a renewal. */
export interface RenewalDetails {
  /** How many periods ended; 0: the first one began. */
  periods: number
  /** Credits that expired. */
  expired: number
  /** The allowance from now on; `null`: none. */
  allowance: RecurringAllowance | null
}

/** A period of the account's allowance ended, and the next one began. */
export interface RenewedEvent {
  userId: string
  /** When the last of the periods began. */
  at: Date
  details: RenewalDetails
  /** The balance after the event. */
  balance: Balance
}

/** The events of a ledger, by name. */
export interface CreditsEvents {
  /** A deduct or a capture spent credits. */
  deducted: DeductedEvent
  /** A deduct, a hold or a capture was refused (402), because the balance did not cover it. */
  refused: RefusedEvent
  /** A deduct or a hold was refused (402), because a budget did not have the credits left. */
  budget_exceeded: BudgetExceededEvent
  /** An account was granted credits. */
  granted: GrantedEvent
  /** A hold lapsed. */
  lapsed: LapsedEvent
  /** The available credits fell to a threshold of the option `low`, or below it. Emitted each time that they do. */
  low: LowEvent
  /**
   * What is left of a limit of a budget fell to a threshold of the option `budgetLow`, or below it. Emitted each time that a
   * charge lets it.
   */
  budget_low: BudgetLowEvent
  /** The available credits fell to 0, or below it. Emitted each time that they do. */
  exhausted: ExhaustedEvent
  /** A period of the account's allowance ended, and the next one began. */
  renewed: RenewedEvent
}

/** A listener of an event. The ledger does not wait for its promise. It reports the error if the listener throws or rejects. */
export type CreditsListener<E extends keyof CreditsEvents> = (event: CreditsEvents[E]) => unknown
