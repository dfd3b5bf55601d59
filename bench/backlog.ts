// Shows what becomes of a backlog: twice the calls that can be charged, from one process and from four. What is accepted should
// not take longer than its place in a full queue explains, twice `maxQueue` ÷ throughput, and the rest should be 503 at once.
// npm run bench:backlog [-- --json --seconds=10 --max-queue=10000 --times=2]
import type { ChildProcess } from 'node:child_process'
import { parseArgs } from 'node:util'
import { makeLedger } from './contenders/library.js'
import { startServer } from './databases.js'
import type { Measurement } from './load.js'
import { describeMachine } from './machine.js'
import { check } from './open-loop/check.js'
import type { Config, Order } from './open-loop/generator.js'
import { Histogram } from './open-loop/histogram.js'
import type { OpenLoad } from './open-loop/open-load.js'
import { millisecondsOf as time, table } from './report.js'
import { endWorkers, order, startWorkers } from './workers.js'

const CALLERS = 1024 // of each process, that find the capacity: enough for full statements. Fewer if the queue is short
const CAPACITY_SECONDS = 3

const { values } = parseArgs({
  options: {
    json: { type: 'boolean', default: false },
    seconds: { type: 'string', default: '10' },
    'max-queue': { type: 'string', default: '10000' }, // the library's default
    times: { type: 'string', default: '2' }
  }
})
const seconds = Number(values.seconds)
const maxQueue = Number(values['max-queue'])

async function measure (accounts: 'hot' | 'spread', processes: number, connectionString: string) {
  process.stderr.write(`${accounts}, ${processes} processes\n`)
  await makeLedger(connectionString)
  const workers = await startWorkers(processes, 'open-loop/generator.ts', { connectionString, accounts, maxQueue } satisfies Config)
  const warmUp = await closed(workers, 1)
  const capacity = await closed(workers, CAPACITY_SECONDS)
  const rate = capacity.perSecond * Number(values.times)
  const parts = await order<OpenLoad>(workers, { rate: rate / processes, seconds } satisfies Order)
  await endWorkers(workers)
  const sum = (of: 'asked' | 'accepted' | 'inTime' | 'refused' | 'late' | 'errors' | 'unknown') =>
    parts.reduce((total, part) => total + part[of], 0)
  return {
    accounts,
    processes,
    capacity: capacity.perSecond,
    asked: sum('asked') / seconds,
    accepted: sum('inTime') / seconds,
    ...worstOf(parts),
    refused: sum('refused'),
    late: sum('late'),
    errors: sum('errors'),
    refusedP99: Histogram.of(parts.map(({ untilRefused }) => untilRefused)).percentile(0.99),
    ...await check(connectionString, warmUp.calls + capacity.calls + sum('accepted'))
  }
}

async function closed (workers: ChildProcess[], length: number) {
  const parts = await order<Measurement>(workers, { callers: Math.min(CALLERS, maxQueue), seconds: length } satisfies Order)
  const sum = (of: 'calls' | 'perSecond') => parts.reduce((total, part) => total + part[of], 0)
  return { calls: sum('calls'), perSecond: sum('perSecond') }
}

// Of the process whose p99 is the highest, compared with its bound. Each has a queue and a throughput of its own.
function worstOf (parts: OpenLoad[]) {
  const all = parts.map(({ sinceDue, sinceSent, inTime }) => {
    const bound = 2 * maxQueue / (inTime / seconds) * 1000
    const [p99, p99SinceSent] = [sinceDue, sinceSent].map(counts => Histogram.of([counts]).percentile(0.99)) as [number, number]
    return { p99, p99SinceSent, bound }
  })
  return all.sort((a, b) => b.p99 / b.bound - a.p99 / a.bound)[0]!
}

const server = await startServer()
const machine = await describeMachine(await server.createDatabase('machine'))
const results = []
for (const accounts of ['hot', 'spread'] as const) {
  for (const processes of [1, 4]) {
    results.push(await measure(accounts, processes, await server.createDatabase(`${accounts} ${processes}`)))
  }
}
await server.stop()

if (values.json) {
  process.stdout.write(`${JSON.stringify({ machine, seconds, maxQueue, results })}\n`)
} else {
  process.stdout.write(`${Object.entries(machine).map(entry => entry.join(': ')).join(', ')}\n\n`)
  process.stdout.write(table(
    ['accounts', 'processes', 'capacity', 'asked', 'accepted per second', 'p99 ms', 'since sent', '2 × maxQueue ÷ throughput, ms',
      '503 at once', 'after (p99 ms)', '503 later', 'errors', 'lost, double', 'sums', 'records read for a charge'],
    results.map(line => [
      line.accounts, line.processes, ...[line.capacity, line.asked, line.accepted].map(Math.round), time(line.p99),
      time(line.p99SinceSent), time(line.bound), line.refused, line.refused > 0 ? time(line.refusedP99) : '', line.late, line.errors,
      `${line.lost}, ${line.double}`, line.sums ? 'equal' : 'differ', line.readPerCharge.toFixed(1)
    ].map(String))))
}
