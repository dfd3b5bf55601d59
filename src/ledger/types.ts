import type { MigrateInput } from './database/adopt.js'
import type { CreditsEvents, CreditsListener } from './events/types.js'
import type { RecurringAllowance } from './input/allowance.js'
import type { ClientInput } from './input/check.js'
import type { AllowanceTerms } from './operations/allowance.js'
import type { Budget, BudgetDefinition, Budgets, BudgetsInput } from './operations/budgets.js'
import type { Affordability } from './operations/can-afford.js'
import type { Capture, CaptureInput, PricedCaptureInput } from './operations/capture.js'
import type { Deduction, DeductInput, PricedDeductInput } from './operations/deduct.js'
import type { Extension, ExtendInput } from './operations/extend.js'
import type { Grant, GrantInput } from './operations/grant.js'
import type { History, HistoryInput } from './operations/history.js'
import type { Hold, HoldInput } from './operations/hold.js'
import type { OverdraftTerms } from './operations/overdraft.js'
import type { PruneInput, Pruning } from './operations/prune.js'
import type { Reconciliation, ReconcileInput } from './operations/reconcile.js'
import type { Refund, RefundInput } from './operations/refund.js'
import type { Release, ReleaseInput } from './operations/release.js'
import type { Revocation, RevokeInput } from './operations/revoke.js'
import type { Statement, StatementInput } from './operations/statement.js'
import type { Balance } from './posting/balance.js'
import type { Quote, Usage } from './prices/types.js'

/**
 * Accounts of prepaid credits in PostgreSQL. Every method that returns a promise rejects with UnavailableError if the
 * database does not answer.
 */
