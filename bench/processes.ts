// Several processes that charge at once, as a gateway runs them: on one account, on ten thousand, on accounts that are new, and
// where a commit takes 3 ms longer.
import type { ChildProcess } from 'node:child_process'
import { WARM_UP } from './programmatic.js'
import { chargedByTables, createTables, handWritten } from './contenders/hand-written.js'
import { chargedByLibrary, library, makeLedger } from './contenders/library.js'
import { query, startServer } from './databases.js'
import type { Measurement } from './load.js'
import type { Cell, Result } from './results.js'
import { endWorkers, order, startWorkers } from './workers.js'

/** What a process is to do. */
export interface Order {
  callers: number
  seconds: number
  accounts: Cell['accounts']
  /** By the transaction by hand instead of the library. */
  byHand: boolean
}

type Load = Pick<Cell, 'contender' | 'accounts' | 'slowDisk'> & { processes: number }

/** The callers of all processes together. */
export const CALLERS = 256

const MOST = 8
const COUNTS = [1, 2, 4, MOST]

const loads: Load[] = (['hot', 'spread', 'new'] as const).flatMap(accounts => [
  ...COUNTS.map(processes => ({ contender: library.name, accounts, processes })),
  ...accounts === 'new' ? [] : [{ contender: handWritten.name, accounts, processes: 4 }]
])

const slowLoads: Load[] = [library, handWritten].map(({ name }) =>
  ({ contender: name, accounts: 'hot', slowDisk: true, processes: 4 }))

/** Measures calls from several processes, on servers of its own. Each round measures all loads in turn. */
export async function measureProcesses (rounds: number, seconds: number, progress: (text: string) => void): Promise<Result[]> {
  return [
    ...await measureOn({}, loads, rounds, seconds, progress),
    ...await measureOn({ commit_delay: '3000', commit_siblings: '0' }, slowLoads, rounds, seconds, progress)
  ]
}

async function measureOn (
  settings: Record<string, string>, loads: Load[], rounds: number, seconds: number, progress: (text: string) => void
) {
  const server = await startServer(settings)
  const connectionString = await server.createDatabase('processes')
  await makeLedger(connectionString)
  await query(connectionString, createTables)
  await query(connectionString, 'vacuum analyze')
  const workers = await startWorkers(Math.max(...loads.map(({ processes }) => processes)), 'load-worker.ts', { connectionString })
  const results: Result[] = []
  for (let round = 0; round < rounds; round++) {
    for (const load of loads) {
      const { contender, accounts, processes, slowDisk } = load
      progress(`round ${round + 1}: ${processes} processes, ${accounts}${slowDisk ? ', slow disk' : ''}, ${contender}`)
      const measured = await measure(connectionString, workers.slice(0, processes), load, seconds)
      results.push({ way: 'processes', callers: CALLERS, round, ...load, ...measured })
    }
  }
  await endWorkers(workers)
  await server.stop()
  return results
}

async function measure (connectionString: string, workers: ChildProcess[], { contender, accounts }: Load, seconds: number) {
  const byHand = contender === handWritten.name
  const charged = () => (byHand ? chargedByTables : chargedByLibrary)(connectionString)
  const run = (length: number) => order<Measurement>(workers,
    { callers: CALLERS / workers.length, seconds: length, accounts, byHand } satisfies Order)
  const before = await charged()
  const warmUp = sumOf(await run(seconds * WARM_UP))
  const measured = sumOf(await run(seconds))
  const acknowledged = warmUp.calls + measured.calls
  const sums = (await charged()).map((sum, index) => sum - before[index]!)
  const wrong = sums.some(sum => sum !== acknowledged)
  return { ...measured, ...wrong && { void: `charged ${sums.join()}, acknowledged ${acknowledged}` } }
}

// Of several processes at once. Percentiles are the worst of them.
function sumOf (parts: Measurement[]) {
  const calls = parts.map(part => part.calls)
  return {
    calls: calls.reduce((a, b) => a + b),
    perSecond: parts.reduce((sum, part) => sum + part.perSecond, 0),
    p50: Math.max(...parts.map(part => part.p50)),
    p99: Math.max(...parts.map(part => part.p99)),
    unfairness: Math.max(...calls) / Math.min(...calls)
  }
}
