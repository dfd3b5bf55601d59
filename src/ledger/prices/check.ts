import { InvalidOptionError } from '../../errors.js'
import { isObject } from '../input/metadata.js'
import { isText } from '../input/text.js'

/** The rate of a part of a quantity, up to `upTo` (undefined: to the end of the quantity): `credits` per `each` units. */
export interface CheckedTier {
  upTo: bigint | undefined
  credits: bigint
  each: bigint
}

/** A price after the check, in whole numbers and with its defaults. */
export interface CheckedPrice {
  per: Map<string, CheckedTier[]>
  base: bigint
  minimum: bigint
  maximum: bigint | undefined
  round: string
}

const MAX_NAME_LENGTH = 255

const ROUNDINGS: unknown[] = ['up', 'down', 'nearest']

/** Checks prices. Returns the price of each operation. Throws InvalidOptionError, which names the path of the wrong value. */
export function checkPrices (prices: unknown): Map<string, CheckedPrice> {
  return new Map(entries('prices', prices).map(([operation, price]) => {
    const path = `prices.${operation}`
    if (!isText(operation, MAX_NAME_LENGTH)) fail(path, 'must have a name of 1 to 255 characters')
    return [operation, checkPrice(path, price)]
  }))
}

function checkPrice (path: string, price: unknown): CheckedPrice {
  const given = fields(path, price, ['per', 'base', 'minimum', 'maximum', 'round'])
  const { per, base, minimum = 0, maximum, round = 'up' } = given
  if (per === undefined && base === undefined) fail(path, 'must have per or base')
  if (!ROUNDINGS.includes(round)) fail(`${path}.round`, "must be 'up', 'down' or 'nearest'")
  const checked = {
    per: per === undefined ? new Map<string, CheckedTier[]>() : checkRates(`${path}.per`, per),
    base: whole(`${path}.base`, base === undefined ? 0 : base, 0),
    minimum: whole(`${path}.minimum`, minimum, 0),
    maximum: maximum === undefined ? undefined : whole(`${path}.maximum`, maximum, 0),
    round: round as string
  }
  if (checked.maximum !== undefined && checked.maximum < checked.minimum) fail(`${path}.maximum`, 'must not be below minimum')
  return checked
}

function checkRates (path: string, per: unknown) {
  const rates = entries(path, per)
  if (rates.length === 0) fail(path, 'must name a quantity')
  return new Map(rates.map(([quantity, rate]) => {
    const name = `${path}.${quantity}`
    // A careless reader of the JSON would lose the key __proto__.
    if (!isText(quantity, MAX_NAME_LENGTH) || quantity === '__proto__') fail(name, 'must have a name of 1 to 255 characters')
    return [quantity, checkRate(name, rate)]
  }))
}

function checkRate (path: string, rate: unknown): CheckedTier[] {
  if (typeof rate === 'number') return [{ upTo: undefined, credits: whole(path, rate, 0), each: 1n }]
  if (!isObject(rate)) return fail(path, 'must be a whole number, { credits, each } or { tiers }')
  if (!('tiers' in rate)) return [checkTier(path, rate, ['credits', 'each'])]
  const { tiers } = fields(path, rate, ['tiers'])
  if (!Array.isArray(tiers) || tiers.length === 0) return fail(`${path}.tiers`, 'must be a list of { upTo, credits, each }')
  const checked = Array.from(tiers, (tier, index) => checkTier(`${path}.tiers.${index}`, tier, ['upTo', 'credits', 'each']))
  checked.reduce((from, { upTo }, index) => {
    const name = `${path}.tiers.${index}.upTo`
    const last = index === checked.length - 1
    if (last !== (upTo === undefined)) fail(name, last ? 'must not be in the last tier' : 'is required except in the last tier')
    if (upTo !== undefined && upTo <= from) fail(name, 'must be larger than in the tier before')
    return upTo ?? from
  }, 0n)
  return checked
}

function checkTier (path: string, tier: unknown, names: string[]): CheckedTier {
  const { upTo, credits, each = 1 } = fields(path, tier, names)
  return {
    upTo: upTo === undefined ? undefined : whole(`${path}.upTo`, upTo, 1),
    credits: whole(`${path}.credits`, credits, 0),
    each: whole(`${path}.each`, each, 1)
  }
}

function whole (path: string, value: unknown, minimum: number): bigint {
  if (!Number.isSafeInteger(value) || (value as number) < minimum) {
    fail(path, `must be a whole number from ${minimum} to ${Number.MAX_SAFE_INTEGER}`)
  }
  return BigInt(value as number)
}

function fields (path: string, value: unknown, names: string[]): Record<string, unknown> {
  const given = entries(path, value)
  for (const [name] of given) if (!names.includes(name)) fail(`${path}.${name}`, 'is not a known field')
  return Object.fromEntries(given)
}

function entries (path: string, value: unknown) {
  return isObject(value) ? Object.entries(value) : fail(path, 'must be an object')
}

function fail (path: string, problem: string): never {
  throw new InvalidOptionError(path, problem)
}
