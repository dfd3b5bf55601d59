import { late } from './failure.js'
import { clearTimeout, now, setTimeout } from '../timers.js'

/**
 * Returns how many of the last milliseconds of `timeout` are reserved for the result to arrive. A call that waits for an
 * account gives up before they begin. Otherwise its statement could still take effect after the caller got an error.
 */
export function reserveOf (timeout: number): number {
  return timeout / 10
}

/** Settles like the promise, but rejects with UnavailableError at the deadline, on the clock of `now()`. */
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
