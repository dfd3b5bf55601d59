import type { Balance } from '../ledger/types.js'

/** A balance as replies show it: `held` only while it is not 0, so that the shape stays exact for older clients. */
export function shownBalance ({ available, total, used, held }: Balance) {
  return held === 0 ? { available, total, used } : { available, total, used, held }
}
