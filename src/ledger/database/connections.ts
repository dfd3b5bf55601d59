import { UnavailableError } from '../../errors.js'
import type { Connection, Pool } from './types.js'
import { within } from './deadline.js'
import { late, tooMany } from './failure.js'
import { clearTimeout, now, setTimeout } from '../timers.js'

/**
 * Lends the connections of a pool to calls, in order of arrival. While the server is down, a pool keeps all requests for
 * connections. So this class never requests more connections than the pool can have. Further calls wait here, where they
 * have a deadline.
 */
export class Connections {
  private reserved = 0 // lent connections and pending requests
  private pending = 0 // requests that the pool has not settled yet
  private readonly waiting = new Set<() => void>()

  constructor (private readonly pool: Pool, private readonly maxQueue: number) {}

  /** How many connections the pool can have; Infinity if the pool does not say so. */
  get max (): number {
    return this.pool.options?.max ?? Infinity
  }

  /**
   * Lends a connection. The caller passes it to `giveBack` after use. Rejects with UnavailableError if it gets none before
   * the deadline, if the pool cannot connect, or if `maxQueue` calls are waiting.
   */
  async take (deadline: number): Promise<Connection> {
    if (this.waiting.size === 0 && this.mayRequest) this.reserve()
    else await this.waitForTurn(deadline)
    const connecting = this.request(deadline)
    try {
      const connection = await within(deadline, connecting)
      connection.on('error', ignore)
      return connection
    } catch (error) {
      connecting.then(connection => this.release(connection, false), ignore) // if it arrives too late
      throw error instanceof UnavailableError ? error : new UnavailableError(error)
    }
  }

  /** Returns a connection to the pool. `broken`: the pool closes it. */
  giveBack (connection: Connection, broken: boolean): void {
    if (!broken) connection.off('error', ignore)
    this.release(connection, broken)
  }

  private release (connection: Connection, broken: boolean) {
    connection.release(broken)
    this.reserved--
    this.wakeWaiting()
  }

  // While the pool has idle connections, there are at most as many requests as idle connections. For further requests, the
  // pool would open new connections and wait for them without a time limit.
  private get mayRequest () {
    const { idleCount = 0 } = this.pool
    return this.reserved < this.max && (idleCount === 0 || this.pending < idleCount)
  }

  private async waitForTurn (deadline: number) {
    if (this.waiting.size >= this.maxQueue) throw tooMany(this.maxQueue)
    await new Promise<void>((resolve, reject) => {
      const timer = setTimeout(() => {
        this.waiting.delete(proceed)
        reject(late())
      }, deadline - now())
      const proceed = () => {
        clearTimeout(timer)
        this.waiting.delete(proceed)
        resolve()
      }
      this.waiting.add(proceed)
    })
  }

  private reserve () {
    this.reserved++
    this.pending++
  }

  private wakeWaiting () {
    for (const proceed of this.waiting) {
      if (!this.mayRequest) return
      this.reserve()
      proceed()
    }
  }

  private async request (deadline: number) {
    let connection: Connection
    try {
      connection = await this.connect(deadline)
    } catch (error) {
      this.reserved--
      this.requestSettled()
      throw error
    }
    this.requestSettled()
    return connection
  }

  private requestSettled () {
    this.pending--
    this.wakeWaiting()
  }

  // If the host has set no connection timeout, this sets one for the single call. Without it, a connection to a server that
  // never answers would keep its place in the pool forever. pg reads the option synchronously, so the host's own calls are
  // not affected.
  private async connect (deadline: number) {
    const { options } = this.pool
    if (options === undefined || options.connectionTimeoutMillis) return await this.pool.connect()
    const { connectionTimeoutMillis } = options
    options.connectionTimeoutMillis = Math.max(1, Math.ceil(deadline - now()))
    const connecting = this.pool.connect()
    options.connectionTimeoutMillis = connectionTimeoutMillis
    return await connecting
  }
}

// The query in flight rejects with the error. The event needs a listener too, because without one it would end the process.
function ignore () {}
