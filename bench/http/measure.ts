import { execFile } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import type { Measurement } from '../load.js'
import type { Result } from '../results.js'
import type { Gateway } from './gateways.js'

const CONNECTIONS = [1, 64, 128, 256]

/** The requests that the load generator sends. */
export interface Requests {
  url: string
  connections: number
  /** About how long to measure, after a warm-up. */
  seconds: number
  hot: boolean
  keys: boolean
}

/** The result of a load over HTTP. */
export interface Load extends Measurement {
  sent: number
}

interface Running {
  gateway: Gateway
  url: string
  acknowledged: number
  charged: () => Promise<number[]>
  close: () => Promise<void>
}

const run = promisify(execFile)

/** Measures requests from another process. Each round measures all gateways in turn. */
export async function measureHttp (
  createDatabase: (name: string) => Promise<string>, gateways: Gateway[], rounds: number, seconds: number,
  progress: (text: string) => void
): Promise<Result[]> {
  const running: Running[] = []
  for (const gateway of gateways) {
    const { app, charged } = await gateway.open(await createDatabase(`http ${gateway.name}`))
    running.push({ gateway, url: await app.listen({ port: 0 }), acknowledged: 0, charged, close: () => app.close() })
  }
  const results: Result[] = []
  for (let round = 0; round < rounds; round++) {
    for (const connections of CONNECTIONS) {
      for (const accounts of ['hot', 'spread'] as const) {
        progress(`round ${round + 1}: HTTP, ${connections} connections, ${accounts}`)
        for (const { gateway, measured } of await measureEach(running, round, connections, accounts, seconds)) {
          results.push({ way: 'http', contender: gateway.name, callers: connections, accounts, round, ...measured })
        }
      }
    }
  }
  for (const { close } of running) await close()
  return results
}

async function measureEach (running: Running[], round: number, connections: number, accounts: string, seconds: number) {
  const inTurn = [...running.slice(round % running.length), ...running.slice(0, round % running.length)]
  const all = []
  for (const one of inTurn) {
    all.push({ gateway: one.gateway, measured: await measure(one, connections, accounts === 'hot', seconds) })
  }
  return all
}

async function measure (running: Running, connections: number, hot: boolean, seconds: number) {
  const loads = await send({ url: running.url, connections, seconds, hot, keys: running.gateway.keys })
  const { sent: _sent, ...measured } = loads.at(-1)!
  for (const { calls } of loads) running.acknowledged += calls
  const charged = await running.charged()
  const wrong = charged.some(sum => sum !== running.acknowledged) || loads.some(({ sent, calls }) => sent !== calls)
  return { ...measured, ...wrong && { void: `charged ${charged.join()}, acknowledged ${running.acknowledged}` } }
}

async function send (requests: Requests): Promise<Load[]> {
  const generator = fileURLToPath(new URL('generator.ts', import.meta.url))
  const { stdout } = await run(process.execPath, ['--import=@tapjs/typescript/import', generator, JSON.stringify(requests)])
  return JSON.parse(stdout)
}
