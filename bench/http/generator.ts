// Runs in its own process: sends requests to a gateway and prints the results as JSON. Its argument is a Requests as JSON.
import { randomUUID } from 'node:crypto'
// @ts-expect-error it has no types
import autocannon from 'autocannon'
import { charge } from '../contenders/contender.js'
import { anyUser, HOT } from '../databases.js'
import { percentile } from '../statistics.js'
import type { Load, Requests } from './measure.js'

const { url, connections, seconds, hot, keys }: Requests = JSON.parse(process.argv[2]!)

const bodyFor = (userId: string) => JSON.stringify({ user_id: userId, ...charge })
const vary = (request: { headers: object }) => ({
  ...request,
  body: bodyFor(hot ? HOT : anyUser()),
  headers: keys ? { ...request.headers, 'idempotency-key': randomUUID() } : request.headers
})

// Sends a fixed number of requests. So none is in flight at the end, and the sums are exact.
async function send (amount: number): Promise<Load> {
  const latencies: number[] = []
  let calls = 0
  let lastReply = 0
  const started = performance.now()
  const load = autocannon({
    url,
    connections,
    amount,
    requests: [{
      method: 'POST',
      path: '/api/credits/deduct',
      headers: { 'content-type': 'application/json' },
      body: bodyFor(HOT),
      ...(!hot || keys) && { setupRequest: vary }
    }]
  })
  // autocannon's own figures are too coarse: they come in steps of a second and of a millisecond.
  load.on('response', (_client: unknown, statusCode: number, _bytes: number, milliseconds: number) => {
    latencies.push(milliseconds)
    if (statusCode === 200) calls++
    lastReply = performance.now()
  })
  await load
  const sorted = Float64Array.from(latencies).sort()
  const perSecond = calls / (lastReply - started) * 1000
  return { sent: amount, calls, perSecond, p50: percentile(sorted, 0.5), p99: percentile(sorted, 0.99) }
}

const cold = await send(connections * 10)
const warmUp = await send(Math.max(connections, Math.round(cold.perSecond * seconds / 2)))
const measured = await send(Math.max(connections, Math.round(warmUp.perSecond * seconds)))
process.stdout.write(JSON.stringify([cold, warmUp, measured]))
