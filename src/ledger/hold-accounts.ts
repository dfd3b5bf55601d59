import { CallQueue, type QueuedCall } from './call-queue.js'
import type { Database } from './database.js'

/** Finds whose a hold is. */
export type HoldAccounts = (holdId: string) => Promise<string | null>

interface Lookup extends QueuedCall {
  holdId: string
}

/** Looks up the accounts of holds, as many as are asked for in one statement. */
export function openHoldAccounts (database: Database, maxQueue: number): HoldAccounts {
  const find = async (lookups: Lookup[]): Promise<(string | null)[]> => {
    const { accounts } = await database.send({
      name: 'ai_credit_hold_users',
      text: 'select jsonb_agg(ai_credit_hold_user(id, null) order by place)::varchar as accounts ' +
        'from unnest($1::bigint[]) with ordinality as hold(id, place)',
      values: () => [lookups.map(({ holdId }) => holdId)],
      repeatable: true
    }, Math.max(...lookups.map(({ deadline }) => deadline)))
    return JSON.parse(accounts)
  }
  const queue = new CallQueue<Lookup, string | null>({
    together: lookups => find(lookups).catch(error => lookups.map(() => error)),
    alone: async lookup => (await find([lookup]))[0]!
  }, maxQueue)
  return holdId => database.call(deadline => queue.add({ userId: '', holdId, deadline }))
}
