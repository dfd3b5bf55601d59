import type { Call } from '../context.js'
import { within } from '../database/deadline.js'
import type { Queryable } from '../database/types.js'
import type { Posting } from '../posting/postings.js'
import { findOwner, withOwner } from './owner.js'

/** The word for a hold in error messages. */
export const HOLD = 'hold'

/**
 * Posts a capture or a release of the hold `id`. `named`: the hold's account, if the caller gave it. To share a statement, the
 * call needs the account. If there is no other call to share with, the call is run alone, and its own statement finds the
 * account. Otherwise the account is looked up first. `statement`: the statement that runs the call alone, for an account, which is
 * null if the statement is to find it.
 */
export async function postOfHold (
  call: Call, id: string, named: string | null,
  { call: shared, statementFor }: { call: string, statementFor: (account: string | null) => Posting['statement'] },
  client: Queryable | undefined
): Promise<any> {
  const { postings, deadline } = call
  return await withOwner(call, { what: HOLD, id, userId: named, client }, async known => {
    const posting = {
      call: shared,
      token: `of ${id}`,
      createsAccount: false,
      columns: ['credits', 'uncollected', 'required'],
      statement: statementFor(known)
    }
    if (client !== undefined || (known === null && postings.idle)) {
      return await postings.post({ userId: null, ...posting }, deadline, client)
    }
    if (known !== null) return { user_id: known, ...await postings.post({ userId: known, ...posting }, deadline) }
    const userId = await findOwner(call, { what: HOLD, id, client })
    // Calls with later deadlines may have been queued during the look-up, so the queue may miss this deadline.
    return { user_id: userId, ...await within(deadline, postings.post({ userId, ...posting }, deadline)) }
  })
}
