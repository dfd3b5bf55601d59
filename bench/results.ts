import type { Measurement } from './load.js'
import { median } from './statistics.js'

/** The conditions of a measurement: who charged, from how many callers, on which accounts. */
export interface Cell {
  way: 'call' | 'http' | 'processes'
  contender: string
  callers: number
  accounts: 'hot' | 'spread' | 'new'
  /** Over how many processes the callers are spread. Default: one. */
  processes?: number
  /** Each commit takes 3 ms longer. */
  slowDisk?: boolean
}

/** What can be compared. */
export type Figure = 'perSecond' | 'p50' | 'p99'

/** One measurement. */
export interface Result extends Cell, Measurement {
  round: number
  /** The calls of the process with the most, divided by those of the one with the fewest. */
  unfairness?: number
  /** Why the measurement does not count: the tables and the acknowledged calls differ. */
  void?: string
}

/** The medians of one cell over all rounds. */
export interface Line extends Cell {
  perSecond: number
  p50: number
  p99: number
  unfairness?: number
  void?: string
}

const conditions = ['way', 'contender', 'callers', 'accounts', 'processes', 'slowDisk'] as const
const same = (a: Cell, b: Cell) => conditions.every(condition => a[condition] === b[condition])

/** Returns the medians of all cells, in the order in which these were first measured. */
export function medians (results: Result[]): Line[] {
  const first = results.filter((result, index) => results.findIndex(other => same(result, other)) === index)
  return first.map(({ round: _round, calls: _calls, ...one }) => {
    const cell = results.filter(result => same(result, one))
    const voided = cell.find(result => result.void !== undefined)
    const of = (figure: Figure | 'unfairness') => median(cell.map(result => result[figure]!))
    return {
      ...one,
      perSecond: of('perSecond'),
      p50: of('p50'),
      p99: of('p99'),
      ...one.unfairness !== undefined && { unfairness: of('unfairness') },
      ...voided !== undefined && { void: voided.void! }
    }
  })
}

/** Returns the median over the rounds of one cell's figure divided by another's; NaN if one of them is missing or void. */
export function ratio (results: Result[], cell: Cell, against: Cell, figure: Figure): number {
  const of = (wanted: Cell) => results.filter(result => same(result, wanted) && result.void === undefined)
  const bases = of(against)
  return median(of(cell).flatMap(result => {
    const base = bases.find(({ round }) => round === result.round)
    return base === undefined ? [] : [result[figure] / base[figure]]
  }))
}
