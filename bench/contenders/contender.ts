import type { Measurement } from '../load.js'

/** A way to charge accounts that is measured. */
export interface Contender {
  name: string
  /** The numbers of callers with which it is measured. Default: all. */
  callers?: number[]
  /** Sets the contender up in an empty database. */
  open (connectionString: string): Promise<Opened>
}

/** A contender that is ready to charge. */
export interface Opened {
  /** Charges one credit. */
  call (userId: string): Promise<unknown>
  /** Makes a load of its own, on the hot account or on all accounts. If it is there, `call` is not used. */
  load? (callers: number, seconds: number, hot: boolean): Promise<Measurement>
  /** Returns the credits charged according to each of its tables. Each sum must equal the acknowledged credits. */
  charged (): Promise<number[]>
  close (): Promise<void>
}

/** The charge that every contender makes. */
export const charge = { credits: 1, operation: 'chat', metadata: { model: 'small', tokens: 120 } }
