// Measures the library beside its alternatives. npm run bench [-- --json --rounds=3 --seconds=1 --only=programmatic|http|charging]
import { readArguments } from './arguments.js'
import { findPgbench } from './contenders/pgbench.js'
import { startServer } from './databases.js'
import { gateways } from './http/gateways.js'
import { measureHttp } from './http/measure.js'
import { describeMachine } from './machine.js'
import { measureCalls } from './programmatic.js'
import { tableOf, targetsOf } from './report.js'
import { medians } from './results.js'
import { compare } from './targets.js'

const { json, rounds, seconds, only } = readArguments()
const progress = (text: string) => process.stderr.write(`${text}\n`)

const chosen = only === 'charging' ? gateways.filter(({ name }) => name.endsWith('charged route')) : gateways
const server = await startServer()
const machine = await describeMachine(await server.createDatabase('machine'))
const results = [
  ...only === 'http' || only === 'charging' ? [] : await measureCalls(server.createDatabase, rounds, seconds, progress),
  ...only === 'programmatic' ? [] : await measureHttp(server.createDatabase, chosen, rounds, seconds, progress)
]
await server.stop()

const comparison = compare(results)
if (json) {
  process.stdout.write(`${JSON.stringify({ machine, rounds, seconds, medians: medians(results), targets: comparison, results })}\n`)
} else {
  process.stdout.write(`${Object.entries(machine).map(entry => entry.join(': ')).join(', ')}\n\n`)
  process.stdout.write(`${tableOf(medians(results))}\n${targetsOf(comparison)}`)
  if (findPgbench() === undefined) process.stdout.write('\npgbench was not found\n')
}
