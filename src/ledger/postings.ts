import { BUSY, CallQueue, FAILED, NEW, SETTLING, type Obstacle } from './call-queue.js'
import type { Database, Queryable, Statement } from './database.js'
import { reserveOf, within } from './deadline.js'
import { asCreditsError, isConnectionLost, isOurs, isServersFault, late } from './failure.js'
import { functionCall } from './function-call.js'
import type { QueuedCall } from './lane.js'
import { now } from './timers.js'
import type { Verdict } from './verdict.js'

const EXECUTE = functionCall('ai_credit_execute', ['varchar[]', 'jsonb', 'jsonb', 'varchar'])

/** A call on one account. */
export interface Posting {
  /** null: the one of the hold, grant or usage record that the call names; its statement's row tells it, as `user_id`. */
  userId: string | null
  /**
   * What else it says, as the SQL function ai_credit_execute takes it: the elements of a JSON array, its kind first.
   * Without, it cannot share a statement with others.
   */
  call?: string
  /** What no other call of its statement may share: its key or its hold. */
  token?: string | undefined
  /** Its answer beyond the verdict, id, total, used and held: these columns of the statement's row. */
  columns?: readonly string[]
  /** The same alone. */
  statement: Statement
}

/** Runs postings. */
export interface Postings {
  /**
   * Returns the row of the posting's statement, which others may have shared. Calls on one account are run in order of
   * arrival. On the host's `client` it goes alone.
   */
  post (posting: Posting, client?: Queryable): Promise<any>
  /** The same for what seldom needs the account's lock: it is tried at once, whatever else is under way on the account. */
  attempt (posting: Posting, client?: Queryable): Promise<any>
  /** Whether nothing is under way that a further call could have shared a statement with. */
  readonly idle: boolean
  /** Calls that wait for their turn. */
  readonly length: number
}

/** What all of a process's postings have in common. */
export interface PostingOptions {
  allowance: string
  /** Whose time zone is known when the ledger has started. */
  options: { readonly timeZone: string, readonly maxQueue: number, readonly timeout: number }
  /** Is told how many calls share a statement, of each that is sent and could be shared. */
  onSend: (calls: number) => void
}

interface Call extends Posting, QueuedCall {
  userId: string
}

const NONE: readonly string[] = []

const VERDICTS = ['busy', 'accepted', 'replayed', 'conflict', 'insufficient', 'missing', 'closed', 'operation', 'new', 'settling']

const OBSTACLES: Partial<Record<string, Obstacle>> = { busy: BUSY, new: NEW, settling: SETTLING }

// For how many milliseconds a statement waits for an account. Then others have their turn; in a pool of one, all others. What
// creates an account is given back if it takes longer than that, so it has long enough for a slow machine.
const PATIENCE = { wait: 250, create: 2000 }
const PATIENCE_OF_ONE = { wait: 25, create: 500 }

/** Where statements are that have no account, or do not know it yet. No account has this name. */
export const NO_ACCOUNT = ''

/** Postings on a database, which share statements where they can. */
export function openPostings (database: Database, { allowance, options, onSend }: PostingOptions): Postings {
  const patience = database.maxConnections === 1 ? PATIENCE_OF_ONE : PATIENCE
  const queue = new CallQueue<Call, Verdict>({
    async alone ({ call, statement, deadline }, kind) {
      if (call !== undefined) onSend(1)
      const row = await database.send(statement, deadline, kind === undefined ? null : patience[kind])
      return OBSTACLES[row.verdict] ?? row
    },
    async together (calls) {
      let sent: Call[] = []
      try {
        const row = await database.sendOnce({
          name: 'ai_credit_execute',
          text: EXECUTE,
          values: () => {
            sent = calls.filter(({ deadline }) => deadline > now()) // to the others it was said that they failed
            onSend(sent.length)
            return [...write(sent), allowance, options.timeZone]
          },
          repeatable: false
        }, Math.max(...calls.map(({ deadline }) => deadline)), null)
        const answers = read(sent, row.answers)
        let place = 0
        return calls.map(call => call === sent[place] ? answers[place++]! : late())
      } catch (error) {
        return calls.map(({ statement }) => afterFailure(error, statement.repeatable))
      }
    }
  }, { maxQueue: options.maxQueue, patient: placesFor(database.maxConnections), reserve: reserveOf(options.timeout) })
  let attempts = 0 // of what could be shared

  async function attempt (posting: Posting, deadline: number): Promise<any> {
    if (posting.call !== undefined) onSend(1)
    const row = await database.send(posting.statement, deadline, null)
    const obstacle = OBSTACLES[row.verdict]
    if (obstacle === undefined) return row
    const userId = row.user_id ?? posting.userId // of an account that it knows already, a row need not say so
    return await within(deadline, queue.add({ userId, statement: posting.statement, apart: true, deadline }, obstacle))
  }

  return {
    get idle () {
      return queue.idle && attempts === 0
    },
    get length () {
      return queue.length
    },
    async attempt (posting, client) {
      if (client !== undefined) return await database.row(posting.statement, client)
      if (posting.call === undefined) return await database.call(deadline => attempt(posting, deadline))
      attempts++
      try {
        return await database.call(deadline => attempt(posting, deadline))
      } finally {
        attempts--
      }
    },
    post (posting, client) {
      const { userId } = posting
      if (client !== undefined) return database.row(posting.statement, client)
      if (userId === null) return this.attempt(posting)
      return database.call(deadline => queue.add(Object.assign(posting, { userId, deadline, apart: posting.call === undefined })))
    }
  }
}

// Most of the connections are for calls that wait for nothing, and for the host.
function placesFor (connections: number) {
  return Math.max(1, Math.min(4, Math.floor(connections * 0.4)))
}

// The accounts in their order, and the calls, each with its account's place among them.
function write (calls: Call[]) {
  const userIds: string[] = []
  const json = calls.map(({ userId, call }) => {
    if (userId !== userIds.at(-1)) userIds.push(userId)
    return `[${userIds.length},${call}]`
  })
  return [userIds, `[${json.join()}]`]
}

function read (calls: Call[], answers: string): (Verdict | Obstacle)[] {
  const numbers: number[] = JSON.parse(`[${answers.slice(1, -1)}]`)
  let next = 0
  return calls.map(readOne)

  function readOne ({ columns }: Call) {
    const verdict = VERDICTS[numbers[next++]!]!
    const obstacle = OBSTACLES[verdict]
    if (obstacle !== undefined) return obstacle
    const row: Verdict & Record<string, unknown> = {
      verdict, id: numbers[next++], total: numbers[next++], used: numbers[next++], held: numbers[next++]
    }
    for (const column of columns ?? NONE) row[column] = numbers[next++]
    return row
  }
}

// What PostgreSQL rolled back may be one call's fault, so each goes alone. What may have been committed goes again only
// where that does no harm, and what no call can change not at all.
function afterFailure (error: unknown, repeatable: boolean): Error | typeof FAILED {
  if (isOurs(error) || isServersFault(error) || (isConnectionLost(error) && !repeatable)) return asCreditsError(error) as Error
  return FAILED
}
