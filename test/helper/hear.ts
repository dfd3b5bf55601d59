import type { Credits, CreditsEvents } from '../../src/index.js'

type Heard = { [E in keyof CreditsEvents]: [event: E, payload: CreditsEvents[E]] }[keyof CreditsEvents]

/** The names of all events. */
export const eventNames = ['deducted', 'refused', 'budget_exceeded', 'granted', 'lapsed', 'low', 'budget_low', 'exhausted', 'renewed'] as const

/** Listens to events, by default to all. Returns a function that returns the events since its last call. */
export function hear (credits: Credits, names: readonly (keyof CreditsEvents)[] = eventNames): () => Promise<Heard[]> {
  const heard: Heard[] = []
  for (const name of names) credits.on(name, payload => { heard.push([name, payload] as Heard) })
  return async () => {
    // Events come in order: any event that has not come before this one will not come at all.
    const end = new Promise(resolve => credits.once('granted', resolve))
    await credits.grant({ userId: 'the end', credits: 1 })
    await end
    return heard.splice(0).filter(([, { userId }]) => userId !== 'the end')
  }
}
