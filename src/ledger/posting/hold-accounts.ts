import { CallQueue } from './call-queue.js'
import type { Database } from '../database/database.js'
import { functionCall } from './function-call.js'
import type { QueuedCall } from './lane.js'

const HOLD_USERS = functionCall('ai_credit_hold_users', ['bigint[]'])

const MAX_REMEMBERED = 10_000 // about a megabyte

/** Finds the account of a hold. The account of a hold never changes. */
export interface HoldAccounts {
  /** Remembers the account of a hold, because most holds are captured by the process that made them. */
  remember (holdId: string, userId: string): void
  /** Returns the account of the hold, if it is among those remembered last; otherwise undefined. */
  remembered (holdId: string): string | undefined
  /** Looks up the account of the hold in the database. Returns null if there is no such hold. */
  find (holdId: string, deadline: number): Promise<string | null>
}

interface Lookup extends QueuedCall {
  holdId: string
}

/** Finds the accounts of the holds in a database. Concurrent look-ups share a statement. */
export function openHoldAccounts (database: Database, maxQueue: number): HoldAccounts {
  const find = async (lookups: Lookup[]): Promise<(string | null)[]> => {
    const { accounts } = await database.run({
      name: 'ai_credit_hold_users',
      text: HOLD_USERS,
      values: () => [lookups.map(({ holdId }) => holdId)],
      repeatable: true
    }, { deadline: Math.max(...lookups.map(({ deadline }) => deadline)), sentAgainBy: 'database' })
    return JSON.parse(accounts)
  }
  const queue = new CallQueue<Lookup, string | null>({
    together: lookups => find(lookups).catch(error => lookups.map(() => error)),
    alone: async lookup => (await find([lookup]))[0]!
  }, { maxQueue, patient: 1, reserve: 0 })
  const accounts = new Map<string, string>()
  return {
    remember (holdId, userId) {
      accounts.set(holdId, userId)
      if (accounts.size > MAX_REMEMBERED) accounts.delete(accounts.keys().next().value!)
    },
    remembered: holdId => accounts.get(holdId),
    find: (holdId, deadline) => queue.add({ userId: '', holdId, deadline })
  }
}
