import { ratio, type Cell, type Figure, type Result } from './results.js'

/** A ratio of two measurements that should be reached. */
interface Target {
  what: string
  cell: Cell
  against: Cell
  figure: Figure
  /** The least ratio; for a latency, the greatest. */
  bound: number
}

const call = (contender: string, accounts: Cell['accounts'], callers = 256): Cell =>
  ({ way: 'call', contender, callers, accounts })
const http = (contender: string, accounts: Cell['accounts']): Cell => ({ way: 'http', contender, callers: 128, accounts })
const processes = (count: number, accounts: Cell['accounts'], contender = 'library'): Cell =>
  ({ way: 'processes', contender, callers: 256, accounts, processes: count })
const byHand = 'hand-written transaction'
const redis = 'Redis, synced always'

const throughput = (what: string, cell: Cell, against: Cell, bound: number): Target =>
  ({ what, cell, against, figure: 'perSecond', bound })

const targets: Target[] = [
  throughput('deduct, hot, against by hand', call('library', 'hot'), call(byHand, 'hot'), 60),
  throughput('deduct, spread, against by hand', call('library', 'spread'), call(byHand, 'spread'), 7),
  throughput('deduct with keys, hot, against by hand', call('library, with keys', 'hot'), call(byHand, 'hot'), 35),
  throughput('deduct with keys, spread, against by hand', call('library, with keys', 'spread'), call(byHand, 'spread'), 6),
  throughput('deduct, hot, against the ceiling', call('library', 'hot'), call('ceiling: only append', 'hot'), 0.6),
  throughput('deduct, spread, against the ceiling', call('library', 'spread'), call('ceiling: only append', 'spread'), 0.4),
  {
    what: 'deduct, one caller, p50 against by hand',
    cell: call('library', 'hot', 1),
    against: call(byHand, 'hot', 1),
    figure: 'p50',
    bound: 0.6
  },
  throughput('hold + capture, hot, against by hand once', call('library, hold + capture', 'hot'), call(byHand, 'hot'), 15),
  throughput('deduct, hot, against Redis that syncs each write', call('library', 'hot'), call(redis, 'hot'), 1),
  throughput('deduct, spread, against Redis that syncs each write', call('library', 'spread'), call(redis, 'spread'), 0.8),
  {
    what: 'deduct, one caller, p50 against Redis that syncs each write',
    cell: call('library', 'hot', 1),
    against: call(redis, 'hot', 1),
    figure: 'p50',
    bound: 1.5
  },
  throughput('HTTP deduct, hot, against by hand', http('library', 'hot'), http(byHand, 'hot'), 40),
  throughput('HTTP deduct, spread, against by hand', http('library', 'spread'), http(byHand, 'spread'), 15),
  throughput('HTTP deduct, hot, against no database', http('library', 'hot'), http('no database', 'hot'), 0.5),
  throughput('HTTP deduct, spread, against no database', http('library', 'spread'), http('no database', 'spread'), 0.5),
  throughput('hot, 2 processes against one', processes(2, 'hot'), processes(1, 'hot'), 0.8),
  throughput('hot, 4 processes against one', processes(4, 'hot'), processes(1, 'hot'), 0.5),
  throughput('hot, 8 processes against one', processes(8, 'hot'), processes(1, 'hot'), 0.3),
  { what: 'hot, p99 of 4 processes against one', cell: processes(4, 'hot'), against: processes(1, 'hot'), figure: 'p99', bound: 3 },
  throughput('spread, 4 processes against one', processes(4, 'spread'), processes(1, 'spread'), 0.6),
  throughput('4 processes, hot, against by hand', processes(4, 'hot'), processes(4, 'hot', byHand), 60),
  throughput('4 processes, spread, against by hand', processes(4, 'spread'), processes(4, 'spread', byHand), 8),
  throughput('new accounts against existing ones', processes(1, 'new'), processes(1, 'spread'), 0.5)
]

/** Compares the results with the targets. Targets without a measurement are left out. */
export function compare (results: Result[]) {
  return targets.map(({ what, cell, against, figure, bound }) => {
    const measured = ratio(results, cell, against, figure)
    return { what, bound, measured, reached: figure === 'perSecond' ? measured >= bound : measured <= bound }
  }).filter(({ measured }) => !Number.isNaN(measured))
}
