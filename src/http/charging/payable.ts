/** What is known of a charged request in the moment in which it is decided what it pays. */
export interface Facts {
  /** The handler called `cancel`. */
  cancelled: boolean
  /** `handlerTimeout` came. */
  timedOut: boolean
  /** Before any header was written, the handler or a hook threw, the payload could not be serialized, or its stream failed. */
  failed: boolean
  /** The status that was sent, or that would have been sent to a client that had gone; undefined: there was no reply. */
  status: number | undefined
  /** What `capture: 'before'` has taken; undefined: nothing was captured yet. */
  captured: number | undefined
  /** The reply was written to its end, or is none that is written bit by bit. */
  whole: boolean
  /** The gateway itself broke the reply off, as it does when the source of a stream fails. */
  brokenOff: boolean
  /** The route has `usage`, or its handler called `use`. */
  reportsUse: boolean
  /** The route has `usage`: its prices make a cost of it. */
  byUsage: boolean
  /** What `use` added up. */
  used: number
  /** The least that is paid where what was used is paid. */
  minimum: number
  /** The cost, where it was known before the handler ran. */
  fixed: number | undefined
}

/**
 * What a request pays: so many credits, or its cost, which `config.credits` says. The rows are those of the README's
 * table; the first that applies decides.
 */
export function payable (facts: Facts): number | 'cost' {
  if (facts.cancelled) return 0
  if (facts.failed || facts.timedOut) return 0
  if (facts.status !== undefined && facts.status >= 400) return 0
  if (facts.status === 304 || facts.status === undefined) return facts.reportsUse ? whatWasUsed(facts) : 0
  if (facts.captured !== undefined) return facts.captured
  if (facts.whole) return 'cost'
  if (facts.brokenOff) return whatWasUsed(facts)
  return facts.reportsUse ? whatWasUsed(facts) : 'cost' // the client has gone
}

/** What was used: at least `minimum`, and never more than a fixed cost. */
export function whatWasUsed ({ byUsage, used, minimum, fixed = Infinity }: Omit<Facts, 'status'>): number | 'cost' {
  return byUsage ? 'cost' : Math.min(Math.max(used, minimum), fixed)
}
