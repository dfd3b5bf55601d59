import { UnavailableError } from '../errors.js'
import { Connections } from './connections.js'
import { within } from './deadline.js'
import { asCreditsError, isUseless, mayRepeat } from './failure.js'
import { start, type DatabaseFacts } from './start.js'

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

/** One SQL statement that answers one row. */
export interface Statement {
  /** What the statement is prepared as. */
  name: string
  text: string
  /** The parameters, given the milliseconds that may be spent waiting for a lock. */
  values: (lockTimeout: number) => unknown[]
  /** Whether running it twice changes no more than running it once. */
  repeatable: boolean
}

/** The last column of a statement that locks accounts: what time has done to them, as events are told of it; '' for nothing. */
export const SETTLED = "current_setting('fastify_ai_credits.settled', true) as settled"

/** What a database is used with. */
export interface DatabaseOptions {
  timeout: number
  maxQueue: number
  prepare: boolean
  timeZone: string
}

// The rest is for the answer to come back.
const SHARE_OF_TIME_FOR_LOCKS = 0.9

const BACKOFF = 25 // milliseconds before the second attempt, doubled with each further one

/** Runs statements on connections of a pool, each answered within `timeout`. */
export class Database {
  private starting: Promise<DatabaseFacts> | undefined
  private underWay = 0
  private readonly connections: Connections
  private closed = false
  private readonly closing: (() => void)[] = [] // who is waiting for the calls under way

  /** `onSettled` is told of what time has done to the accounts of a statement. */
  constructor (pool: Pool, private readonly options: DatabaseOptions, private readonly onSettled: (settled: string) => void) {
    this.connections = new Connections(pool, options.maxQueue)
  }

  /**
   * Answers the statement's row. What PostgreSQL rolled back is sent again while there is time, and so is a repeatable
   * statement whose answer was lost. On the host's own `client` it runs once, in the host's transaction, and
   * PostgreSQL's errors are the host's.
   */
  async row (statement: Statement, client?: Queryable): Promise<any> {
    return await this.call(deadline => client === undefined
      ? this.send(statement, deadline)
      : within(deadline, this.runOnClient(client, statement, deadline)))
  }

  /** Runs a call of the ledger, which is to be answered by its deadline: refused once closed, waited for by `close`. */
  async call<T> (work: (deadline: number) => Promise<T>): Promise<T> {
    // Only at the door: a call that came before may still have to connect.
    if (this.closed) throw new UnavailableError(new Error('The ledger is closed'))
    this.underWay++
    try {
      return await work(performance.now() + this.options.timeout)
    } finally {
      this.underWay--
      if (this.underWay === 0) for (const resolve of this.closing) resolve()
    }
  }

  /** What `row` does without a client, as a part of a call. */
  async send (statement: Statement, deadline: number): Promise<any> {
    for (let pause = BACKOFF; ; pause *= 2) {
      try {
        return await this.sendOnce(statement, deadline)
      } catch (error) {
        const wait = pause * (0.5 + Math.random())
        if (!mayRepeat(error, statement.repeatable) || performance.now() + wait >= deadline) throw asCreditsError(error)
        await new Promise(resolve => setTimeout(resolve, wait))
      }
    }
  }

  /** The same without a second attempt, and with the database's own error. */
  async sendOnce (statement: Statement, deadline: number): Promise<any> {
    const { strictIsolation } = await this.start(deadline)
    const row = await this.use(deadline, connection => this.run(connection, statement, strictIsolation, deadline))
    if (row?.settled) this.onSettled(row.settled)
    return row
  }

  /** Lends a connection that answers without a time limit, for migrations. */
  async lend<T> (work: (connection: Connection) => Promise<T>): Promise<T> {
    return await this.call(deadline => this.use(deadline, async connection => {
      await within(deadline, connection.query({ text: 'select' }))
      return await work(connection)
    }, Infinity))
  }

  /** Checks that the database is one that this library can work with; once, unless it fails. */
  async start (deadline = performance.now() + this.options.timeout): Promise<DatabaseFacts> {
    this.starting ??= this.use(deadline, connection =>
      runReadCommitted(connection, () => start(asQueryable(connection), this.options.timeZone)))
    try {
      return await within(deadline, this.starting)
    } catch (error) {
      this.starting = undefined
      throw error
    }
  }

  /** Refuses further calls and waits for those under way. */
  async close (): Promise<void> {
    this.closed = true
    if (this.underWay > 0) await new Promise<void>(resolve => this.closing.push(resolve))
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

  private async run (connection: Connection, { name, text, values }: Statement, strictIsolation: boolean, deadline: number) {
    const query = { text, values: values(lockTimeout(deadline)), ...this.options.prepare && { name } }
    const { rows: [row] } = strictIsolation
      ? await runReadCommitted(connection, () => connection.query(query))
      : await connection.query(query)
    return row
  }

  private async runOnClient (client: Queryable, { text, values }: Statement, deadline: number) {
    if (this.starting === undefined) await start(client, this.options.timeZone) // the pool may have no other connection
    const { rows: [row] } = await client.query(text, values(lockTimeout(deadline)))
    return row
  }
}

function asQueryable (connection: Connection): Queryable {
  return { query: (text, values) => connection.query({ text, values }) }
}

function lockTimeout (deadline: number) {
  return Math.max(1, Math.floor((deadline - performance.now()) * SHARE_OF_TIME_FOR_LOCKS))
}

async function runReadCommitted<T> (connection: Connection, work: () => Promise<T>): Promise<T> {
  await connection.query({ text: 'begin isolation level read committed' })
  try {
    const result = await work()
    const { command } = await connection.query({ text: 'commit' })
    if (command !== 'COMMIT') throw new Error(`COMMIT was answered with ${command}`)
    return result
  } catch (error) {
    await connection.query({ text: 'rollback' })
    throw error
  }
}
