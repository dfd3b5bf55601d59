import type { Credits } from '../../src/index.js'
import { Refusal, type Reference } from './reference.js'
import type { Call } from './commands.js'

/** What a call came to: its answer, or what its error tells. */
export interface Outcome {
  answer?: any
  refusal?: { code: string, field?: string, required?: number, credits?: object }
}

/** What the ledger makes of a call. That it cannot be reached is no answer, and fails the test. */
export async function outcomeOf (ledger: Credits, { method, args }: Call): Promise<Outcome> {
  try {
    return { answer: await (ledger[method] as (...args: any[]) => Promise<any>)(...args) }
  } catch (error) {
    const { code, field, required, credits } = error as NonNullable<Outcome['refusal']>
    if (!code?.startsWith('FST_CREDITS_') || code === 'FST_CREDITS_UNAVAILABLE') throw error
    return refused(code, { field, required, credits })
  }
}

/** What the reference makes of it. */
export function expectedOf (reference: Reference, { method, args }: Call): Outcome {
  try {
    return { answer: (reference[method as 'balance'] as (...args: any[]) => any)(...args) }
  } catch (error) {
    if (!(error instanceof Refusal)) throw error
    return refused(error.code, error.facts)
  }
}

function refused (code: string, facts: object): Outcome {
  return { refusal: { code, ...Object.fromEntries(Object.entries(facts).filter(([, value]) => value !== undefined)) } }
}
