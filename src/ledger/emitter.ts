import { channel, type Channel } from 'node:diagnostics_channel'
import { InvalidInputError } from '../errors.js'
import type { CreditsEvents, CreditsListener } from './credits-events.js'

/** The name of an event. */
export type EventName = keyof CreditsEvents

/** Is told of a listener that threw or rejected. */
export type ListenerErrorHandler = (error: unknown, event: EventName) => void

const names: EventName[] = ['deducted', 'refused', 'granted', 'lapsed', 'low', 'exhausted', 'renewed']

const channels = byName((name): Channel => channel(`fastify-ai-credits:${name}`))

/** Who hears of events: a ledger's listeners, and the subscribers of node:diagnostics_channel. */
export class Emitter {
  // Whether it hears only the next one.
  private readonly listeners = byName(() => new Map<CreditsListener<any>, boolean>())

  constructor (private readonly onListenerError: ListenerErrorHandler) {}

  /** Adds a listener; one that is there already stays one. Throws InvalidInputError. */
  add (event: EventName, listener: CreditsListener<any>, once: boolean): void {
    if (typeof listener !== 'function') throw new InvalidInputError('listener', 'must be a function')
    this.of(event).set(listener, once)
  }

  /** Removes a listener. Throws InvalidInputError. */
  remove (event: EventName, listener: CreditsListener<any>): void {
    this.of(event).delete(listener)
  }

  /** Removes all listeners. */
  clear (): void {
    for (const name of names) this.listeners[name].clear()
  }

  /** Whether anybody hears of an event. */
  hears (event: EventName): boolean {
    return this.listeners[event].size > 0 || channels[event].hasSubscribers
  }

  /** Tells everybody. Nothing that a listener does is waited for, or reaches the caller. */
  tell<E extends EventName> (event: E, payload: CreditsEvents[E]): void {
    const listeners = this.listeners[event]
    for (const [listener, once] of [...listeners]) {
      if (once) listeners.delete(listener)
      this.call(event, listener, payload)
    }
    if (channels[event].hasSubscribers) channels[event].publish(payload)
  }

  private async call<E extends EventName> (event: E, listener: CreditsListener<E>, payload: CreditsEvents[E]) {
    try {
      await listener(payload)
    } catch (error) {
      this.onListenerError(error, event)
    }
  }

  private of (event: EventName) {
    if (!names.includes(event)) throw new InvalidInputError('event', `must be one of ${names.join(', ')}`)
    return this.listeners[event]
  }
}

function byName<T> (make: (name: EventName) => T) {
  return Object.fromEntries(names.map(name => [name, make(name)])) as Record<EventName, T>
}
