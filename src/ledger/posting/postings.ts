import { BUSY, FAILED, NEW, type Obstacle, type Patience } from './call-runner.js'
import { CallQueue } from './call-queue.js'
import type { Database } from '../database/database.js'
import type { Queryable, SqlStatement } from '../database/types.js'
import { reserveOf, within } from '../database/deadline.js'
import { asCreditsError, isConnectionLost, isLockTimeout, isOurs, isServersFault, late } from '../database/failure.js'
import { functionCall } from './function-call.js'
import type { QueuedCall } from './lane.js'
import { now } from '../timers.js'
import type { Verdict } from './verdict.js'
import { OBSTACLES, readResults, writeCalls } from './wire.js'

const EXECUTE = functionCall('ai_credit_execute', [
  'varchar', 'varchar[]', 'jsonb', 'jsonb', 'boolean', 'integer', 'boolean'
])

/** A call on one account, with the statement that runs it. */
export interface Posting {
  /**
   * The account. null: the account of the hold, grant or usage record that the call names. The row of its statement then
   * contains the account as `user_id`.
   */
  userId: string | null
  /**
   * The call without its account, in the form that the SQL function ai_credit_execute takes: the elements of a JSON array,
   * the kind first. If undefined, the call cannot share a statement with others.
   */
  call?: string
  /** Whether it creates its account if it is missing. Default: true. */
  createsAccount?: boolean
  /** Names the idempotency key or the hold of the call. No other call in its statement may have the same token. */
  token?: string | undefined
  /** The columns of the result besides verdict, id, total, used and held, when the call shares a statement. */
  columns?: readonly string[]
  /** The statement that runs this call alone. */
  statement: SqlStatement
}

/** Runs postings. */
export interface Postings {
  /**
   * Runs a posting, alone or in a statement shared with others, and returns its row. Calls on one account are run in order
   * of arrival. With the host's `client`, the posting is run alone.
   */
  post (posting: Posting, deadline: number, client?: Queryable): Promise<any>
  /**
   * Runs a posting that rarely needs the account's lock, and returns its row. The posting is tried at once, whatever else is
   * under way on the account. If it meets an obstacle, it waits its turn like any other.
   */
  attempt (posting: Posting, deadline: number, client?: Queryable): Promise<any>
  /** Whether no posting is under way with which another one could share a statement. */
  readonly idle: boolean
  /** How many calls wait for their turn. */
  readonly length: number
}

/** The options that all postings of a ledger share. */
export interface PostingOptions {
  allowance: string
  options: { readonly maxQueue: number, readonly timeout: number }
  /** Called for each statement that is sent with calls that can be shared, with the number of these calls. */
  onSend: (calls: number) => void
  /** Returns whether listeners want to hear of limits of budgets that have less left. */
  tellsOfBudgets: () => boolean
}

interface Call extends Posting, QueuedCall {
  userId: string
}

// How many milliseconds a statement may wait for an account. After that, other calls get their turn. In a pool of one
// connection, all other calls wait meanwhile. A statement that creates an account is rolled back if it takes longer, so its
// limit allows for a slow machine.
const PATIENCE = { wait: 250, create: 2000 }
const PATIENCE_OF_ONE = { wait: 25, create: 500 }

// The same for a statement that creates several accounts. While it waits for one, the other accounts wait as well.
const CREATE_TOGETHER = 25

/** The name of the queue's lane for statements without an account. No account has this name. */
export const NO_ACCOUNT = ''

