// Shows that the library's memory does not grow with the number of calls, and that it does nothing at rest.
// npm run bench:memory [-- --calls=3000000]
import { setTimeout as sleep } from 'node:timers/promises'
import { parseArgs } from 'node:util'
import { openGateway } from './contenders/library.js'
import { charge } from './contenders/contender.js'
import { HOT, startServer } from './databases.js'

const STEPS = 12
const CALLERS = 256

const calls = Number(parseArgs({ options: { calls: { type: 'string', default: '3000000' } } }).values.calls)
const print = (line: string) => process.stdout.write(`${line}\n`)

const server = await startServer()
const app = await openGateway(await server.createDatabase('memory'))

async function make (count: number) {
  let left = count
  await Promise.all(Array.from({ length: CALLERS }, async () => {
    while (left-- > 0) await app.credits.deduct({ userId: HOT, ...charge })
  }))
}

function heap () {
  globalThis.gc!()
  return process.memoryUsage().heapUsed / 2 ** 20
}

await make(CALLERS * 100)
const first = heap()
print(`after the first calls: ${first.toFixed(1)} MiB of heap`)
for (let step = 1; step <= STEPS; step++) {
  await make(Math.round(calls / STEPS))
  print(`after ${Math.round(calls * step / STEPS).toLocaleString('en')} deducts: ${heap().toFixed(1)} MiB of heap`)
}
print(`growth: ${(heap() - first).toFixed(1)} MiB`)

await sleep(1000)
const before = process.cpuUsage()
await sleep(5000)
const { user, system } = process.cpuUsage(before)
print(`at rest: ${((user + system) / 5e6 * 100).toFixed(2)} % of a core; held by ${process.getActiveResourcesInfo().join(', ')}`)
await app.close()
print(`closed: held by ${process.getActiveResourcesInfo().filter(name => name !== 'PipeWrap').join(', ') || 'nothing'}`)
await server.stop()
