import type { CreditsEvents, CreditsListener } from './credits-events.js'
import type { Queryable } from './database.js'
import type { Metadata } from './metadata.js'
import type { RecurringAllowance } from '../options.js'
import type { Quote, Usage } from './prices/types.js'

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

/** What `deduct` takes to charge by usage: its operation's price says how many credits, which may be none. */
export interface PricedDeductInput extends Omit<DeductInput, 'credits'> {
  /** The quantities that the operation is priced by. */
  usage: Usage
  credits?: undefined
}

/** What `deduct` returns. */
export interface Deduction {
  /** The usage record. */
  id: string
  userId: string
  /** Credits spent; of a replay by usage what the original spent, though the price may have changed since. */
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

/** Where a call takes the host's own transaction. */
export interface ClientInput {
  /** The host's own open client of `pg`: the change commits or rolls back with the host's writes; see `deduct`. */
  client?: Queryable
}

/** What `hold` takes. */
export interface HoldInput extends ClientInput {
  /** The account. Default: the default user. */
  userId?: string
  /** Credits to set aside: a whole number from 1 to 2^53 - 1. */
  credits: number
  /** What they will be spent on: 1 to 255 characters. */
  operation: string
  /** Facts about the usage, for the records of its captures. Default: `{}`. */
  metadata?: Metadata
  /** Milliseconds after which the hold lapses: from 1 second to 24 hours. Default: 15 minutes. */
  ttl?: number
  /** Names the request: repeated with the same key, it is answered again and nothing more is held. */
  idempotencyKey?: string
}

/** What `hold` returns. */
export interface Hold {
  /** The hold, for `capture`, `release` and `extend`. */
  id: string
  userId: string
  credits: number
  operation: string
  /** When it lapses. */
  expiresAt: Date
  balance: Balance
  /** Whether the idempotency key had been used for this request. */
  replayed: boolean
}

/** What `capture` takes. */
export interface CaptureInput extends ClientInput {
  /** The hold's account; another one is not found. Default: not checked. */
  userId?: string
  /** Credits to spend: a whole number from 1 to 2^53 - 1, also more than is held. Default: what the hold has left. */
  credits?: number
  /** Facts about the usage, over those of the hold. Default: `{}`. */
  metadata?: Metadata
  /** Close the hold and give back its remainder; `false` keeps the rest held, for parts. Default: true. */
  final?: boolean
  /**
   * Where more is asked than the hold has and the balance covers: take what is there (`'partial'`), or refuse with
   * InsufficientCreditsError and leave the hold as it was (`'reject'`). Default: `'partial'`.
   */
  shortfall?: 'partial' | 'reject'
  /** Names the request, among the captures of this hold: it tells a retry from the next part. */
  idempotencyKey?: string
}

/** What `capture` takes to charge by usage: its operation's price says how many credits, which may be none. */
export interface PricedCaptureInput extends Omit<CaptureInput, 'credits'> {
  /** The hold's operation. With another one nothing is charged (InvalidInputError). */
  operation: string
  /** The quantities that the operation is priced by. */
  usage: Usage
  credits?: undefined
}

/** What `capture` returns. */
export interface Capture {
  /** The usage record. */
  id: string
  holdId: string
  userId: string
  /** Credits spent. */
  credits: number
  /** Credits asked for that were not there. */
  uncollected: number
  balance: Balance
  replayed: boolean
}

/** What `release` takes. */
export interface ReleaseInput extends ClientInput {
  /** The hold's account; another one is not found. Default: not checked. */
  userId?: string
}

/** What `release` returns. */
export interface Release {
  /** The hold. */
  id: string
  userId: string
  /** Credits that are available again. */
  credits: number
  balance: Balance
  /** Whether it had been released, or had lapsed, before. */
  replayed: boolean
}

/** What `extend` takes. */
export interface ExtendInput extends ClientInput {
  /** The hold's account; another one is not found. Default: not checked. */
  userId?: string
  /** Milliseconds from now: from 1 second to 24 hours. A hold is never shortened. */
  ttl: number
}

/** What `extend` returns. */
export interface Extension {
  /** The hold. */
  id: string
  userId: string
  /** Credits still held. */
  credits: number
  /** When it lapses now. */
  expiresAt: Date
  balance: Balance
}

/** What `grant` takes. */
export interface GrantInput extends ClientInput {
  /** The account. Default: the default user. */
  userId?: string
  /** Credits to add: a whole number from 1 to 2^53 - 1, as the total must be too. */
  credits: number
  /** Why, for the statement: 1 to 255 characters. */
  reason?: string
  /** When what is unspent of it leaves the total: a Date or an ISO 8601 time. Default: never. */
  expiresAt?: Date | string
  /** Which grant burns first: the lower number, then the earlier expiry, then the older. 0 to 100. Default: 50. */
  priority?: number
  /** Names the request: repeated with the same key, it is answered again and grants once. */
  idempotencyKey?: string
}

/** What `grant` returns. */
export interface Grant {
  /** The grant, for `revoke`. */
  id: string
  userId: string
  credits: number
  /** When it expires; `null`: never. */
  expiresAt: Date | null
  priority: number
  balance: Balance
  replayed: boolean
}

/** What `revoke` takes. */
export interface RevokeInput extends ClientInput {
  /** The grant's account; another one is not found. Default: not checked. */
  userId?: string
}

/** What `revoke` returns. */
export interface Revocation {
  /** The grant. */
  id: string
  userId: string
  /** Credits taken back. */
  credits: number
  balance: Balance
  /** Whether it had been revoked before. */
  replayed: boolean
}

/** What `refund` takes. */
export interface RefundInput extends ClientInput {
  /** The account of the key, or of the usage record; another one's is not found. Default for a key: the default user. */
  userId?: string
  /** The usage record of a deduct or a capture. Either this or `deductKey`. */
  usageId?: string
  /** The idempotency key of a deduct. */
  deductKey?: string
  /** Credits to give back: a whole number of at least 1. Default: all that was not given back before. */
  credits?: number
  /** Why: 1 to 255 characters. */
  reason?: string
  /** Names the request: repeated with the same key, it is answered again and refunds once. */
  idempotencyKey?: string
}

/** What `refund` returns. */
export interface Refund {
  /** The usage record of the refund, which is negative. */
  id: string
  /** The usage record that it gives back. */
  usageId: string
  userId: string
  /** Credits given back. */
  credits: number
  balance: Balance
  replayed: boolean
}

/** What `setAllowance` returns. */
export interface AllowanceTerms {
  userId: string
  /** The allowance from the next renewal on, or from now where none was running; `null`: none. */
  allowance: RecurringAllowance | null
  /** When the running period ends; `null`: none is running. */
  renewsAt: Date | null
  balance: Balance
}

/** What `setOverdraft` returns. */
export interface OverdraftTerms {
  userId: string
  /** How far below zero `available` may go, in credits. */
  overdraft: number
  balance: Balance
}

/** What `statement` takes. */
export interface StatementInput extends ClientInput {
  /** Entries from this time on: a Date or an ISO 8601 time. Default: from the opening. */
  from?: Date | string
  /** Entries before this time. Default: up to now. */
  to?: Date | string
  /** Entries of one page. Default: the option `historyLimit`. */
  limit?: number
  /** The cursor of the page before. */
  cursor?: string
}

/** One change of an account. */
export interface StatementEntry {
  /** Its place in the account's order; the opening has 0, or after `prune` that of the last change before it. */
  seq: number
  kind: 'opening' | 'grant' | 'deduct' | 'hold' | 'capture' | 'release' | 'lapse' | 'refund' | 'expiry' | 'renewal' |
    'revoke'
  /** When it took effect. */
  at: Date
  /** By how many credits it changed what is available. */
  amount: number
  /** The balance after it. */
  balance: Balance
  /** The usage record, hold or grant that was made. */
  id?: string
  /** The hold of a capture, release or lapse; the grant of an expiry or revoke; the usage record of a refund. */
  referenceId?: string
  operation?: string
  metadata?: Metadata
  reason?: string
  /** Of a charge by usage: the version of the prices. */
  priceVersion?: string
  /** Of a charge by usage: the quantities that it was computed from. */
  usage?: Usage
  /** Of a renewal: periods that ended (0: the first began), credits that expired, the allowance from here on. */
  details?: { periods: number, expired: number, allowance: RecurringAllowance | null }
}

/** A page of an account's changes, oldest first. */
export interface Statement {
  entries: StatementEntry[]
  /** Where the next page begins; `null` when this is the last. */
  cursor: string | null
}

/** What `reconcile` takes. */
export interface ReconcileInput {
  /** Accounts read by one statement. Default: 1000. */
  batch?: number
  /** Told after each batch. */
  onProgress?: (progress: { accounts: number, differences: number }) => void
}

/** An identity that does not hold. */
export interface Difference {
  userId: string
  /** What does not add up: `records`, `dailyUsage`, `holds`, `grants` or `entries`. */
  identity: string
  /** What the account says. */
  expected: number
  /** What its rows add up to. */
  actual: number
}

/** What `reconcile` returns. */
export interface Reconciliation {
  /** Whether every identity holds. */
  ok: boolean
  /** Accounts that were checked. */
  accounts: number
  differences: Difference[]
}

/** What `prune` takes. */
export interface PruneInput {
  /**
   * Usage records from before this time go: a Date or an ISO 8601 time, in the past. Their idempotency keys go with
   * them, so leave far more time than any client takes to repeat a request.
   */
  before: Date | string
  /** Changes of accounts that one transaction does away with, at most. Default: 1000. */
  batch?: number
  /** Told after each batch, and waited for, so that it can slow down; to stop, let it throw. */
  onProgress?: (progress: Pruning) => unknown
}

/** How far `prune` has come, and what it returns at its end. */
export interface Pruning {
  /** Accounts that it is done with. */
  accounts: number
  /** Usage records that were deleted. */
  records: number
}

/** Accounts of prepaid credits in PostgreSQL. Every method throws UnavailableError where the database gives no answer. */
export interface Credits {
  /**
   * What a usage costs by the option `prices`: what `deduct` and `capture` charge for it. Asks no database. Throws
   * NoPriceError and InvalidInputError.
   */
  quote (operation: string, usage: Usage): Quote
  /**
   * Spends credits now. Throws InsufficientCreditsError (nothing is charged), IdempotencyConflictError, NoPriceError
   * (with `usage`) and InvalidInputError.
   */
  deduct (input: DeductInput | PricedDeductInput): Promise<Deduction>
  /** The balance of an account, which is created if it is not there. Throws InvalidInputError. */
  balance (userId?: string): Promise<Balance>
  /** Daily usage of an account, which is created if it is not there. Throws InvalidInputError. */
  history (userId?: string, input?: HistoryInput): Promise<History>
  /**
   * Sets credits aside, for a call whose cost is known only afterwards. Throws InsufficientCreditsError,
   * IdempotencyConflictError and InvalidInputError.
   */
  hold (input: HoldInput): Promise<Hold>
  /**
   * Turns a hold, or a part of it, into spending; what goes beyond it is drawn from what is available. One that has
   * lapsed is charged all the same, as far as credits are available. Repeating the capture that closed a hold returns
   * it again. Throws NotFoundError, HoldClosedError, IdempotencyConflictError, NoPriceError (with `usage`),
   * InvalidInputError, and InsufficientCreditsError (`shortfall: 'reject'`).
   */
  capture (holdId: string, input?: CaptureInput | PricedCaptureInput): Promise<Capture>
  /**
   * Gives back what a hold has left; releasing it again, or after it has lapsed, returns the same. Throws
   * NotFoundError, HoldClosedError (it was captured) and InvalidInputError.
   */
  release (holdId: string, input?: ReleaseInput): Promise<Release>
  /** Lets an open hold live longer. Throws NotFoundError, HoldClosedError and InvalidInputError. */
  extend (holdId: string, input: ExtendInput): Promise<Extension>
  /** Adds credits: a purchase, a bonus. Throws IdempotencyConflictError and InvalidInputError. */
  grant (input: GrantInput): Promise<Grant>
  /**
   * Takes back what is unspent of a grant, but for what open holds keep of it; revoking it again returns the same.
   * Throws NotFoundError, GrantClosedError (it has expired) and InvalidInputError.
   */
  revoke (grantId: string, input?: RevokeInput): Promise<Revocation>
  /**
   * Gives spent credits back, in parts up to the whole of a usage record. They pay debt first, then return to the
   * grants that they came from, the last to burn first; what fits in none becomes a grant that does not expire. Throws
   * NotFoundError, RefundExceedsError, IdempotencyConflictError and InvalidInputError.
   */
  refund (input: RefundInput): Promise<Refund>
  /**
   * Gives one account an allowance of its own: from its next renewal on, or at once where none is running; `null`:
   * none any more. Throws InvalidInputError.
   */
  setAllowance (userId: string | undefined, allowance: RecurringAllowance | null, input?: ClientInput): Promise<AllowanceTerms>
  /** Lets one account go below zero, down to `-credits`; 0: never, as at first. Throws InvalidInputError. */
  setOverdraft (userId: string | undefined, credits: number, input?: ClientInput): Promise<OverdraftTerms>
  /** Every change of an account, oldest first, each with the balance after it. Throws InvalidInputError. */
  statement (userId?: string, input?: StatementInput): Promise<Statement>
  /**
   * Checks that an account, or every account where none is named, agrees with its records, daily usage, holds, grants
   * and entries. Reads only. Throws InvalidInputError.
   */
  reconcile (userId?: string, input?: ReconcileInput): Promise<Reconciliation>
  /**
   * Hears of what this process's calls bring about, after their callers; see CreditsEvents. Not of replays, and not of
   * calls on the host's `client`, which may yet be rolled back. A listener is added once, however often it is given.
   * Throws InvalidInputError.
   */
  on<E extends keyof CreditsEvents> (event: E, listener: CreditsListener<E>): void
  /** The same, of the next one only. */
  once<E extends keyof CreditsEvents> (event: E, listener: CreditsListener<E>): void
  /** Ends what `on` or `once` began. Throws InvalidInputError. */
  off<E extends keyof CreditsEvents> (event: E, listener: CreditsListener<E>): void
  /**
   * Deletes the usage records of all accounts from before a time, in small batches, with the closed holds and the events
   * of then. Balances and daily usage stay, and so does what `reconcile` checks; a statement opens with the balance after
   * the last change that is gone. A record that was refunded since then stays until its refunds are as old. Several
   * processes may prune at once; one that was interrupted is repeated. Throws InvalidInputError.
   */
  prune (input: PruneInput): Promise<Pruning>
}

/** How far the adoption of tables is that were there before the library. */
export interface AdoptionProgress {
  /**
   * What is done: `columns` get their types, `records` get their place in their account's order, and records are summed up
   * by `days`.
   */
  step: 'columns' | 'records' | 'days'
  /** Usage records with which this step is done, of those that there were when it began. */
  done: number
  /** Usage records that there were when this step began. */
  total: number
}

/** What `migrate` can be given. */
export interface MigrateInput {
  /** Hears how far the adoption is of tables that were there before the library. */
  onProgress?: (progress: AdoptionProgress) => void
}

/** A ledger without Fastify. */
export interface Ledger extends Credits {
  /**
   * Creates or upgrades the tables, and adopts those that were there before. It has no time limit; interrupted, the next
   * call goes on. Throws SchemaTooNewError, TimeZoneMismatchError, and AdoptionError. Without it, the tables must be there
   * (MigrationRequiredError).
   */
  migrate (input?: MigrateInput): Promise<void>
  /**
   * Refuses further calls, waits for those under way, tells listeners of them and removes these. The pool stays the
   * caller's to end.
   */
  close (): Promise<void>
}