/** Opens the postings of a ledger. They share statements if possible. */
export function openPostings (database: Database, { allowance, options, onSend, tellsOfBudgets }: PostingOptions): Postings {
  const patience = database.maxConnections === 1 ? PATIENCE_OF_ONE : PATIENCE
  const patienceTogether = { wait: patience.wait, create: CREATE_TOGETHER }
  const reserve = reserveOf(options.timeout)
  // The call with the first deadline must not be done after it was rejected.
  const patienceOf = (kind: Patience, deadlines: number[]) =>
    Math.max(1, Math.floor(Math.min(patienceTogether[kind], Math.min(...deadlines) - now() - reserve)))
  const queue = new CallQueue<Call, Verdict>({
    async alone ({ call, statement, deadline }, kind) {
      if (call !== undefined) onSend(1)
      const row = await database.run(statement, {
        deadline, sentAgainBy: 'database', patience: kind === undefined ? null : patience[kind]
      })
      return OBSTACLES[row.verdict] ?? row
    },
    async together (calls, kind) {
      let sent: Call[] = []
      const deadlines = calls.map(({ deadline }) => deadline)
      try {
        const row = await database.run({
          name: 'ai_credit_execute',
          text: EXECUTE,
          values: lockTimeout => {
            sent = calls.filter(({ deadline }) => deadline > now()) // the other calls have already been rejected
            onSend(sent.length)
            const [userIds, written] = writeCalls(sent)
            return [userIds[0], userIds, written, allowance, kind === 'create', lockTimeout, tellsOfBudgets()]
          },
          repeatable: false
        }, {
          deadline: Math.max(...deadlines),
          sentAgainBy: 'caller',
          patience: kind === undefined ? null : patienceOf(kind, deadlines)
        })
        const results = readResults(sent, row)
        let place = 0
        return calls.map(call => call === sent[place] ? results[place++]! : late())
      } catch (error) {
        const obstacle = obstacleOf(error, kind)
        return calls.map(({ statement }) => obstacle ?? afterFailure(error, statement.repeatable))
      }
    }
  }, {
    maxQueue: options.maxQueue, patient: placesFor(database.maxConnections), reserve, nodeOf: userId => database.nodeOf(userId)
  })
  let attempts = 0 // under way, of postings that can share a statement

  async function attempt (posting: Posting, deadline: number): Promise<any> {
    if (posting.call !== undefined) onSend(1)
    const row = await database.run(posting.statement, { deadline, sentAgainBy: 'database' })
    const obstacle = OBSTACLES[row.verdict]
    if (obstacle === undefined) return row
    const userId = row.user_id ?? posting.userId // the row has no user_id if the posting names the account
    return await within(deadline, queue.add({ userId, statement: posting.statement, apart: true, deadline }, obstacle))
  }

  return {
    get idle () {
      return queue.idle && attempts === 0
    },
    get length () {
      return queue.length
    },
    async attempt (posting, deadline, client) {
      if (client !== undefined) return await database.runOnClient(client, posting.statement, deadline)
      if (posting.call === undefined) return await attempt(posting, deadline)
      attempts++
      try {
        return await attempt(posting, deadline)
      } finally {
        attempts--
      }
    },
    post (posting, deadline, client) {
      const { userId } = posting
      if (client !== undefined) return database.runOnClient(client, posting.statement, deadline)
      if (userId === null) return this.attempt(posting, deadline)
      return queue.add(Object.assign(posting, { userId, deadline, apart: posting.call === undefined }))
    }
  }
}

// How many connections may wait for accounts. Most connections are kept for the host and for calls that do not wait.
function placesFor (connections: number) {
  return Math.max(1, Math.min(4, Math.floor(connections * 0.4)))
}

// Returns what a shared statement waited for without success, if that is why it failed.
function obstacleOf (error: unknown, kind: Patience | undefined): Obstacle | undefined {
  if (kind === undefined || !isLockTimeout(error)) return undefined
  return kind === 'wait' ? BUSY : NEW
}

// Returns the outcome of a call in a shared statement that failed. If PostgreSQL rolled the statement back, one of the calls
// may be the cause, so each is run alone (FAILED). If the statement may have been committed, only repeatable calls are run
// again. No call is run again after an error of this library, or if the server refuses every statement.
function afterFailure (error: unknown, repeatable: boolean): Error | typeof FAILED {
  if (isOurs(error) || isServersFault(error) || (isConnectionLost(error) && !repeatable)) return asCreditsError(error) as Error
  return FAILED
}
