import { channel, type Channel } from 'node:diagnostics_channel'
import { InvalidInputError } from '../../errors.js'
import type { CreditsEvents, CreditsListener } from './types.js'

/** The name of an event. */
export type EventName = keyof CreditsEvents

/** Handles the error of a listener that threw or rejected. */
export type ListenerErrorHandler = (error: unknown, event: EventName) => void

const names: EventName[] = ['deducted', 'refused', 'budget_exceeded', 'granted', 'lapsed', 'low', 'budget_low', 'exhausted', 'renewed']

const channels = byName((name): Channel => channel(`fastify-ai-credits:${name}`))

/** Emits the events of a ledger to its listeners, and to the subscribers of node:diagnostics_channel. */
export class Emitter {
  // The value is true for a listener that `once` has added.
  private readonly listeners = byName(() => new Map<CreditsListener<any>, boolean>())

  constructor (private readonly onListenerError: ListenerErrorHandler) {}

  /** Adds a listener. A listener that is added again is still called once per event. Throws InvalidInputError. */
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

  /** Returns whether an event has listeners or subscribers. */
  hasListeners (event: EventName): boolean {
    return this.listeners[event].size > 0 || channels[event].hasSubscribers
  }

  /** Calls all listeners and subscribers. Does not wait for them. Their errors go to `onListenerError`, not to the caller. */
  emit<E extends EventName> (event: E, payload: CreditsEvents[E]): void {
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
