import type { Credits, CreditsEvents } from '../../src/index.js'

type Heard = { [E in keyof CreditsEvents]: [event: E, payload: CreditsEvents[E]] }[keyof CreditsEvents]

/** The names of all events. */
export const eventNames = ['deducted', 'refused', 'granted', 'lapsed', 'low', 'exhausted', 'renewed'] as const

/** Hears of events, by default of all; returns a function that returns what was heard since it was last called. */
export function hear (credits: Credits, names: readonly (keyof CreditsEvents)[] = eventNames): () => Promise<Heard[]> {
  const heard: Heard[] = []
  for (const name of names) credits.on(name, payload => { heard.push([name, payload] as Heard) })
  return async () => {
    // Events come in order, so that what has not been heard before this one is not going to be.
    const end = new Promise(resolve => credits.once('granted', resolve))
    await credits.grant({ userId: 'the end', credits: 1 })
    await end
    return heard.splice(0).filter(([, { userId }]) => userId !== 'the end')
  }
}
