import type { BudgetPeriod, RecurringAllowance } from '../../src/index.js'

const DAY = 86_400_000
const MONDAY = Date.UTC(1970, 0, 5)

/** The first instant after `after` at which a period of the plan begins, in UTC. All times in milliseconds. */
export function nextRenewal (plan: RecurringAllowance, accountCreated: number, after: number): number {
  const anchored = plan.anchor === 'account'
  const firstDay = anchored ? startOfDay(accountCreated) : MONDAY
  if (plan.every === 'day') return startOfDay(after) + DAY
  if (plan.every === 'week') return firstDay + (Math.floor((after - firstDay) / (7 * DAY)) + 1) * 7 * DAY
  const dayOfMonth = anchored ? new Date(accountCreated).getUTCDate() : 1
  const thisMonth = inMonth(after, 0, dayOfMonth)
  return thisMonth > after ? thisMonth : inMonth(after, 1, dayOfMonth)
}

/** When the calendar's period that `time` lies in ends, in UTC. */
export function endOfPeriod (period: BudgetPeriod, time: number): number {
  return period === 'total' ? Infinity : nextRenewal({ credits: 0, every: period }, 0, time)
}

/** The beginning of a day, in UTC. */
export function startOfDay (time: number): number {
  return Math.floor(time / DAY) * DAY
}

// The day of the month that `time` lies in, or of one `later`; the last day of a month that has no such day.
function inMonth (time: number, later: number, dayOfMonth: number): number {
  const date = new Date(time)
  const [year, month] = [date.getUTCFullYear(), date.getUTCMonth() + later]
  const lastDay = new Date(Date.UTC(year, month + 1, 0)).getUTCDate()
  return Date.UTC(year, month, Math.min(dayOfMonth, lastDay))
}
