/** Anything that runs SQL: a `pg` client or pool, PGlite, an ORM's adapter. */
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

/** The parts of a `pg` pool that the ledger uses. */
export interface Pool {
  connect (): Promise<Connection>
  on (event: 'error', listener: (error: Error) => void): unknown
  on (event: 'connect', listener: (connection: Connection) => void): unknown
  /**
   * How many connections the pool can have, and for how many milliseconds it waits for one. If there is no time limit, a
   * call of the ledger sets its own.
   */
  readonly options?: { max?: number, connectionTimeoutMillis?: number | undefined }
  /** How many open connections are not in use. */
  readonly idleCount?: number
}

/** One SQL statement that returns one row. */
export interface SqlStatement {
  /** The name of the prepared statement. */
  name: string
  /** The SQL, with the token `:"schema"` before the names of the ledger's tables and functions. */
  text: string
  /**
   * Returns the parameters. `lockTimeout`: how many milliseconds the statement may wait for an account's lock; null: it does
   * not wait, see ai_credit_lock.
   */
  values: (lockTimeout: number | null) => unknown[]
  /** Whether running it twice has the same effect as running it once. */
  repeatable: boolean
}
