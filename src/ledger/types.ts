import type { Queryable } from './database.js'
import type { Metadata } from './metadata.js'

/** What an account holds, in credits. `available` is `total - used - held`. */
export interface Balance {
  /** What can be spent now. */
  available: number
  /** What the account was given. */
  total: number
  /** What the account has spent. */
  used: number
  /** What open holds have set aside. */
  held: number
}

/** What `deduct` takes. */
export interface DeductInput {
  /** The account. Default: the default user. */
  userId?: string
  /** Credits to spend: a whole number from 1 to 2^53 - 1. */
  credits: number
  /** What they are spent on: 1 to 255 characters. */
  operation: string
  /** Facts about the usage, for the history: an object of at most 8 KiB of JSON. Default: `{}`. */
  metadata?: Metadata
  /** Names the request, 1 to 255 characters: repeated with the same key, it is answered again and charged once. */
  idempotencyKey?: string
  /**
   * The host's own open client of `pg`, in a transaction: the charge commits or rolls back with the host's writes.
   * Charge last, as the account stays locked until the host's COMMIT; charge several accounts in sorted order. Errors
   * 40P01, 40001 and 55P03 of PostgreSQL come through, and are the host's to retry.
   */
  client?: Queryable
}

/** What `deduct` answers. */
export interface Deduction {
  /** The usage record. */
  id: string
  userId: string
  credits: number
  operation: string
  /** The balance after the charge; of a replay, the balance after the original. */
  balance: Balance
  /** Whether the idempotency key had been used for this request: then nothing was charged now. */
  replayed: boolean
}

/** What `history` takes. */
export interface HistoryInput {
  /** Days of history, today included. Default: the option `historyDays`. */
  days?: number
  /** Entries of one page. Default: the option `historyLimit`. */
  limit?: number
  /** The cursor of the page before. Default: from the newest entry. */
  cursor?: string
}

/** The usage of one day with one operation and the same metadata. */
export interface HistoryEntry {
  /** The day, `YYYY-MM-DD`, in the ledger's time zone. */
  date: string
  /** Credits spent. */
  used: number
  operation: string
  metadata: Metadata
}

/** A page of history: newest day first, within a day the largest first, then by operation. */
export interface History {
  entries: HistoryEntry[]
  /** Where the next page begins; `null` when this is the last. */
  cursor: string | null
}

/** Accounts of prepaid credits in PostgreSQL. Every method throws UnavailableError where the database gives no answer. */
export interface Credits {
  /**
   * Spends credits now. Throws InsufficientCreditsError (nothing is charged), IdempotencyConflictError and
   * InvalidInputError.
   */
  deduct (input: DeductInput): Promise<Deduction>
  /** The balance of an account, which is created if it is not there. Throws InvalidInputError. */
  balance (userId?: string): Promise<Balance>
  /** Daily usage of an account, which is created if it is not there. Throws InvalidInputError. */
  history (userId?: string, input?: HistoryInput): Promise<History>
}

/** A ledger without Fastify. */
export interface Ledger extends Credits {
  /**
   * Creates or upgrades the tables. Throws SchemaTooNewError, and TimeZoneMismatchError. Without it, the tables must
   * be there (MigrationRequiredError).
   */
  migrate (): Promise<void>
  /** Refuses further calls and waits for those under way. The pool stays the caller's to end. */
  close (): Promise<void>
}
