import type { Call } from '../context.js'
import type { Queryable } from '../database/types.js'
import { NotFoundError } from '../../errors.js'
import type { Owned } from '../posting/owners.js'

/** What an id names, and who has named it. */
export interface Named {
  what: Owned
  id: string
  /** The account that the caller has named; null: none. */
  userId: string | null
  /** The host's client, if the call is part of a transaction of the host's. */
  client: Queryable | undefined
}

/**
 * Calls `work` with the account of a hold, a grant or a usage record: the one that the caller has named, otherwise the one that the
 * process remembers. null: the statement is to find it by the id. On Citus a statement is sent to where its account is, so there it is
 * looked up before. Throws NotFoundError if there is nothing with this id.
 *
 * If there is nothing to look up, `work` is called at once: calls on one account stay in their order.
 */
export function withOwner<T> (call: Call, named: Named, work: (account: string | null) => Promise<T>): Promise<T> {
  const { what, id, userId } = named
  const known = userId ?? call.owners.remembered(what, id) ?? null
  return known !== null || call.database.distributed === false ? work(known) : lookUp(call, named).then(work)
}

async function lookUp (call: Call, named: Named) {
  return await call.database.isDistributed(call.deadline, named.client) ? await findOwner(call, named) : null
}

/** Looks up the account of a hold, a grant or a usage record. Throws NotFoundError if there is nothing with this id. */
export async function findOwner (
  { owners, deadline }: Call, { what, id, client }: Pick<Named, 'what' | 'id' | 'client'>
): Promise<string> {
  const account = await owners.find(what, id, deadline, client)
  if (account === null) throw new NotFoundError(what)
  return account
}
