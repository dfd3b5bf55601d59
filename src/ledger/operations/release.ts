import type { Call } from '../context.js'
import { checker, ofAccount, rowId, type ClientInput } from '../input/check.js'
import { balanceOf, type Balance } from '../posting/balance.js'
import { functionCall } from '../posting/function-call.js'
import { isReplay, throwRefusal } from '../posting/verdict.js'
import { releaseCall } from '../posting/wire.js'
import { HOLD, postOfHold } from './of-hold.js'

/** The input of `release`. */
export interface ReleaseInput extends ClientInput {
  /** The hold's account. If the hold belongs to another account, throws NotFoundError. Default: not checked. */
  userId?: string
}

/** The result of `release`. */
export interface Release {
  /** The hold. */
  id: string
  userId: string
  /** Credits that became available again. */
  credits: number
  /** The balance after the release. In a replay, the balance after the original release or lapse. */
  balance: Balance
  /** Whether this is a replay: the hold had been released or had lapsed before, and nothing was changed now. */
  replayed: boolean
}

const check = checker<ReleaseInput>(ofAccount)

const RELEASE = functionCall('ai_credit_release', ['bigint', 'varchar', 'jsonb', 'integer'])

/** Gives back the credits that a hold still has. See Credits. */
export async function release (call: Call, holdId: string, input: ReleaseInput = {}): Promise<Release> {
  const { userId = null, client } = check(input)
  const id = rowId(holdId, HOLD)
  const row = await postOfHold(call, id, userId, {
    call: releaseCall(id),
    statementFor: account => ({
      name: 'ai_credit_release',
      text: RELEASE,
      values: lockTimeout => [id, account, call.allowance, lockTimeout],
      repeatable: true
    })
  }, client)
  throwRefusal(row, { what: HOLD })
  return { id: holdId, userId: row.user_id, credits: Number(row.credits), balance: balanceOf(row), replayed: isReplay(row) }
}
