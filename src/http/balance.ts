import type { Balance } from '../ledger/posting/balance.js'

/** Returns a balance as replies show it. `held` is left out while it is 0: older clients know only the other three fields. */
export function shownBalance ({ available, total, used, held }: Balance) {
  return held === 0 ? { available, total, used } : { available, total, used, held }
}
