import type { ParsedLedgerOptions } from '../options.js'
import type { Database } from './database.js'

/** What every operation of a ledger works with. */
export interface Context {
  database: Database
  options: ParsedLedgerOptions
  /** The option `allowance` as the ledger's functions take it: JSON with `credits`, and `every` if it renews. */
  allowance: string
}
