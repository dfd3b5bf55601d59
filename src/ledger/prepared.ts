import type { Connection } from './database.js'
import { isUnprepared } from './failure.js'

/** Knows on which connections statements can be prepared under their names. */
export class Prepared {
  private readonly without = new WeakSet<Connection>()

  constructor (private readonly enabled: boolean) {}

  /**
   * Runs a statement under its name, or without one. Where names fail, the statement was not run: it is run once more, and
   * that connection is used without names from then on. That happens where the host's pool resets a session when it comes
   * back (DISCARD ALL), where a tracer writes another comment into each text, and where functions were replaced.
   */
  async run<T> (connection: Connection, name: string, work: (name?: { name: string }) => Promise<T>): Promise<T> {
    if (!this.enabled || this.without.has(connection)) return await work()
    try {
      return await work({ name })
    } catch (error) {
      if (!isUnprepared(error)) throw error
      this.without.add(connection)
      return await work()
    }
  }
}
