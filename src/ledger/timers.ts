/**
 * The timers of the moment when this module was loaded. If a test replaces the global timers later (fake timers), the
 * ledger still runs. Otherwise it would never send its queue.
 */
export const { setTimeout, clearTimeout, setImmediate } = globalThis

/** Returns the time in milliseconds, on a clock that never goes back. Fake timers do not affect it either. */
export const now: () => number = performance.now.bind(performance)
