import { CallQueue } from './call-queue.js'
import type { Database } from '../database/database.js'
import type { Queryable, SqlStatement } from '../database/types.js'
import { functionCall } from './function-call.js'
import type { QueuedCall } from './lane.js'

const OWNERS = functionCall('ai_credit_owners', ['varchar', 'bigint[]'])

const MAX_REMEMBERED = 10_000 // holds; about a megabyte

/** What an id names that belongs to an account; also the word for it in error messages. */
export type Owned = 'hold' | 'grant' | 'usage record'

/** Finds the account of a hold, a grant or a usage record. It never changes. */
export interface Owners {
  /** Remembers the account of a hold, because most holds are captured by the process that made them. */
  remember (holdId: string, userId: string): void
  /** Returns the account of a hold that is among those remembered last; otherwise undefined. */
  remembered (what: Owned, id: string): string | undefined
  /**
   * Looks up the account in the database, in the host's transaction with its `client`. Returns null if there is nothing with this
   * id. Look-ups without a client that come together share a statement.
   */
  find (what: Owned, id: string, deadline: number, client?: Queryable): Promise<string | null>
}

interface Lookup extends QueuedCall {
  id: string
}

/** Opens the look-ups of owners in a database. */
export function openOwners (database: Database, maxQueue: number): Owners {
  const queues: Partial<Record<Owned, CallQueue<Lookup, string | null>>> = {}
  const holds = new Map<string, string>()
  return {
    remember (holdId, userId) {
      holds.set(holdId, userId)
      if (holds.size > MAX_REMEMBERED) holds.delete(holds.keys().next().value!)
    },
    remembered: (what, id) => what === 'hold' ? holds.get(id) : undefined,
    async find (what, id, deadline, client) {
      if (client !== undefined) return ownersIn(await database.runOnClient(client, lookup(what, [id]), deadline))[0]!
      queues[what] ??= queueOf(database, what, maxQueue)
      return await queues[what].add({ userId: '', id, deadline })
    }
  }
}

function queueOf (database: Database, what: Owned, maxQueue: number) {
  const find = async (lookups: Lookup[]) => ownersIn(await database.run(lookup(what, lookups.map(({ id }) => id)), {
    deadline: Math.max(...lookups.map(({ deadline }) => deadline)), sentAgainBy: 'database'
  }))
  return new CallQueue<Lookup, string | null>({
    together: lookups => find(lookups).catch(error => lookups.map(() => error)),
    alone: async lookup => (await find([lookup]))[0]!
  }, { maxQueue, patient: 1, reserve: 0 })
}

function lookup (what: Owned, ids: string[]): SqlStatement {
  return { name: 'ai_credit_owners', text: OWNERS, values: () => [what, ids], repeatable: true }
}

function ownersIn ({ accounts }: { accounts: string }): Array<string | null> {
  return JSON.parse(accounts)
}
