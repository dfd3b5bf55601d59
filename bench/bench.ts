// Measures the library and its alternatives.
// npm run bench [-- --json --rounds=3 --seconds=1 --only=programmatic|processes|http|charging --citus]
import { readArguments, type Arguments } from './arguments.js'
import { measureCitus } from './citus.js'
import { findPgbench } from './contenders/pgbench.js'
import { startServer } from './databases.js'
import { gateways } from './http/gateways.js'
import { measureHttp } from './http/measure.js'
import { describeMachine } from './machine.js'
import { measureProcesses } from './processes.js'
import { measureCalls } from './programmatic.js'
import { findRedis } from './redis/redis-server.js'
import { tablesOf, targetsOf } from './report.js'
import { medians } from './results.js'
import { compare } from './targets.js'

const given = readArguments()
if (given.citus) await measureCitus(given)
else await measureAll(given)

async function measureAll ({ json, rounds, seconds, only }: Arguments) {
  const progress = (text: string) => process.stderr.write(`${text}\n`)

  const is = (...parts: string[]) => only === undefined || parts.includes(only)
  const chosen = only === 'charging' ? gateways.filter(({ name }) => name.endsWith('charged route')) : gateways
  const server = await startServer()
  const machine = await describeMachine(await server.createDatabase('machine'))
  const results = [
    ...is('programmatic') ? await measureCalls(server.createDatabase, rounds, seconds, progress) : [],
    ...is('http', 'charging') ? await measureHttp(server.createDatabase, chosen, rounds, seconds, progress) : []
  ]
  await server.stop()
  if (is('processes')) results.push(...await measureProcesses(rounds, seconds, progress))

  const comparison = compare(results)
  if (json) {
    const report = { machine, rounds, seconds, medians: medians(results), targets: comparison, results }
    process.stdout.write(`${JSON.stringify(report)}\n`)
  } else {
    process.stdout.write(`${Object.entries(machine).map(entry => entry.join(': ')).join(', ')}\n\n`)
    process.stdout.write(`${tablesOf(medians(results))}\n${targetsOf(comparison)}`)
    if (findPgbench() === undefined) process.stdout.write('\npgbench was not found\n')
    if (findRedis() === undefined) process.stdout.write('\nredis-server was not found\n')
  }
}
