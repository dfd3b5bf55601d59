import { UnavailableError } from '../../errors.js'
import { Connections } from './connections.js'
import { reserveOf, within } from './deadline.js'
import { asCreditsError, isCancelled, isLockTimeout, isUseless, mayRepeat, reasonOf } from './failure.js'
import { Prepared } from './prepared.js'
import { runReadCommitted } from './read-committed.js'
import { inSchema } from './schema.js'
import { readShards, Shards } from './shards.js'
import { checkEncoding, start, type DatabaseFacts } from './start.js'
import { now, setTimeout } from '../timers.js'
import type { Connection, Pool, Queryable, SqlStatement } from './types.js'

/** The options of a ledger that its database needs. */
export interface DatabaseOptions {
  timeout: number
  maxQueue: number
  prepare: boolean
  timeZone: string
  /** The schema of the tables; undefined: found by the search_path. */
  schema?: string | undefined
}

const BACKOFF = 25 // milliseconds before the second attempt; doubled for each further attempt

/** How to run a statement. */
export interface Run {
  /** When the caller stops waiting, on the clock of `now()`. */
  deadline: number
  /**
   * Who retries the statement if it fails. `'database'`: `run` does, until the deadline, if PostgreSQL rolled the statement
   * back. It also retries a repeatable statement that may have been committed. `'caller'`: `run` sends the statement once,
   * and throws the database's error.
   */
  sentAgainBy: 'database' | 'caller'
  /** How many milliseconds the statement may wait for an account's lock. Default: null, it does not wait. */
  patience?: number | null
}

/** What a statement's row tells of besides its calls, see functionCall. */
export interface RowOfCall {
  settled?: string | null
  counted?: string | null
}

/** Runs statements on the connections of a pool. */
export class Database {
  private starting: Promise<DatabaseFacts> | undefined
  private shards: Shards | null | undefined // null: the tables are not distributed; undefined: not known yet
  private underWay = 0
  private readonly connections: Connections
  private readonly prepared: Prepared
  private closed = false
  private readonly closing: (() => void)[] = [] // resolvers of `close` calls that wait for the calls under way
  private interrupt!: (error: UnavailableError) => void
  private readonly untilClosed = new Promise<never>((_resolve, reject) => { this.interrupt = reject })

  /**
   * `onRow` is called with the row of each statement, before whoever has sent it gets it: a row may tell of more than its calls,
   * see functionCall.
   */
  constructor (pool: Pool, private readonly options: DatabaseOptions, private readonly onRow: (row: RowOfCall) => void) {
    this.connections = new Connections(pool, options.maxQueue)
    this.prepared = new Prepared(options.prepare)
    this.untilClosed.catch(() => {}) // its rejection is not an error if nobody waits for it
  }

  /**
   * Runs a call of the ledger. `work` gets the call's deadline. `close` waits for the calls under way. Calls after `close`
   * throw UnavailableError.
   */
  async call<T> (work: (deadline: number) => Promise<T>): Promise<T> {
    // Checked only here, because a call that began before `close` may still have to connect.
    if (this.closed) throw closedError()
    this.underWay++
    try {
      return await work(now() + this.options.timeout)
    } finally {
      this.underWay--
      if (this.underWay === 0) for (const resolve of this.closing) resolve()
    }
  }

  /** Runs a statement and returns its row. Returns the verdict 'busy' if the statement waited for a lock for too long. */
  async run (statement: SqlStatement, { deadline, sentAgainBy, patience = null }: Run): Promise<any> {
    for (let pause = BACKOFF; ; pause *= 2) {
      const began = now()
      try {
        return await this.send(statement, deadline, patience)
      } catch (error) {
        if (sentAgainBy === 'caller') throw error
        const hasWaited = patience !== null && now() - began > BACKOFF
        if (isLockTimeout(error) || (hasWaited && isCancelled(error))) return { verdict: 'busy' }
        const wait = pause * (0.5 + Math.random())
        if (!mayRepeat(error, statement.repeatable) || now() + wait >= deadline) throw asCreditsError(error)
        await new Promise(resolve => setTimeout(resolve, wait))
      }
    }
  }

