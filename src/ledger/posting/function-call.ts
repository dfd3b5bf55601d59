import { functions } from '../../sql/index.js'

// Types with names that are part of SQL's grammar. PostgreSQL looks other types up, so they need their schema.
const GRAMMAR = /^(varchar|bigint|integer|boolean)(\[\])?$/

/**
 * Returns the text of a statement that calls one of the ledger's SQL functions. The statement returns the columns of the
 * function. If it locks accounts, one of them is `settled`: the accounts to which it applied due changes (lapses, expiries,
 * renewals), in the form of ai_credit_settled; null if there are none. If it makes charges, one is `counted`: the limits of budgets
 * that have less left, in the form of ai_credit_count; null if there are none, or if the caller did not ask for them.
 *
 * The first argument is this version's number. Functions before number 7 had no such parameter. An older process therefore
 * does not find the new function, which could return verdicts that the process does not know.
 *
 * Each argument is cast to the exact type of its parameter. The call can then not match another function of the same name.
 */
export function functionCall (name: string, types: readonly string[]): string {
  const args = types.map((type, index) => `, $${index + 1}::${GRAMMAR.test(type) ? type : `pg_catalog.${type}`}`)
  return `select * from :"schema".${name}(${functions.number}${args.join('')})`
}
