/** The outcome of a call that was not done because its account is locked elsewhere. */
export const BUSY = Symbol('busy')

/** The outcome of a call that was not done because its account does not exist yet. */
export const NEW = Symbol('new')

/**
 * The outcome of a call that was not done because its account has more due changes (lapses, expiries, renewals) than one
 * statement applies. Some of them were applied.
 */
export const SETTLING = Symbol('settling')

/** The outcome of a call in a shared statement that failed. The call must be run alone. */
export const FAILED = Symbol('failed')

/** Why a call could not use its account. */
export type Obstacle = typeof BUSY | typeof NEW | typeof SETTLING

/**
 * `'wait'`: the call may wait for its account. `'create'`: it may create its account, and wait if another transaction is
 * creating it.
 */
export type Patience = 'wait' | 'create'

/** Runs the calls of a queue. */
export interface CallRunner<Call, Result> {
  /**
   * Runs calls as one statement. Calls on the same account are adjacent and in order. Returns for each call its outcome.
   * Never rejects. `patience`: what the statement may wait for, for a short time. 'wait': for the account of the calls, which
   * are on a single one. 'create': for transactions that are creating one of the accounts; it creates those that are missing.
   * undefined: it neither waits nor creates an account.
   */
  together (calls: Call[], patience: Patience | undefined): Promise<Outcome<Result>[]>
  /** Runs one call. `patience`: what it may wait for, for a short time; undefined: it neither waits nor creates an account. */
  alone (call: Call, patience: Patience | undefined): Promise<Result | Obstacle>
}

/** What came of a call in a shared statement. */
export type Outcome<Result> = Result | Error | Obstacle | typeof FAILED

/** Whether an outcome is an obstacle. */
export function isObstacle (outcome: unknown): outcome is Obstacle {
  return outcome === BUSY || outcome === NEW || outcome === SETTLING
}

/** Whether a call with this outcome was not done, and is to be run again. */
export function isUndone (outcome: unknown): outcome is Obstacle | typeof FAILED {
  return outcome === FAILED || isObstacle(outcome)
}
