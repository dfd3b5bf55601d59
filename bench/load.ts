import { percentile } from './statistics.js'

/** What a load came to: calls per second, and latencies in milliseconds. */
export interface Measurement {
  calls: number
  perSecond: number
  p50: number
  p99: number
}

/** Callers in a closed loop: each makes its next call when it has the answer to the one before. */
export async function runLoad (callers: number, seconds: number, call: () => Promise<unknown>): Promise<Measurement> {
  const latencies: number[] = []
  const start = performance.now()
  const end = start + seconds * 1000
  await Promise.all(Array.from({ length: callers }, async () => {
    for (let sent = performance.now(); sent < end;) {
      await call()
      const answered = performance.now()
      latencies.push(answered - sent)
      sent = answered
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
