import { percentile } from './statistics.js'

/** The result of a load: how many calls, calls per second, and latencies in milliseconds. */
export interface Measurement {
  calls: number
  perSecond: number
  p50: number
  p99: number
}

/** Runs callers in a closed loop: each makes its next call when the one before has returned. */
export async function runLoad (callers: number, seconds: number, call: () => Promise<unknown>): Promise<Measurement> {
  const latencies: number[] = []
  const start = performance.now()
  const end = start + seconds * 1000
  await Promise.all(Array.from({ length: callers }, async () => {
    for (let sent = performance.now(); sent < end;) {
      await call()
      const returned = performance.now()
      latencies.push(returned - sent)
      sent = returned
    }
  }))
  const sorted = Float64Array.from(latencies).sort()
  return {
    calls: latencies.length,
    perSecond: latencies.length / (performance.now() - start) * 1000,
    p50: percentile(sorted, 0.5),
    p99: percentile(sorted, 0.99)
  }
}
