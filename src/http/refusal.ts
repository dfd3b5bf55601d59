import { InsufficientCreditsError } from '../errors.js'
import type { Shortage } from '../ledger/posting/verdict.js'
import { shownBalance } from './balance.js'

/** Returns what the body of a 402 has besides the fields of every error. `resetsAt` is a Date: in JSON it is a string. */
export function detailsOf (error: Shortage): object {
  const { required } = error
  const credits = shownBalance(error.credits)
  if (error instanceof InsufficientCreditsError) return { credits, required }
  const { budget, period, limit, used, held, resetsAt } = error
  return { credits, budget, period, limit, used, held, required, resetsAt }
}
