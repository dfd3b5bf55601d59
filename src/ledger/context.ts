import type { ParsedLedgerOptions } from '../options.js'
import type { Database } from './database.js'
import type { Events } from './events.js'
import type { HoldAccounts } from './hold-accounts.js'
import type { Postings } from './postings.js'

/** What every operation of a ledger works with. */
export interface Context {
  database: Database
  /** Deducts, holds, captures and releases, which share statements. */
  postings: Postings
  /** Whose a hold is. */
  holdAccounts: HoldAccounts
  /** What listeners are told. Not of calls on the host's client, which may yet be rolled back. */
  events: Events
  options: ParsedLedgerOptions
  /** The option `allowance` as the ledger's functions take it: JSON with `credits`, and `every` if it renews. */
  allowance: string
}
