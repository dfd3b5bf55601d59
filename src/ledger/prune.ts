import { InvalidInputError } from '../errors.js'
import type { Context } from './context.js'
import { checkPrune } from './input.js'
import { NO_ACCOUNT } from './postings.js'
import type { PruneInput, Pruning } from './types.js'
import { functionCall } from './function-call.js'

const PRUNE = functionCall('ai_credit_prune', ['timestamptz', 'varchar', 'integer', 'integer'])

const DEFAULT_BATCH = 1000

/** Deletes old usage records, one batch after the other, each in a transaction of its own. */
export async function prune (context: Context, input: PruneInput): Promise<Pruning> {
  const { before, batch = DEFAULT_BATCH, onProgress } = checkPrune(input)
  const done: Pruning = { accounts: 0, records: 0 }
  for (let next: string | null = ''; next !== null;) { // no account comes before ''
    const row: any = await pruneBatch(context, new Date(before), next, batch)
    if (row.verdict === 'future') throw new InvalidInputError('before', 'must be in the past')
    done.accounts += row.accounts
    done.records += row.records
    next = row.next
    await onProgress?.({ ...done })
  }
  return done
}

// A batch whose answer was lost has been deleted; sent again, it is the next one.
async function pruneBatch ({ postings }: Context, before: Date, from: string, batch: number) {
  return await postings.post({
    userId: NO_ACCOUNT,
    statement: {
      name: 'ai_credit_prune',
      text: PRUNE,
      values: lockTimeout => [before.toISOString(), from, batch, lockTimeout ?? 1], // 0 would be for as long as it takes
      repeatable: true
    }
  })
}
