import type { Credits } from '../../src/index.js'
import type { Call } from './commands.js'
import type { Reference } from './reference.js'
import { Refusal } from './refusal.js'

/** The outcome of a call: its result, or the code and fields of its error. */
export interface Outcome {
  answer?: any
  refusal?: { code: string } & Partial<Record<typeof FACTS[number] | 'problem', any>>
}

const FACTS = ['field', 'required', 'credits', 'budget', 'period', 'limit', 'used', 'held', 'resetsAt'] as const

/** Makes a call on the ledger and returns its outcome. If the database is unavailable, throws, and the test fails. */
export async function outcomeOf (ledger: Credits, { method, args }: Call): Promise<Outcome> {
  try {
    return { answer: await (ledger[method] as (...args: any[]) => Promise<any>)(...args) }
  } catch (error) {
    const { code, ...facts } = error as NonNullable<Outcome['refusal']>
    if (!code?.startsWith('FST_CREDITS_') || code === 'FST_CREDITS_UNAVAILABLE') throw error
    return refused(code, facts)
  }
}

/** Makes a call on the reference and returns its outcome. */
export function expectedOf (reference: Reference, { method, args }: Call): Outcome {
  try {
    return { answer: (reference[method as 'balance'] as (...args: any[]) => any)(...args) }
  } catch (error) {
    if (!(error instanceof Refusal)) throw error
    return refused(error.code, error.facts)
  }
}

// The field `within` is refused for two reasons, which are told apart by the problem.
function refused (code: string, facts: Record<string, any>): Outcome {
  const told = facts['field'] === 'within' ? [...FACTS, 'problem'] : FACTS
  return { refusal: { code, ...Object.fromEntries(told.map(name => [name, facts[name]]).filter(([, value]) => value !== undefined)) } }
}
