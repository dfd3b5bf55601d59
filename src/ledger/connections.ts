import { UnavailableError } from '../errors.js'
import type { Connection, Pool } from './database.js'
import { within } from './deadline.js'
import { late, tooMany } from './failure.js'
import { clearTimeout, now, setTimeout } from './timers.js'

/**
 * A pool's connections, lent to calls in order of arrival. What a pool is asked for while its server is away, it keeps,
 * and so it is never asked for more than it can have: the waiting is done here, where it has an end.
 */
export class Connections {
  private asked = 0 // those that are lent, and those that the pool has yet to answer for
  private unanswered = 0 // the latter
  private readonly waiting = new Set<() => void>()

  constructor (private readonly pool: Pool, private readonly maxQueue: number) {}

  /** How many there can be; a pool of `pg` says so. */
  get max (): number {
    return this.pool.options?.max ?? Infinity
  }

  /** Lends a connection, which `giveBack` is to get. Rejects with an UnavailableError, by the deadline. */
  async take (deadline: number): Promise<Connection> {
    if (this.waiting.size === 0 && this.mayAsk) this.reserve()
    else await this.turn(deadline)
    const connecting = this.ask(deadline)
    try {
      const connection = await within(deadline, connecting)
      connection.on('error', ignore)
      return connection
    } catch (error) {
      connecting.then(connection => this.release(connection, false), ignore) // one that comes too late
      throw error instanceof UnavailableError ? error : new UnavailableError(error)
    }
  }

  /** Takes a connection back; `broken`: nobody is to get it again. */
  giveBack (connection: Connection, broken: boolean): void {
    if (!broken) connection.off('error', ignore)
    this.release(connection, broken)
  }

  private release (connection: Connection, broken: boolean) {
    connection.release(broken)
    this.asked--
    this.next()
  }

  // While the pool has idle connections, no more than those are asked for: the pool would open new ones for the rest, for
  // which it waits without a limit.
  private get mayAsk () {
    const { idleCount = 0 } = this.pool
    return this.asked < this.max && (idleCount === 0 || this.unanswered < idleCount)
  }

  private async turn (deadline: number) {
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
    this.asked++
    this.unanswered++
  }

  private next () {
    for (const proceed of this.waiting) {
      if (!this.mayAsk) return
      this.reserve()
      proceed()
    }
  }

  private async ask (deadline: number) {
    let connection: Connection
    try {
      connection = await this.connect(deadline)
    } catch (error) {
      this.asked--
      this.answered()
      throw error
    }
    this.answered()
    return connection
  }

  private answered () {
    this.unanswered--
    this.next()
  }

  // Without a limit, a connection that a silent server never answers for keeps its place in the pool for good. pg reads
  // the option at once, so the host's own calls have what the host has set.
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

// The query in flight is told of the error; an event that nobody hears would end the process.
function ignore () {}
