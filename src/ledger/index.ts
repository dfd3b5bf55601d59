import { openLedger } from './open.js'
import { parseLedgerOptions, type LedgerOptions } from './options.js'
import type { Pool } from './database/types.js'
import type { Ledger } from './types.js'

export * from '../errors.js'
export type * from './budgets/types.js'
export type { AdoptionProgress, MigrateInput } from './database/adopt.js'
export type { Connection, Pool, Queryable } from './database/types.js'
export type * from './events/types.js'
export type { RecurringAllowance } from './input/allowance.js'
export type { ClientInput } from './input/check.js'
export type { Metadata } from './input/metadata.js'
export type { AllowanceTerms } from './operations/allowance.js'
export type { Budget, BudgetDefinition, Budgets, BudgetsInput } from './operations/budgets.js'
export type { Affordability } from './operations/can-afford.js'
export type { Capture, CaptureInput, PricedCaptureInput } from './operations/capture.js'
export type { Deduction, DeductInput, PricedDeductInput } from './operations/deduct.js'
export type { Extension, ExtendInput } from './operations/extend.js'
export type { Grant, GrantInput } from './operations/grant.js'
export type { History, HistoryEntry, HistoryInput } from './operations/history.js'
export type { Hold, HoldInput } from './operations/hold.js'
export type { OverdraftTerms } from './operations/overdraft.js'
export type { PruneInput, Pruning } from './operations/prune.js'
export type { Difference, Reconciliation, ReconcileInput } from './operations/reconcile.js'
export type { Refund, RefundInput } from './operations/refund.js'
export type { Release, ReleaseInput } from './operations/release.js'
export type { Revocation, RevokeInput } from './operations/revoke.js'
export type { Statement, StatementEntry, StatementInput } from './operations/statement.js'
export type { LedgerOptions } from './options.js'
export type { Balance } from './posting/balance.js'
export type * from './prices/types.js'
export type { Credits, Ledger } from './types.js'

/**
 * Creates a ledger without Fastify: for a worker, a script, a webhook. `pool` is a pool of `pg`. The ledger does not end it.
 * Throws InvalidOptionError.
 */
export function createLedger (pool: Pool, options: LedgerOptions = {}): Ledger {
  const { credits, migrate, close } = openLedger(pool, parseLedgerOptions(options))
  return { ...credits, migrate: ({ onProgress } = {}) => migrate({ onProgress }), close }
}
