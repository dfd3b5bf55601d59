import type { RecurringAllowance } from '../options.js'
import type { Metadata } from './metadata.js'
import type { Balance } from './types.js'

/** Where an account counts as low: a number of credits, or whole percents of its total, such as `'10%'`. */
export type LowThreshold = number | `${number}%`

/** Credits were spent, by a deduct or a capture. */
export interface DeductedEvent {
  userId: string
  /** The usage record. */
  id: string
  /** Credits spent. */
  credits: number
  operation: string
  /** Facts about the usage; of a capture, with those of its hold. */
  metadata: Metadata
  /** The balance after it. */
  balance: Balance
  /** The hold of a capture. */
  holdId?: string
}

/** A deduct, a hold or a capture was refused (402), as the balance did not cover it. */
export interface RefusedEvent {
  userId: string
  /** Credits that were required. */
  credits: number
  operation: string
  /** The balance that did not cover them. */
  balance: Balance
}

/** Credits were granted. */
export interface GrantedEvent {
  userId: string
  /** The grant. */
  id: string
  credits: number
  /** Why; `null`: that was not said. */
  reason: string | null
  /** When it expires; `null`: never. */
  expiresAt: Date | null
  priority: number
  /** The balance after it. */
  balance: Balance
}

/** A hold lapsed: nobody captured, released or extended it in time. */
export interface LapsedEvent {
  userId: string
  holdId: string
  /** Credits that are available again. */
  credits: number
  /** When it lapsed. It is told of once something touches the account. */
  at: Date
  /** The balance after it. */
  balance: Balance
}

/** What is available went down to a threshold of the option `low`, or below it. */
export interface LowEvent {
  userId: string
  /** The threshold, as the option says it. */
  threshold: LowThreshold
  /** The balance after it. */
  balance: Balance
}

/** What is available went down to 0, or below it. */
export interface ExhaustedEvent {
  userId: string
  /** The balance after it. */
  balance: Balance
}

/** A period of the account's allowance ended, and the next one began. */
export interface RenewedEvent {
  userId: string
  /** When the last of the periods began. */
  at: Date
  /** Periods that ended, credits that expired, the allowance from here on. */
  details: { periods: number, expired: number, allowance: RecurringAllowance | null }
  /** The balance after it. */
  balance: Balance
}

/** The events of a ledger, by name. */
export interface CreditsEvents {
  /** Credits were spent, by a deduct or a capture. */
  deducted: DeductedEvent
  /** A deduct, a hold or a capture was refused (402), as the balance did not cover it. */
  refused: RefusedEvent
  /** Credits were granted. */
  granted: GrantedEvent
  /** A hold lapsed. */
  lapsed: LapsedEvent
  /** What is available went down to a threshold of the option `low`, or below it: once for each time it does. */
  low: LowEvent
  /** What is available went down to 0, or below it: once for each time it does. */
  exhausted: ExhaustedEvent
  /** A period of the account's allowance ended, and the next one began. */
  renewed: RenewedEvent
}

/** Hears of an event. What it returns is not waited for; an error that it throws, or rejects with, is reported. */
export type CreditsListener<E extends keyof CreditsEvents> = (event: CreditsEvents[E]) => unknown
