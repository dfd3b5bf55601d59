import { InvalidInputError } from '../errors.js'
import { balanceOf } from './balance.js'
import type { Context } from './context.js'
import { functionCall } from './function-call.js'
import { checkDeduct, resolveUserId } from './input.js'
import type { Posting } from './postings.js'
import type { DeductInput, Deduction, PricedDeductInput } from './types.js'
import { judge } from './verdict.js'

const DEDUCT = functionCall('ai_credit_deduct', [
  'varchar', 'bigint', 'varchar', 'jsonb', 'varchar', 'varchar', 'jsonb', 'jsonb', 'varchar', 'integer'
])

/** Spends credits now. */
export async function deduct (context: Context, input: DeductInput | PricedDeductInput): Promise<Deduction> {
  const { userId: named, credits: asked, usage, operation, metadata = {}, idempotencyKey = null, client } = checkDeduct(input)
  if (asked === undefined && usage === undefined) throw new InvalidInputError('credits', 'is required, or usage in its place')
  if (asked !== undefined && usage !== undefined) throw new InvalidInputError('credits', 'must not be given together with usage')
  const userId = resolveUserId(named, context.options.defaultUser)
  const quote = usage === undefined ? undefined : context.options.prices.quote(operation, usage)
  const credits = quote?.credits ?? asked!
  const json = JSON.stringify(metadata) // now: the caller's object may change before the statement is sent
  const row = await context.postings.post(postingOf(context, {
    userId,
    credits,
    operation,
    metadata: json,
    idempotencyKey,
    version: quote?.version ?? null,
    quantities: quote === undefined ? null : JSON.stringify(quote.usage)
  }), client)
  if (client === undefined) context.events.deduct(row, { userId, credits, operation }, json)
  const replayed = judge(row, { credits })
  const charged = quote === undefined ? credits : Number(row.credits)
  return { id: String(row.id), userId, credits: charged, operation, balance: balanceOf(row), replayed }
}

// What a call of a shared statement says after its kind, and the same alone.
function postingOf (
  { options, allowance }: Context, { userId, credits, operation, metadata, idempotencyKey, version, quantities }: Charge
): Posting {
  const key = JSON.stringify(idempotencyKey)
  const said = `${key},${credits},${JSON.stringify(operation)},${metadata}`
  return {
    userId,
    ...quantities === null
      ? { call: `"deduct",${said}` }
      : { call: `"priced",${said},null,${JSON.stringify(version)},${quantities}`, columns: ['credits'] },
    token: idempotencyKey === null ? undefined : `deduct ${idempotencyKey}`,
    statement: {
      name: 'ai_credit_deduct',
      text: DEDUCT,
      values: lockTimeout => [
        userId, credits, operation, metadata, idempotencyKey, version, quantities, allowance, options.timeZone, lockTimeout
      ],
      repeatable: idempotencyKey !== null
    }
  }
}

/** What is charged, checked. */
interface Charge {
  userId: string
  credits: number
  operation: string
  /** As JSON. */
  metadata: string
  idempotencyKey: string | null
  /** Of the prices that the credits were computed by; null: by none. */
  version: string | null
  /** What they were computed from, as JSON. */
  quantities: string | null
}