  /**
   * Runs a statement once on the host's own client, in the host's transaction, and returns its row. The statement waits for
   * the account's lock. Throws PostgreSQL's errors unchanged.
   */
  async runOnClient (client: Queryable, statement: SqlStatement, deadline: number): Promise<any> {
    return await within(deadline, this.sendOnClient(client, statement, deadline))
  }

  /** Returns whether the tables are distributed by Citus. If that is not known yet, it looks, with the host's `client` if given. */
  async isDistributed (deadline: number, client?: Queryable): Promise<boolean> {
    const { shards } = await (client === undefined ? this.findFacts(deadline) : this.factsWith(client))
    return shards !== null
  }

  /** How many connections the pool can have. */
  get maxConnections (): number {
    return this.connections.max
  }

  /** Whether Citus has distributed the tables over nodes; undefined before the start. */
  get distributed (): boolean | undefined {
    return this.shards === undefined ? undefined : this.shards !== null
  }

  /** Returns the node on which the account lives; 0 for all if the tables are not distributed. */
  nodeOf (userId: string): number {
    return this.shards?.nodeOf(userId) ?? 0
  }

  /**
   * Lends a connection without a time limit for statements, for migrations. `close` does not wait for the work. It closes the
   * connection. The database then rolls the running statement back or completes it.
   */
  async lend<T> (work: (connection: Connection) => Promise<T>): Promise<T> {
    return await withReason(this.call(deadline => this.use(deadline, async connection => {
      await within(deadline, checkEncoding(asQueryable(connection)))
      return await Promise.race([work(connection), this.untilClosed])
    }, Infinity)))
  }

  /** Checks that this library can work with the database. Throws an error that says what is wrong. */
  async start (): Promise<void> {
    await withReason(this.findFacts(now() + this.options.timeout))
  }

  /** Refuses further calls and waits for the calls under way. */
  async close (): Promise<void> {
    this.closed = true
    this.interrupt(closedError())
    if (this.underWay > 0) await new Promise<void>(resolve => this.closing.push(resolve))
  }

  private async send (statement: SqlStatement, deadline: number, patience: number | null) {
    const facts = await this.findFacts(deadline)
    const row = await this.use(deadline, connection => this.query(connection, statement, facts,
      patience === null ? null : Math.min(patience, this.lockTimeout(deadline))))
    if (row !== undefined) this.onRow(row)
    return row
  }

  // Runs `start` on the first call. Later calls share its result. If it fails, the next call runs it again.
  private async findFacts (deadline: number): Promise<DatabaseFacts> {
    this.starting ??= this.startOnce(deadline)
    try {
      return await within(deadline, this.starting)
    } catch (error) {
      this.starting = undefined
      throw error
    }
  }

  private async startOnce (deadline: number): Promise<DatabaseFacts> {
    const facts = await this.use(deadline, connection =>
      runReadCommitted(connection, () => start(asQueryable(connection), this.options)))
    const { shards, schema } = facts
    this.shards ??= shards && new Shards(shards, () => this.call(deadline =>
      this.use(deadline, connection => readShards(asQueryable(connection), schema))))
    return facts
  }

  // Starts on the host's client, because the pool may have no other connection.
  private async factsWith (client: Queryable): Promise<DatabaseFacts> {
    return await (this.starting ?? start(client, this.options))
  }

  // A connection that is lost or late is closed instead of reused. Otherwise the pool could run out of connections.
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

  private async query (
    connection: Connection, { name, text, values }: SqlStatement, { strictIsolation, schema }: DatabaseFacts,
    timeout: number | null
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

  private async sendOnClient (client: Queryable, statement: SqlStatement, deadline: number): Promise<any> {
    const { text, values } = statement
    const { schema } = await this.factsWith(client)
    const { rows: [row] } = await client.query(inSchema(text, schema), values(this.lockTimeout(deadline)))
    return row?.verdict === 'settling' ? await this.sendOnClient(client, statement, deadline) : row
  }
}

// Adds the reason to the message of UnavailableError. This is for the log at start, which may show the message only. Calls
// by clients do not add it.
async function withReason<T> (work: Promise<T>): Promise<T> {
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
