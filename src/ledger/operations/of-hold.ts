import type { Call } from '../context.js'
import { within } from '../database/deadline.js'
import type { Queryable } from '../database/types.js'
import { NotFoundError } from '../../errors.js'
import type { Posting } from '../posting/postings.js'

/** The word for a hold in error messages. */
export const HOLD = 'hold'

/**
 * Posts a capture or a release of the hold `id`. `named`: the hold's account, if the caller gave it. To share a statement, the
 * call needs the account. If there is no other call to share with, the call is run alone, and its own statement finds the
 * account. Otherwise the account is looked up first.
 */
export async function postOfHold (
  { postings, holdAccounts, deadline }: Call, id: string, named: string | null,
  { call, statement }: Pick<Posting, 'call' | 'statement'>, client: Queryable | undefined
): Promise<any> {
  const posting = { call, token: `of ${id}`, createsAccount: false, columns: ['credits', 'uncollected', 'required'], statement }
  const known = named ?? holdAccounts.remembered(id)
  if (client !== undefined || (known === undefined && postings.idle)) {
    return await postings.post({ userId: null, ...posting }, deadline, client)
  }
  if (known !== undefined) return { user_id: known, ...await postings.post({ userId: known, ...posting }, deadline) }
  const userId = await holdAccounts.find(id, deadline)
  if (userId === null) throw new NotFoundError(HOLD)
  // Calls with later deadlines may have been queued during the look-up, so the queue may miss this deadline.
  return { user_id: userId, ...await within(deadline, postings.post({ userId, ...posting }, deadline)) }
}
