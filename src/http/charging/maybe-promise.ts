/** A value, or a promise of it. */
export type MaybePromise<T> = T | PromiseLike<T>

/**
 * Calls `next` with a value: at once if the value is there, otherwise when its promise resolves. A reply that waits for
 * nothing must be sent synchronously. While it is not sent, Fastify takes a second `send`, or the handler's return, for
 * another reply.
 */
export function andThen<T, R> (value: MaybePromise<T>, next: (value: T) => MaybePromise<R>): MaybePromise<R> {
  return isThenable(value) ? value.then(next) : next(value as T)
}

/** Returns true if a value is a promise, or another object with `then`. */
export function isThenable (value: unknown): value is PromiseLike<unknown> {
  return typeof (value as PromiseLike<unknown> | null | undefined)?.then === 'function'
}
