import type { Database } from './database/database.js'
import type { Events } from './events/events.js'
import type { ParsedLedgerOptions } from './options.js'
import type { Owners } from './posting/owners.js'
import type { Postings } from './posting/postings.js'

/** The parts of a ledger that its operations use. */
export interface Context {
  database: Database
  /** Runs the calls that change or read an account. Deducts, holds, captures and releases share statements. */
  postings: Postings
  /** Finds the account of a hold, a grant or a usage record. */
  owners: Owners
  /** Emits events. Calls on the host's client emit none, because the host may still roll them back. */
  events: Events
  options: ParsedLedgerOptions
  /** The option `allowance` in the form that the SQL functions take: JSON with `credits`, and `every` if it renews. */
  allowance: string
}

/** The context of one call of an operation. */
export interface Call extends Context {
  /** When the caller stops waiting, on the clock of `now()`. */
  deadline: number
}
