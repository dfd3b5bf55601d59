import type { Budget, BudgetAmounts, BudgetDefinition, BudgetPeriod, Budgets, BudgetsInput, HistoryEntry, Metadata } from '../../src/index.js'
import { endOfPeriod, startOfDay } from './calendar.js'
import { Refusal } from './refusal.js'

const LEVELS = 8

// The longest first: of limits that reset at one instant, a refusal names the longest.
const PERIODS = ['total', 'month', 'week', 'day'] as const

/** A limit: its credits, and the first usage record of the account that counts in it. */
interface Limit {
  credits: number
  from: number
}

interface Limited {
  within: string | null
  limits: Map<BudgetPeriod, Limit>
  /** The first hold of the account that counts in it. */
  from: number
}

/** A limit that does not have the credits of a charge left. */
interface Short {
  budget: string
  period: BudgetPeriod
  limit: number
  used: number
  held: number
  resetsAt: number
}

/** What budgets need of an account: its holds and usage records, oldest first, each with the budgets that it was charged on. */
export interface Spender {
  budgets: Map<string, Limited>
  holds: Array<{ state: string, left: number, path: string[] }>
  spent: Array<{ credits: number, refunded: number, at: number, path: string[] }>
}

/** Credits spent or given back (less than 0) at a time. */
export interface Usage {
  at: number
  credits: number
  operation: string
  metadata: Metadata
  path: string[]
}

/**
 * The budgets of the reference. There are no counters, and nothing is ever reset: what is used is the sum of the records that count
 * in the running period, and what is held is the sum of the open holds.
 */
export function setBudget (account: Spender, name: string, definition: BudgetDefinition, now: number): Budget {
  const { within = null } = definition
  if (within !== null) checkPlace(account, name, within)
  const before = account.budgets.get(name)
  const limits = new Map(PERIODS.flatMap(period => definition[period] === undefined
    ? []
    : [[period, { from: before?.limits.get(period)?.from ?? account.spent.length, credits: definition[period] }] as const]))
  account.budgets.set(name, { within, limits, from: before?.from ?? account.holds.length })
  return told(account, name, now)
}

export function removeBudget (account: Spender, name: string): void {
  if (below(account, name).length > 0) throw new Refusal('FST_CREDITS_BUDGET_IN_USE')
  if (!account.budgets.delete(name)) throw new Refusal('FST_CREDITS_NOT_FOUND')
}

export function listBudgets (account: Spender, { limit = 100, cursor = '' }: BudgetsInput, now: number): Budgets {
  const names = [...account.budgets.keys()].sort().filter(name => name > cursor)
  const shown = names.slice(0, limit)
  return { entries: shown.map(name => told(account, name, now)), cursor: names.length > limit ? shown.at(-1)! : null }
}

/** Returns the budgets in which a charge that names this one counts: the budget itself, then those above it. */
export function pathOf (account: Spender, name: string | undefined): string[] {
  if (name === undefined) return []
  const first = account.budgets.get(name) ?? account.budgets.get(templateOf(name))
  if (first === undefined) throw new Refusal('FST_CREDITS_NOT_FOUND')
  return [name, ...above(account, first)]
}

/** Throws if a limit along the path does not have the credits left. `facts`: what else the refusal says. */
export function requireRoom (account: Spender, path: string[], credits: number, now: number, facts: () => object): void {
  const short = path.flatMap(name => shortOf(account, name, credits, now))
  const [told] = short.sort((a, b) => Math.sign(b.resetsAt - a.resetsAt) || 0) // stable: the nearest budget stays first
  if (told === undefined) return
  throw new Refusal('FST_CREDITS_BUDGET_EXCEEDED', { ...told, resetsAt: timeOf(told.resetsAt), ...facts() })
}

/** Makes the budget that a charge names if there is only a template of it. */
export function makeFromTemplate (account: Spender, [name]: string[]): void {
  if (name === undefined || account.budgets.has(name)) return
  account.budgets.set(name, fresh(account, account.budgets.get(templateOf(name))!))
}

