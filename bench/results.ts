import type { Measurement } from './load.js'
import { median } from './statistics.js'

/** What a measurement is of. */
export interface Cell {
  way: 'call' | 'http'
  contender: string
  callers: number
  accounts: 'hot' | 'spread'
}

/** One measurement. */
export interface Result extends Cell, Measurement {
  round: number
  /** Why it does not count: the tables say something else than what was acknowledged. */
  void?: string
}

/** A cell's medians over the rounds. */
export interface Line extends Cell {
  perSecond: number
  p50: number
  p99: number
  void?: string
}

const same = (a: Cell, b: Cell) =>
  a.way === b.way && a.contender === b.contender && a.callers === b.callers && a.accounts === b.accounts

/** The medians of all cells, in the order in which they were first measured. */
export function medians (results: Result[]): Line[] {
  const first = results.filter((result, index) => results.findIndex(other => same(result, other)) === index)
  return first.map(({ way, contender, callers, accounts }) => {
    const cell = results.filter(result => same(result, { way, contender, callers, accounts }))
    const voided = cell.find(result => result.void !== undefined)
    return {
      way,
      contender,
      callers,
      accounts,
      perSecond: median(cell.map(({ perSecond }) => perSecond)),
      p50: median(cell.map(({ p50 }) => p50)),
      p99: median(cell.map(({ p99 }) => p99)),
      ...voided !== undefined && { void: voided.void! }
    }
  })
}

/** The median over the rounds of one cell's figure against another's, or NaN where one is missing or void. */
export function ratio (results: Result[], cell: Cell, against: Cell, figure: 'perSecond' | 'p50'): number {
  const of = (wanted: Cell) => results.filter(result => same(result, wanted) && result.void === undefined)
  const bases = of(against)
  return median(of(cell).flatMap(result => {
    const base = bases.find(({ round }) => round === result.round)
    return base === undefined ? [] : [result[figure] / base[figure]]
  }))
}
