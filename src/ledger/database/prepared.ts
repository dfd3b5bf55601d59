import type { Connection } from './types.js'
import { isUnprepared } from './failure.js'

/** Runs statements as named prepared statements, on connections that allow it. */
export class Prepared {
  private readonly without = new WeakSet<Connection>()

  constructor (private readonly enabled: boolean) {}

  /**
   * Calls `work` with the statement's name, or without a name. If the name cannot be used, the statement was not run: `work`
   * is called again without a name, and this connection is used without names from then on. Names fail if the host's pool
   * resets sessions (DISCARD ALL), if a tracer adds a different comment to each text, and if functions were replaced.
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
