import { createHash } from 'node:crypto'
import { InvalidInputError, NoPriceError } from '../../errors.js'
import { isObject } from '../input/metadata.js'
import { checkPrices, type CheckedPrice, type CheckedTier } from './check.js'
import type { Quote, Usage } from './types.js'

const VERSION_LENGTH = 16 // hexadecimal digits

/** The prices of operations. */
export interface PriceBook {
  /**
   * Returns the cost of a usage. Throws NoPriceError if the operation has no price, and InvalidInputError, which names the
   * wrong quantity.
   */
  quote (operation: string, usage: unknown): Quote
  /** Returns whether the operation has a price. */
  has (operation: string): boolean
}

/** A checked price with the common denominator of its rates, which is computed once. */
interface BookPrice extends CheckedPrice {
  denominator: bigint
}

/**
 * Checks prices and opens a price book. `version`: the version of the prices; default: a hash of their content. Throws
 * InvalidOptionError.
 */
export function openPriceBook (prices: unknown, version?: string): PriceBook {
  const book = new Map<string, BookPrice>()
  for (const [operation, price] of checkPrices(prices)) {
    book.set(operation, { ...price, denominator: [...price.per.values()].flat().map(tier => tier.each).reduce(multiple, 1n) })
  }
  const known = version ?? versionOf(book)
  return {
    has: operation => book.has(operation),
    quote (operation, usage) {
      const price = book.get(operation)
      if (price === undefined) throw new NoPriceError(operation)
      const quantities = checkUsage(operation, price, usage)
      return { credits: creditsOf(price, quantities), operation, version: known, usage: quantities }
    }
  }
}

// Returns a hash of the prices. It depends neither on their order nor on whether defaults are written out.
function versionOf (book: Map<string, BookPrice>) {
  const content = byName(book).map(([operation, { per, ...price }]) => [
    operation, byName(per).map(([quantity, tiers]) => [quantity, ...tiers.map(tier => [tier.upTo, tier.credits, tier.each])]),
    price.base, price.minimum, price.maximum, price.round
  ])
  const json = JSON.stringify(content, (_key, value) => typeof value === 'bigint' ? String(value) : value)
  return createHash('sha256').update(json).digest('hex').slice(0, VERSION_LENGTH)
}

function byName<T> (map: Map<string, T>) {
  return [...map].sort(([a], [b]) => a < b ? -1 : 1)
}

// Returns a copy of the quantities. Each one is read only once, because a getter could return another value after the check.
function checkUsage (operation: string, { per }: BookPrice, usage: unknown): Usage {
  if (!isObject(usage)) throw new InvalidInputError('usage', 'must be an object of quantities')
  const given = Object.entries(usage).filter(([, quantity]) => quantity !== undefined)
  for (const [name, quantity] of given) {
    if (!per.has(name)) throw new InvalidInputError(`usage.${name}`, `is not a quantity that ${operation} is priced by`)
    if (!Number.isSafeInteger(quantity) || (quantity as number) < 0) {
      throw new InvalidInputError(`usage.${name}`, `must be a whole number from 0 to ${Number.MAX_SAFE_INTEGER}`)
    }
  }
  return Object.fromEntries(given) as Usage
}

function creditsOf ({ per, base, minimum, maximum, round, denominator }: BookPrice, usage: Usage): number {
  let sum = base * denominator
  for (const [name, quantity] of Object.entries(usage)) sum += shareOf(per.get(name)!, BigInt(quantity), denominator)
  let credits = rounded(sum, denominator, round)
  if (credits < minimum) credits = minimum
  if (maximum !== undefined && credits > maximum) credits = maximum
  if (credits > Number.MAX_SAFE_INTEGER) throw new InvalidInputError('usage', 'costs more than 2^53 - 1 credits')
  return Number(credits)
}

// Returns the cost of a quantity, in units of 1/denominator of a credit.
function shareOf (tiers: CheckedTier[], quantity: bigint, denominator: bigint) {
  let share = 0n
  let from = 0n
  for (const { upTo = quantity, credits, each } of tiers) {
    if (from >= quantity) break
    const to = upTo < quantity ? upTo : quantity
    share += (to - from) * credits * (denominator / each)
    from = to
  }
  return share
}

function rounded (sum: bigint, denominator: bigint, round: string) {
  if (round === 'down') return sum / denominator
  if (round === 'up') return (sum + denominator - 1n) / denominator
  return (2n * sum + denominator) / (2n * denominator)
}

function multiple (a: bigint, b: bigint) {
  return a / divisor(a, b) * b
}

function divisor (a: bigint, b: bigint): bigint {
  return b === 0n ? a : divisor(b, a % b)
}
