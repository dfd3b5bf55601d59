// Charges at fixed rates from five processes, on a server with a synchronous standby, until it cannot keep up: 100,000 accounts,
// chosen by Zipf. Calls are sent when they are due, whatever becomes of those before. It is the load with which tb-perf compares
// PostgreSQL with TigerBeetle.
// npm run bench:open-loop [-- --json --rates=2500,5000,10000,20000,40000 --exponents=1,2 --seconds=10]
import { parseArgs } from 'node:util'
import { makeLedger } from './contenders/library.js'
import { startServer } from './databases.js'
import { describeMachine } from './machine.js'
import { check } from './open-loop/check.js'
import type { Config, Order } from './open-loop/generator.js'
import { Histogram } from './open-loop/histogram.js'
import type { OpenLoad } from './open-loop/open-load.js'
import { millisecondsOf, table } from './report.js'
import { endWorkers, order, startWorkers } from './workers.js'

const ACCOUNTS = 100_000
const PROCESSES = 5
const MAX_QUEUE = 10_000 // the library's default
const WARM_UP = 2 // seconds
const KEPT_UP = 0.95 // of the calls that are asked for

const { values } = parseArgs({
  options: {
    json: { type: 'boolean', default: false },
    rates: { type: 'string', default: '2500,5000,10000,20000,40000' },
    exponents: { type: 'string', default: '1,2' },
    seconds: { type: 'string', default: '10' }
  }
})
const rates = values.rates.split(',').map(Number)
const seconds = Number(values.seconds)

type Figures = ReturnType<typeof figuresOf>

/** Measures one rate after the other on a new database, and checks what the database has in the end. */
async function measure (exponent: number, connectionString: string) {
  await makeLedger(connectionString, ACCOUNTS)
  const config: Config = { connectionString, accounts: { count: ACCOUNTS, exponent }, maxQueue: MAX_QUEUE }
  const workers = await startWorkers(PROCESSES, 'open-loop/generator.ts', config)
  const run = async (rate: number, length: number) =>
    figuresOf(rate, length, await order<OpenLoad>(workers, { rate: rate / PROCESSES, seconds: length } satisfies Order))
  const warmUp = await run(rates[0]!, WARM_UP)
  const measured: Figures[] = []
  for (const rate of rates) {
    process.stderr.write(`Zipf ${exponent}, ${rate} calls per second\n`)
    measured.push(await run(rate, seconds))
    if (measured.at(-1)!.perSecond < rate * KEPT_UP) break
  }
  await endWorkers(workers) // after that, PostgreSQL's statistics have all of their deadlocks
  const sum = (of: 'accepted' | 'errors' | 'unknown') => [warmUp, ...measured].reduce((total, part) => total + part[of], 0)
  const checked = await check(connectionString, sum('accepted'))
  return { exponent, measured, errors: sum('errors'), unknown: sum('unknown'), ...checked }
}

function figuresOf (rate: number, seconds: number, parts: OpenLoad[]) {
  const sum = (of: 'accepted' | 'inTime' | 'refused' | 'late' | 'errors' | 'unknown') =>
    parts.reduce((total, part) => total + part[of], 0)
  const latencies = Histogram.of(parts.map(({ sinceDue }) => sinceDue))
  const { firstError } = parts.find(part => part.firstError !== undefined) ?? {}
  return {
    rate,
    accepted: sum('accepted'),
    perSecond: sum('inTime') / seconds,
    p50: latencies.percentile(0.5),
    p99: latencies.percentile(0.99),
    max: latencies.greatest,
    slowestP99: Math.max(...parts.map(({ sinceDue }) => Histogram.of([sinceDue]).percentile(0.99))),
    refused: sum('refused'),
    late: sum('late'),
    errors: sum('errors'),
    unknown: sum('unknown'),
    ...firstError !== undefined && { firstError }
  }
}

const server = await startServer({}, true)
const machine = await describeMachine(await server.createDatabase('machine'))
const results = []
for (const exponent of values.exponents.split(',').map(Number)) {
  results.push(await measure(exponent, await server.createDatabase(`zipf ${exponent}`)))
}
await server.stop()

if (values.json) {
  process.stdout.write(`${JSON.stringify({ machine, seconds, results })}\n`)
} else {
  process.stdout.write(`${Object.entries(machine).map(entry => entry.join(': ')).join(', ')}\n\n`)
  process.stdout.write(table(
    ['Zipf', 'asked per second', 'completed per second', 'p50 ms', 'p99 ms', 'of the slowest process', 'max ms', '503 at once', '503 later',
      'errors'],
    results.flatMap(({ exponent, measured }) => measured.map(({ rate, perSecond, p50, p99, slowestP99, max, ...line }) => [
      exponent, rate, Math.round(perSecond), ...[p50, p99, slowestP99, max].map(millisecondsOf), line.refused, line.late, line.errors
    ].map(String)))))
  process.stdout.write(`\n${table(['Zipf', 'deadlocks', 'errors', 'lost', 'double', 'outcome unknown', 'sums', 'records read for a charge'],
    results.map(({ exponent, deadlocks, errors, lost, double, unknown, sums, readPerCharge }) =>
      [exponent, deadlocks, errors, lost, double, unknown, sums ? 'equal' : 'differ', readPerCharge.toFixed(1)].map(String)))}`)
}
