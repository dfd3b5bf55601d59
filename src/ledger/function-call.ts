import { functions } from '../sql/index.js'

// Types that are a part of SQL's grammar; PostgreSQL looks the others up.
const GRAMMAR = /^(varchar|bigint|integer|boolean)(\[\])?$/

/**
 * The text of a statement that calls one of the ledger's functions, and returns its columns with `settled` after them: what
 * time has done to the accounts, as events are told of it; '' or null for nothing.
 *
 * The first argument is this version's number: functions of that name that were there before 7 have no such parameter, so that
 * a process that is older finds none, instead of one whose verdicts it would misread.
 *
 * Each argument has the very type of its parameter, so that no other function of that name can be meant, whoever made it.
 */
export function functionCall (name: string, types: readonly string[]): string {
  const args = types.map((type, index) => `, $${index + 1}::${GRAMMAR.test(type) ? type : `pg_catalog.${type}`}`)
  return `select *, pg_catalog.current_setting('fastify_ai_credits.settled'::pg_catalog.text, true) as settled
    from :"schema".${name}(${functions.number}${args.join('')})`
}
