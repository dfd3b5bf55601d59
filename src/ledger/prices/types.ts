/** How much of each quantity a call used: whole numbers from 0 to 2^53 - 1. A quantity that is omitted is 0. */
export type Usage = Record<string, number>

/** The rate of a quantity: `credits` per `each` units. */
export interface UnitRate {
  /** Credits: a whole number from 0 to 2^53 - 1. */
  credits: number
  /** The number of units that `credits` pay for: a whole number from 1 to 2^53 - 1. Default: 1. */
  each?: number
}

/** The rate of a part of a quantity: from the end of the tier before, up to `upTo`. */
export interface Tier extends UnitRate {
  /**
   * The last unit of the tier: a whole number from 1 to 2^53 - 1, larger than that of the tier before. Required, except in
   * the last tier, which must not have it.
   */
  upTo?: number
}

/** The price of a quantity: credits per unit, credits per a number of units, or tiers, which each price a part of it. */
export type Rate = number | UnitRate | { tiers: Tier[] }

/** The price of an operation. It has `per`, or `base`, or both. */
export interface Price {
  /** The rates of the quantities, by the quantity's name (1 to 255 characters). */
  per?: Record<string, Rate>
  /** Credits that each call costs in addition to its quantities. Default: 0. */
  base?: number
  /** The minimum cost of a call, in credits. Default: 0. */
  minimum?: number
  /** The maximum cost of a call, in credits. Default: no limit. */
  maximum?: number
  /** How the sum of a call is rounded to a whole number of credits. `'nearest'` rounds a half up. Default: `'up'`. */
  round?: 'up' | 'down' | 'nearest'
}

/** A price book: the prices of operations, by the operation's name (1 to 255 characters). */
export type Prices = Record<string, Price>

/** The cost of a usage. */
export interface Quote {
  /** The cost, in credits. */
  credits: number
  operation: string
  /** The version of the price book. */
  version: string
  /** The quantities that the credits were computed from. */
  usage: Usage
}
