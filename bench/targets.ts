import { ratio, type Cell, type Result } from './results.js'

/** A ratio to reach. */
interface Target {
  what: string
  cell: Cell
  against: Cell
  figure: 'perSecond' | 'p50'
  /** At least this; of a latency, at most. */
  bound: number
}

const call = (contender: string, accounts: Cell['accounts'], callers = 256): Cell => ({ way: 'call', contender, callers, accounts })
const http = (contender: string, accounts: Cell['accounts']): Cell => ({ way: 'http', contender, callers: 128, accounts })
const byHand = 'hand-written transaction'

const throughput = (what: string, cell: Cell, against: Cell, bound: number): Target =>
  ({ what, cell, against, figure: 'perSecond', bound })

const targets: Target[] = [
  throughput('deduct, hot, against by hand', call('library', 'hot'), call(byHand, 'hot'), 60),
  throughput('deduct, spread, against by hand', call('library', 'spread'), call(byHand, 'spread'), 7),
  throughput('deduct with keys, hot, against by hand', call('library, with keys', 'hot'), call(byHand, 'hot'), 35),
  throughput('deduct with keys, spread, against by hand', call('library, with keys', 'spread'), call(byHand, 'spread'), 6),
  throughput('deduct, hot, against the ceiling', call('library', 'hot'), call('ceiling: only append', 'hot'), 0.6),
  throughput('deduct, spread, against the ceiling', call('library', 'spread'), call('ceiling: only append', 'spread'), 0.4),
  { what: 'deduct, one caller, p50 against by hand', cell: call('library', 'hot', 1), against: call(byHand, 'hot', 1), figure: 'p50', bound: 0.6 },
  throughput('hold + capture, hot, against by hand once', call('library, hold + capture', 'hot'), call(byHand, 'hot'), 15),
  throughput('HTTP deduct, hot, against by hand', http('library', 'hot'), http(byHand, 'hot'), 40),
  throughput('HTTP deduct, spread, against by hand', http('library', 'spread'), http(byHand, 'spread'), 15),
  throughput('HTTP deduct, hot, against no database', http('library', 'hot'), http('no database', 'hot'), 0.5),
  throughput('HTTP deduct, spread, against no database', http('library', 'spread'), http('no database', 'spread'), 0.5)
]

/** How the results compare with what is to be reached. */
export function compare (results: Result[]) {
  return targets.map(({ what, cell, against, figure, bound }) => {
    const measured = ratio(results, cell, against, figure)
    return { what, bound, measured, reached: figure === 'p50' ? measured <= bound : measured >= bound }
  }).filter(({ measured }) => !Number.isNaN(measured))
}
