import { Type } from '@sinclair/typebox'
import { InvalidInputError } from '../../errors.js'
import type { Context } from '../context.js'
import { checker } from '../input/check.js'
import { Callable, Limit, Time } from '../input/fields.js'
import { functionCall } from '../posting/function-call.js'
import { NO_ACCOUNT } from '../posting/postings.js'
import { allAccounts } from './all-accounts.js'

/** The input of `prune`. */
export interface PruneInput {
  /**
   * Usage records from before this time are deleted: a Date or an ISO 8601 time, in the past. Their idempotency keys are
   * deleted too. Therefore keep records for much longer than any client retries a request.
   */
  before: Date | string
  /** The maximum number of account changes that one transaction deletes: from 1 to 100000. Default: 1000. */
  batch?: number
  /**
   * Called after each batch. `prune` waits for its promise before the next batch, so it can slow pruning down. If it throws,
   * pruning stops, and `prune` throws the same error.
   */
  onProgress?: (progress: Pruning) => unknown
}

/** The progress of `prune`, and its result. */
export interface Pruning {
  /** How many accounts are done. */
  accounts: number
  /** How many usage records were deleted. */
  records: number
}

const check = checker<PruneInput>({
  before: Time,
  batch: Type.Optional(Limit),
  onProgress: Type.Optional(Callable)
})

const PRUNE = functionCall('ai_credit_prune', ['varchar', 'varchar[]', 'timestamptz', 'integer', 'integer'])

const ACCOUNTS_AT_A_TIME = 1000

const DEFAULT_BATCH = 1000

/** Deletes old usage records in batches. Each batch is a separate transaction. See Credits. */
export async function prune (context: Context, input: PruneInput): Promise<Pruning> {
  const { before, batch = DEFAULT_BATCH, onProgress } = check(input)
  const done: Pruning = { accounts: 0, records: 0 }
  for await (const userIds of allAccounts(context, ACCOUNTS_AT_A_TIME)) {
    let rest = userIds
    do {
      const row = await pruneBatch(context, new Date(before), rest, batch)
      if (row.verdict === 'future') throw new InvalidInputError('before', 'must be in the past')
      rest = rest.slice(row.accounts)
      done.accounts += row.accounts
      done.records += row.records
      await onProgress?.({ ...done })
    } while (rest.length > 0)
  }
  return done
}

// If the result of a batch was lost, the batch may have been deleted. The retry then deletes the next one.
async function pruneBatch ({ database, postings }: Context, before: Date, userIds: string[], batch: number): Promise<any> {
  return await database.call(deadline => postings.post({
    userId: NO_ACCOUNT,
    statement: {
      name: 'ai_credit_prune',
      text: PRUNE,
      values: lockTimeout => [userIds[0] ?? '', userIds, before.toISOString(), batch, lockTimeout ?? 1], // 0 would mean no limit
      repeatable: true
    }
  }, deadline))
}