/** Returns the daily usage of a budget, in no order. */
export function historyOf (usage: Usage[], budget: string): HistoryEntry[] {
  const sums = new Map<string, number>()
  for (const { at, credits, operation, metadata, path } of usage) {
    if (!path.includes(budget)) continue
    const date = new Date(startOfDay(at)).toISOString().slice(0, 10)
    const entry = JSON.stringify({ date, operation, metadata: Object.fromEntries(Object.entries(metadata).sort()) })
    sums.set(entry, (sums.get(entry) ?? 0) + credits)
  }
  return [...sums].filter(([, used]) => used !== 0).map(([entry, used]) => ({ ...JSON.parse(entry), used }))
}

function templateOf (name: string): string {
  return /^[^:]+:/.test(name) ? `${name.split(':')[0]}:*` : ''
}

// What a template makes counts from now on.
function fresh ({ holds, spent }: Spender, { within, limits }: Limited): Limited {
  const counting = [...limits].map(([period, { credits }]) => [period, { credits, from: spent.length }] as const)
  return { within, limits: new Map(counting), from: holds.length }
}

function above (account: Spender, { within }: Limited): string[] {
  return within === null ? [] : [within, ...above(account, account.budgets.get(within)!)]
}

function below ({ budgets }: Spender, name: string): string[] {
  return [...budgets].filter(([, { within }]) => within === name).map(([lower]) => lower)
}

function height (account: Spender, name: string): number {
  return 1 + Math.max(0, ...below(account, name).map(lower => height(account, lower)))
}

function checkPlace (account: Spender, name: string, within: string): void {
  const place = account.budgets.get(within)
  const path = place === undefined ? [within] : [within, ...above(account, place)]
  if (path.includes(name)) throw misplaced('must not be the budget itself, or below it')
  if (place === undefined) throw new Refusal('FST_CREDITS_NOT_FOUND')
  if (path.length + height(account, name) > LEVELS) throw misplaced('would make more than 8 levels of budgets')
}

function misplaced (problem: string): Refusal {
  return new Refusal('FST_CREDITS_INVALID', { field: 'within', problem })
}

function shortOf (account: Spender, name: string, credits: number, now: number): Short[] {
  const budget = account.budgets.get(name) ?? fresh(account, account.budgets.get(templateOf(name))!)
  const held = heldIn(account, name, budget)
  return PERIODS.filter(period => budget.limits.has(period)).map(period => {
    const limit = budget.limits.get(period)!
    return { budget: name, period, limit: limit.credits, used: usedIn(account, name, period, limit, now), held, resetsAt: endOfPeriod(period, now) }
  }).filter(({ limit, used }) => used + held + credits > limit)
}

function usedIn ({ spent }: Spender, name: string, period: BudgetPeriod, { from }: Limit, now: number): number {
  return spent.slice(from)
    .filter(({ at, path }) => path.includes(name) && endOfPeriod(period, at) === endOfPeriod(period, now))
    .reduce((sum, { credits, refunded }) => sum + credits - refunded, 0)
}

function heldIn ({ holds }: Spender, name: string, { from }: Limited): number {
  return holds.slice(from)
    .filter(({ state, path }) => state === 'open' && path.includes(name))
    .reduce((sum, { left }) => sum + left, 0)
}

function told (account: Spender, name: string, now: number): Budget {
  const budget = account.budgets.get(name)!
  const byPeriod = <T>(value: (period: BudgetPeriod, limit: Limit) => T) =>
    Object.fromEntries([...budget.limits].map(([period, limit]) => [period, value(period, limit)]))
  return {
    budget: name,
    within: budget.within,
    limits: byPeriod((_period, { credits }) => credits) as BudgetAmounts,
    used: byPeriod((period, limit) => usedIn(account, name, period, limit, now)) as BudgetAmounts,
    held: heldIn(account, name, budget),
    resetsAt: byPeriod(period => timeOf(endOfPeriod(period, now))) as Budget['resetsAt']
  }
}

function timeOf (time: number): Date | null {
  return time === Infinity ? null : new Date(time)
}
