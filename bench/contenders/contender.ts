import type { Measurement } from '../load.js'

/** A way to charge accounts. */
export interface Contender {
  name: string
  /** With how many callers it is measured; left out, with each number. */
  callers?: number[]
  /** Sets it up in an empty database. */
  open (connectionString: string): Promise<Opened>
}

/** A contender at work. */
export interface Opened {
  /** Charges one credit. */
  call (userId: string): Promise<unknown>
  /** Instead of calls: a load of its own, on the hot account or on all. */
  load? (callers: number, seconds: number, hot: boolean): Promise<Measurement>
  /** What its tables say was charged, each by itself: all must be what was acknowledged. */
  charged (): Promise<number[]>
  close (): Promise<void>
}

/** The charge that everyone makes. */
export const charge = { credits: 1, operation: 'chat', metadata: { model: 'small', tokens: 120 } }
