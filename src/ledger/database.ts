import { UnavailableError } from '../errors.js'
import { Connections } from './connections.js'
import { reserveOf, within } from './deadline.js'
import { asCreditsError, isCancelled, isLockTimeout, isUseless, mayRepeat, reasonOf } from './failure.js'
import { Prepared } from './prepared.js'
import { runReadCommitted } from './read-committed.js'
import { inSchema } from './schema.js'
import { checkEncoding, start, type DatabaseFacts } from './start.js'
import { now, setTimeout } from './timers.js'

/** Whatever runs SQL: a `pg` client or pool, PGlite, an ORM's adapter. */
export interface Queryable {
  query (text: string, values?: unknown[]): Promise<{ rows: any[] }>
}

/** A connection of a `pg` pool. */
export interface Connection {
  query (query: { text: string, values?: unknown[], name?: string }): Promise<{ rows: any[], command: string }>
  release (broken?: boolean): void
  on (event: 'error', listener: (error: Error) => void): unknown
  off (event: 'error', listener: (error: Error) => void): unknown
}

/** A `pg` pool, as far as the ledger uses it. */
export interface Pool {
  connect (): Promise<Connection>
  on (event: 'error', listener: (error: Error) => void): unknown
  on (event: 'connect', listener: (connection: Connection) => void): unknown
  /** How many connections it can have, and how long it waits for one; without a limit, a call of the ledger sets its own. */
  readonly options?: { max?: number, connectionTimeoutMillis?: number | undefined }
  /** How many connections nobody uses. */
  readonly idleCount?: number
}

/** One SQL statement that returns one row. */
export interface Statement {
  /** What the statement is prepared as. */
  name: string
  /** With the token `:"schema"` before the names of what is the ledger's. */
  text: string
  /** The parameters, given the milliseconds that may be spent waiting for a lock; null: none, see ai_credit_lock. */
  values: (lockTimeout: number | null) => unknown[]
  /** Whether running it twice changes no more than running it once. */
  repeatable: boolean
}

/** What a database is used with. */
export interface DatabaseOptions {
  timeout: number
  maxQueue: number
  prepare: boolean
  timeZone: string
  /** The schema of the tables; undefined: found as PostgreSQL finds them. */
  schema?: string | undefined
}

const BACKOFF = 25 // milliseconds before the second attempt, doubled with each further one

/** Runs statements on connections of a pool, each answered within `timeout`. */
export class Database {
  private starting: Promise<DatabaseFacts> | undefined
  private underWay = 0
  private readonly connections: Connections
  private readonly prepared: Prepared
  private closed = false
  private readonly closing: (() => void)[] = [] // who is waiting for the calls under way
  private interrupt!: (error: UnavailableError) => void
  private readonly untilClosed = new Promise<never>((_resolve, reject) => { this.interrupt = reject })

  /** `onSettled` is told of what time has done to the accounts of a statement. */
  constructor (pool: Pool, private readonly options: DatabaseOptions, private readonly onSettled: (settled: string) => void) {
    this.connections = new Connections(pool, options.maxQueue)
    this.prepared = new Prepared(options.prepare)
    this.untilClosed.catch(() => {}) // most often nobody waits for it
  }

  /**
   * Returns the row of a statement that needs no account's lock. What PostgreSQL rolled back is sent again while there is
   * time, and so is a repeatable statement whose answer was lost. On the host's own `client` any statement runs once, in
   * the host's transaction: it waits for the lock itself, and PostgreSQL's errors are the host's.
   */
  async row (statement: Statement, client?: Queryable): Promise<any> {
    return await this.call(deadline => client === undefined
      ? this.send(statement, deadline, null)
      : within(deadline, this.runOnClient(client, statement, deadline)))
  }

  /** Runs a call of the ledger, which is to be answered by its deadline: refused once closed, waited for by `close`. */
  async call<T> (work: (deadline: number) => Promise<T>): Promise<T> {
    // Only at the door: a call that came before may still have to connect.
    if (this.closed) throw closedError()
    this.underWay++
    try {
      return await work(now() + this.options.timeout)
    } finally {
      this.underWay--
      if (this.underWay === 0) for (const resolve of this.closing) resolve()
    }
  }

