import { late } from './failure.js'
import { clearTimeout, now, setTimeout } from './timers.js'

/**
 * The last milliseconds of a call's `timeout`, left for its answer to come back. Whoever waits for an account gives up before
 * them: a statement sent later might be done after its caller was told that it failed.
 */
export function reserveOf (timeout: number): number {
  return timeout / 10
}

/** Returns what the promise does, or rejects at the deadline, on the clock of `now()`. */
export async function within<T> (deadline: number, promise: Promise<T>): Promise<T> {
  if (deadline === Infinity) return await promise
  let timer: NodeJS.Timeout | undefined
  const expiry = new Promise<never>((_resolve, reject) => {
    timer = setTimeout(() => reject(late()), deadline - now())
  })
  try {
    return await Promise.race([promise, expiry])
  } finally {
    clearTimeout(timer)
  }
}
