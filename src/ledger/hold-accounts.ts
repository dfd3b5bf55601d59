import { CallQueue } from './call-queue.js'
import type { Database } from './database.js'
import { functionCall } from './function-call.js'
import type { QueuedCall } from './lane.js'

const HOLD_USERS = functionCall('ai_credit_hold_users', ['bigint[]'])

const MAX_REMEMBERED = 10_000 // about a megabyte

/** Knows whose a hold is, which never changes. */
export interface HoldAccounts {
  /** Notes whose a hold is: most are captured by the process that made them. */
  remember (holdId: string, userId: string): void
  /** Whose the hold is, if it is among those noted last. */
  remembered (holdId: string): string | undefined
  /** Looks it up; null: there is no such hold. */
  find (holdId: string): Promise<string | null>
}

interface Lookup extends QueuedCall {
  holdId: string
}

/** The accounts of the holds of a database; those that have to be looked up together share a statement. */
export function openHoldAccounts (database: Database, maxQueue: number): HoldAccounts {
  const find = async (lookups: Lookup[]): Promise<(string | null)[]> => {
    const { accounts } = await database.send({
      name: 'ai_credit_hold_users',
      text: HOLD_USERS,
      values: () => [lookups.map(({ holdId }) => holdId)],
      repeatable: true
    }, Math.max(...lookups.map(({ deadline }) => deadline)), null)
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
    find: holdId => database.call(deadline => queue.add({ userId: '', holdId, deadline }))
  }
}
