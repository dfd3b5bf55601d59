/**
 * What a limit of a budget is for: the calendar's day, week (from Monday) or month in the ledger's time zone; or `total`, which never
 * resets.
 */
export type BudgetPeriod = 'day' | 'week' | 'month' | 'total'

/** Credits by period. A period without a limit is left out. */
export type BudgetAmounts = { [period in BudgetPeriod]?: number }

/** A limit of a budget, as it is at a moment. */
export interface BudgetLimit {
  /** The budget: the one that a charge names, or one above it. */
  budget: string
  period: BudgetPeriod
  /** The credits of the limit. */
  limit: number
  /** What was spent in this period. */
  used: number
  /** What open holds have set aside. */
  held: number
  /** When this period ends, and the limit has all its credits again; `null`: never, of a `total`. */
  resetsAt: Date | null
}

/** The limit of a budget that refused a charge. */
export type BudgetRefusal = BudgetLimit
