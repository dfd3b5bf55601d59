/** A value, or a promise of it. */
export type MaybePromise<T> = T | PromiseLike<T>

/**
 * Goes on with a value: at once where it is there. A reply that waits for nothing must stay synchronous, as Fastify
 * takes a second `send`, or a handler that returns, for another reply while the first one is not sent.
 */
export function andThen<T, R> (value: MaybePromise<T>, next: (value: T) => MaybePromise<R>): MaybePromise<R> {
  return isThenable(value) ? value.then(next) : next(value as T)
}

/** Whether a value is a promise of one. */
export function isThenable (value: unknown): value is PromiseLike<unknown> {
  return typeof (value as PromiseLike<unknown> | null | undefined)?.then === 'function'
}
