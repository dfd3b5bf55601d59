/** How much of each quantity a call took: whole numbers from 0 to 2^53 - 1. What is left out is 0. */
export type Usage = Record<string, number>

/** Credits for a quantity: `credits` per `each` units of it. */
export interface UnitRate {
  /** A whole number from 0 to 2^53 - 1. */
  credits: number
  /** Units that `credits` pay for: a whole number from 1 to 2^53 - 1. Default: 1. */
  each?: number
}

/** The rate of a part of a quantity: from where the tier before ends, up to `upTo`. */
export interface Tier extends UnitRate {
  /** The last unit of the tier, larger than that of the tier before. The last tier has none, and the others do. */
  upTo?: number
}

/** What a quantity costs: credits per unit, credits per so many units, or each part of it at its tier's rate. */
export type Rate = number | UnitRate | { tiers: Tier[] }

/** What an operation costs. It has `per`, or `base`, or both. */
export interface Price {
  /** The rates of the quantities, by name (1 to 255 characters). */
  per?: Record<string, Rate>
  /** Credits of each call, whatever its quantities. Default: 0. */
  base?: number
  /** Credits that each call costs at least. Default: 0. */
  minimum?: number
  /** Credits that a call costs at most. Default: no limit. */
  maximum?: number
  /** How the sum becomes a whole number, once for the whole call; `'nearest'` rounds a half up. Default: `'up'`. */
  round?: 'up' | 'down' | 'nearest'
}

/** A price book: what each operation costs, by its name. */
export type Prices = Record<string, Price>

/** What a usage costs. */
export interface Quote {
  /** Credits. */
  credits: number
  operation: string
  /** The version of the price book. */
  version: string
  /** The quantities that the credits were computed from. */
  usage: Usage
}