export interface Credits {
  /**
   * Returns the cost of a usage by the option `prices`, which is the cost that `deduct` and `capture` charge. Does not query
   * the database. Throws NoPriceError and InvalidInputError.
   */
  quote (operation: string, usage: Usage): Quote
  /**
   * Spends credits now. Throws InsufficientCreditsError (nothing is charged), IdempotencyConflictError, NoPriceError
   * (with `usage`), BudgetExceededError and NotFoundError (with `budget`; nothing is charged) and InvalidInputError.
   */
  deduct (input: DeductInput | PricedDeductInput): Promise<Deduction>
  /**
   * Says whether `deduct` would accept this input now, and spends, counts and makes nothing. It waits for no charge in flight, so
   * another call may still spend the credits before the deduct comes: set them aside with `hold` if they must be there. Creates the
   * account if it does not exist. Throws IdempotencyConflictError, NoPriceError (with `usage`), NotFoundError (with `budget`) and
   * InvalidInputError, as `deduct` does; what `deduct` would throw with 402 is the `refusal` of the result.
   */
  canAfford (input: DeductInput | PricedDeductInput): Promise<Affordability>
  /** Returns the balance of an account. Creates the account if it does not exist. Throws InvalidInputError. */
  balance (userId?: string): Promise<Balance>
  /** Returns a page of an account's daily usage. Creates the account if it does not exist. Throws InvalidInputError. */
  history (userId?: string, input?: HistoryInput): Promise<History>
  /**
   * Sets credits aside for work whose cost is known only afterwards. Throws InsufficientCreditsError,
   * IdempotencyConflictError, BudgetExceededError and NotFoundError (with `budget`) and InvalidInputError.
   */
  hold (input: HoldInput): Promise<Hold>
  /**
   * Spends the credits of a hold, or a part of them. If more is captured than is held, the rest comes from the available
   * credits. A lapsed hold can still be captured, from the available credits. Repeating the capture that closed a hold
   * returns the first result again. Throws NotFoundError, HoldClosedError, IdempotencyConflictError, NoPriceError (with
   * `usage`), InvalidInputError, and InsufficientCreditsError (with `shortfall: 'reject'`).
   */
  capture (holdId: string, input?: CaptureInput | PricedCaptureInput): Promise<Capture>
  /**
   * Gives back the credits that a hold still has. Releasing a hold again, or after it has lapsed, changes nothing, and
   * returns the credits that were given back then. Throws NotFoundError, HoldClosedError (the hold was captured) and
   * InvalidInputError.
   */
  release (holdId: string, input?: ReleaseInput): Promise<Release>
  /** Moves the time at which an open hold lapses to later. Throws NotFoundError, HoldClosedError and InvalidInputError. */
  extend (holdId: string, input: ExtendInput): Promise<Extension>
  /** Adds credits: a purchase, a bonus. Throws IdempotencyConflictError and InvalidInputError. */
  grant (input: GrantInput): Promise<Grant>
  /**
   * Takes back the unspent credits of a grant, except those that open holds have set aside. Revoking a grant again changes
   * nothing, and returns the credits that were taken back then. Throws NotFoundError, GrantClosedError (the grant has
   * expired) and InvalidInputError.
   */
  revoke (grantId: string, input?: RevokeInput): Promise<Revocation>
  /**
   * Gives back the spent credits of a usage record, in one or several parts. The credits pay debt first. Then they return
   * to the account's grants, in reverse burn order, to each at most what was spent from it. What is left becomes a grant
   * that does not expire. Throws NotFoundError, RefundExceedsError, IdempotencyConflictError and InvalidInputError.
   */
  refund (input: RefundInput): Promise<Refund>
  /**
   * Sets the allowance of one account, instead of the option `allowance`. It begins with the next renewal, or now if no
   * period is running. `null`: the account gets no further allowance. Throws InvalidInputError.
   */
  setAllowance (userId: string | undefined, allowance: RecurringAllowance | null, input?: ClientInput): Promise<AllowanceTerms>
  /**
   * Allows the available credits of one account to go below zero, down to `-credits`. 0, the initial value: never below
   * zero. Throws InvalidInputError.
   */
  setOverdraft (userId: string | undefined, credits: number, input?: ClientInput): Promise<OverdraftTerms>
  /**
   * Makes a budget: a limit on a part of the account's spending; or replaces its definition. A limit that is left out is removed.
   * One that it had before keeps what it has counted; a new one counts from now on. With another `within` it moves: new charges
   * count in the budgets above it then, and what was charged or held before stays where it was. The name `kind:*` is a template:
   * a charge that names a budget `kind:name` that does not exist makes it, as the template is then. Creates the account if it does
   * not exist. Throws NotFoundError (there is no budget `within`) and InvalidInputError (also for a circle, and for more than 8
   * levels).
   */
  setBudget (userId: string | undefined, budget: string, definition: BudgetDefinition, input?: ClientInput): Promise<Budget>
  /**
   * Removes a budget. Open holds that count in it stay, and its history can still be read. Throws NotFoundError, BudgetInUseError
   * (others are within it) and InvalidInputError.
   */
  removeBudget (userId: string | undefined, budget: string, input?: ClientInput): Promise<void>
  /**
   * Returns a page of an account's budgets by name, or one budget and those above it, as they are at this moment. Creates the account
   * if it does not exist. Throws InvalidInputError.
   */
  budgets (userId?: string, input?: BudgetsInput): Promise<Budgets>
  /**
   * Returns a page of the changes of an account, oldest first, each with the balance after it. Throws InvalidInputError.
   */
  statement (userId?: string, input?: StatementInput): Promise<Statement>
  /**
   * Checks that an account agrees with its usage records, daily usage, holds, grants, entries and budgets. Without `userId`, checks
   * every account. Changes nothing. Throws InvalidInputError.
   */
  reconcile (userId?: string, input?: ReconcileInput): Promise<Reconciliation>
  /**
   * Adds a listener of an event; see CreditsEvents. Calls of this ledger emit events after they have returned. Replays emit
   * none. Neither do calls on the host's `client`, because the host may still roll them back. Adding the same listener
   * again has no effect. Throws InvalidInputError.
   */
  on<E extends keyof CreditsEvents> (event: E, listener: CreditsListener<E>): void
  /** Adds a listener that is called only for the next event. Throws InvalidInputError. */
  once<E extends keyof CreditsEvents> (event: E, listener: CreditsListener<E>): void
  /** Removes a listener that `on` or `once` added. Throws InvalidInputError. */
  off<E extends keyof CreditsEvents> (event: E, listener: CreditsListener<E>): void
  /**
   * Deletes the usage records, closed holds and account events that are older than a given time, in small batches, for all
   * accounts. Balances and daily usage stay, and `reconcile` still finds no difference. A statement then opens with the
   * balance after the last deleted change. A usage record with a newer refund stays until the refund is old enough too.
   * Several processes may prune at once. If pruning is interrupted, call it again. Throws InvalidInputError.
   */
  prune (input: PruneInput): Promise<Pruning>
}

/** A ledger without Fastify. */
export interface Ledger extends Credits {
  /**
   * Creates or upgrades the tables, and adopts tables that existed before the library. Has no time limit. If it is
   * interrupted, the next call continues. Throws SchemaTooNewError, TimeZoneMismatchError and AdoptionError. If you do not
   * call it, the tables must already exist: otherwise the other methods throw MigrationRequiredError.
   */
  migrate (input?: MigrateInput): Promise<void>
  /**
   * Refuses further calls, waits for the calls under way, emits their events and removes all listeners. Does not end the
   * pool: the caller does.
   */
  close (): Promise<void>
}
