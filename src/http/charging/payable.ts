/** The facts about a charged request that decide what it pays. */
export interface ChargeFacts {
  /** The handler called `cancel`. */
  cancelled: boolean
  /** Fastify's `handlerTimeout` has passed. */
  timedOut: boolean
  /** Before any header was written, the handler or a hook threw, or the payload could not be serialized, or its stream failed. */
  failed: boolean
  /** The status that was sent, or that would have been sent if the client were still there; undefined: there was no reply. */
  status: number | undefined
  /** The credits that `capture: 'before'` has captured; undefined: none yet. */
  captured: number | undefined
  /** The reply was written to its end, or is no stream. */
  whole: boolean
  /** The gateway itself broke the reply off, for instance because the source of a stream failed. */
  brokenOff: boolean
  /** The route has `usage`, or its handler called `use`. */
  reportsUse: boolean
  /** The route has `usage`, and its cost is computed from prices. */
  byUsage: boolean
  /** The credits that `use` has added up. */
  used: number
  /** The least that a request pays, in credits, if it pays what it used. */
  minimum: number
  /** The cost, in credits, if it was known before the handler ran. */
  fixed: number | undefined
}

/**
 * Returns what a request pays: a number of credits, or 'cost' for the cost that `config.credits` says. The lines are the
 * rows of the table in docs/charging.md; the first that applies decides.
 */
export function payable (facts: ChargeFacts): number | 'cost' {
  if (facts.cancelled) return 0
  if (facts.failed || facts.timedOut) return 0
  if (facts.status !== undefined && facts.status >= 400) return 0
  if (facts.status === 304 || facts.status === undefined) return facts.reportsUse ? whatWasUsed(facts) : 0
  if (facts.captured !== undefined) return facts.captured
  if (facts.whole) return 'cost'
  if (facts.brokenOff) return whatWasUsed(facts)
  return facts.reportsUse ? whatWasUsed(facts) : 'cost' // the client has gone
}

/**
 * Returns what a request pays for what it used: at least `minimum`, and never more than a fixed cost. Returns 'cost' if the
 * route has `usage`.
 */
export function whatWasUsed ({ byUsage, used, minimum, fixed = Infinity }: Omit<ChargeFacts, 'status'>): number | 'cost' {
  return byUsage ? 'cost' : Math.min(Math.max(used, minimum), fixed)
}
