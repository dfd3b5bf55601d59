/**
 * The clock and the timers as they were when this module was loaded. A test that freezes them afterwards (fake timers)
 * does not freeze the ledger, which would otherwise never send what its queue holds.
 */
export const { setTimeout, clearTimeout, setImmediate } = globalThis

/** Milliseconds on a clock that never goes back. */
export const now: () => number = performance.now.bind(performance)
