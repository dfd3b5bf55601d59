import { BUSY, CallQueue, FAILED, type QueuedCall } from './call-queue.js'
import { SETTLED, type Database, type Queryable, type Statement } from './database.js'
import { asCreditsError, isConnectionLost, isOurs, isServersFault, late } from './failure.js'
import type { Verdict } from './verdict.js'

/** A call that changes one account, and can share a statement with others. */
export interface Posting {
  userId: string
  /** What else it says, as the SQL function ai_credit_execute takes it: the elements of a JSON array, its kind first. */
  call: string
  /** What no other call of its statement may share: its key or its hold. */
  token?: string | undefined
  /** Its answer beyond the verdict, id, total, used and held: these columns of the statement's row. */
  columns?: readonly string[]
  /** The same alone. */
  statement: Statement
}

/** Runs postings. */
export interface Postings {
  /** Answers the row of the posting's statement, which others may have shared. On the host's `client` it goes alone. */
  post (posting: Posting, client?: Queryable): Promise<any>
  /** Whether nothing is under way that a further call could have shared a statement with. */
  readonly idle: boolean
  /** Calls that wait for their turn. */
  readonly length: number
  /** Runs a statement by itself, without knowing its account. */
  postAlone (statement: Statement): Promise<any>
}

/** What all of a process's postings have in common. */
export interface PostingOptions {
  allowance: string
  timeZone: string
  maxQueue: number
  /** Is told how many calls share a statement, of each that is sent. */
  onSend: (calls: number) => void
}

interface Call extends Posting, QueuedCall {}

type Answer = Verdict | typeof BUSY

const NONE: readonly string[] = []

const VERDICTS = ['apart', 'accepted', 'replayed', 'conflict', 'insufficient', 'missing', 'closed', 'operation']

/** Postings that share statements on a database. */
export function openPostings (database: Database, { allowance, timeZone, maxQueue, onSend }: PostingOptions): Postings {
  const queue = new CallQueue<Call, Verdict>({
    alone ({ statement, deadline }) {
      onSend(1)
      return database.send(statement, deadline)
    },
    async together (calls) {
      let sent: Call[] = []
      try {
        const row = await database.sendOnce({
          name: 'ai_credit_execute',
          text: `select answers::varchar, ${SETTLED} from ai_credit_execute($1, $2, $3, $4) answers`,
          values: () => {
            sent = calls.filter(({ deadline }) => deadline > performance.now()) // to the others it was said that they failed
            onSend(sent.length)
            return [...write(sent), allowance, timeZone]
          },
          repeatable: false
        }, Math.max(...calls.map(({ deadline }) => deadline)))
        const answers = read(sent, row.answers)
        let place = 0
        return calls.map(call => call === sent[place] ? answers[place++]! : late())
      } catch (error) {
        return calls.map(({ statement }) => afterFailure(error, statement.repeatable))
      }
    }
  }, maxQueue)
  let alone = 0
  return {
    get idle () {
      return queue.idle && alone === 0
    },
    get length () {
      return queue.length
    },
    async postAlone (statement) {
      alone++
      onSend(1)
      try {
        return await database.row(statement)
      } finally {
        alone--
      }
    },
    post (posting, client) {
      if (client !== undefined) return database.row(posting.statement, client)
      return database.call(deadline => queue.add(Object.assign(posting, { deadline })))
    }
  }
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

function read (calls: Call[], answers: string): Answer[] {
  const numbers: number[] = JSON.parse(`[${answers.slice(1, -1)}]`)
  let next = 0
  return calls.map(readOne)

  function readOne ({ columns }: Call) {
    const verdict = VERDICTS[numbers[next++]!]!
    if (verdict === 'apart') return BUSY
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