  /**
   * What `row` does without a client, as a part of a call. It may wait for a lock for `patience` milliseconds; null: not at
   * all. A row with the verdict 'busy' says that it waited in vain.
   */
  async send (statement: Statement, deadline: number, patience: number | null): Promise<any> {
    for (let pause = BACKOFF; ; pause *= 2) {
      const began = now()
      try {
        return await this.sendOnce(statement, deadline, patience)
      } catch (error) {
        const hasWaited = patience !== null && now() - began > BACKOFF
        if (isLockTimeout(error) || (hasWaited && isCancelled(error))) return { verdict: 'busy' }
        const wait = pause * (0.5 + Math.random())
        if (!mayRepeat(error, statement.repeatable) || now() + wait >= deadline) throw asCreditsError(error)
        await new Promise(resolve => setTimeout(resolve, wait))
      }
    }
  }

  /** The same without a second attempt, and with the database's own error. */
  async sendOnce (statement: Statement, deadline: number, patience: number | null): Promise<any> {
    const facts = await this.learn(deadline)
    const row = await this.use(deadline, connection => this.run(connection, statement, facts,
      patience === null ? null : Math.min(patience, this.lockTimeout(deadline))))
    if (row?.settled) this.onSettled(row.settled)
    return row
  }

  /** How many connections the pool can have. */
  get maxConnections (): number {
    return this.connections.max
  }

  /**
   * Lends a connection on which statements have no time limit, for migrations. `close` does not wait for it: the connection is
   * closed, and what the database was doing is rolled back or ends by itself.
   */
  async lend<T> (work: (connection: Connection) => Promise<T>): Promise<T> {
    return await saying(this.call(deadline => this.use(deadline, async connection => {
      await within(deadline, checkEncoding(asQueryable(connection)))
      return await Promise.race([work(connection), this.untilClosed])
    }, Infinity)))
  }

  /** Checks that the database is one that this library can work with. Throws an error that says what is wrong. */
  async start (): Promise<void> {
    await saying(this.learn(now() + this.options.timeout))
  }

  /** Refuses further calls and waits for those under way. */
  async close (): Promise<void> {
    this.closed = true
    this.interrupt(closedError())
    if (this.underWay > 0) await new Promise<void>(resolve => this.closing.push(resolve))
  }

  // Once, unless it fails.
  private async learn (deadline: number): Promise<DatabaseFacts> {
    this.starting ??= this.use(deadline, connection =>
      runReadCommitted(connection, () => start(asQueryable(connection), this.options)))
    try {
      return await within(deadline, this.starting)
    } catch (error) {
      this.starting = undefined
      throw error
    }
  }

  // One that fails or is late is closed and not given back, so that the pool never runs dry.
  private async use<T> (
    deadline: number, work: (connection: Connection) => Promise<T>, workDeadline = deadline
  ): Promise<T> {
    const connection = await this.connections.take(deadline)
    try {
      const result = await within(workDeadline, work(connection))
      this.connections.giveBack(connection, false)
      return result
    } catch (error) {
      this.connections.giveBack(connection, isUseless(error) || error instanceof UnavailableError)
      throw error
    }
  }

  private async run (
    connection: Connection, { name, text, values }: Statement, { strictIsolation, schema }: DatabaseFacts, timeout: number | null
  ) {
    const query = { text: inSchema(text, schema), values: values(timeout) }
    const { rows: [row] } = await this.prepared.run(connection, name, named => strictIsolation
      ? runReadCommitted(connection, () => connection.query({ ...query, ...named }))
      : connection.query({ ...query, ...named }))
    return row
  }

  private lockTimeout (deadline: number) {
    return Math.max(1, Math.floor(deadline - now() - reserveOf(this.options.timeout)))
  }

  private async runOnClient (client: Queryable, { text, values }: Pick<Statement, 'text' | 'values'>, deadline: number): Promise<any> {
    const { schema } = await (this.starting ?? start(client, this.options)) // the pool may have no other connection
    const { rows: [row] } = await client.query(inSchema(text, schema), values(this.lockTimeout(deadline)))
    return row?.verdict === 'settling' ? await this.runOnClient(client, { text, values }, deadline) : row
  }
}

// Where a process starts, its log shows the message alone. No client sees it.
async function saying<T> (work: Promise<T>): Promise<T> {
  try {
    return await work
  } catch (error) {
    throw error instanceof UnavailableError ? new UnavailableError(error.cause, reasonOf(error.cause)) : error
  }
}

function closedError () {
  return new UnavailableError(new Error('The ledger is closed'))
}

function asQueryable (connection: Connection): Queryable {
  return { query: (text, values) => connection.query({ text, values }) }
}
