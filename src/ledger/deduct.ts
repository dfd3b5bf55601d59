import { InvalidInputError } from '../errors.js'
import { balanceOf } from './balance.js'
import type { Context } from './context.js'
import { SETTLED } from './database.js'
import { checkDeduct, resolveUserId } from './input.js'
import type { Posting } from './postings.js'
import type { Quote } from './prices/types.js'
import type { DeductInput, Deduction, PricedDeductInput } from './types.js'
import { judge } from './verdict.js'

/** What is charged, checked. */
interface Charge {
  userId: string
  credits: number
  operation: string
  /** As JSON. */
  metadata: string
  idempotencyKey: string | null
}

/** Spends credits now. */
export async function deduct (context: Context, input: DeductInput | PricedDeductInput): Promise<Deduction> {
  const { userId: named, credits: asked, usage, operation, metadata = {}, idempotencyKey = null, client } = checkDeduct(input)
  if (asked === undefined && usage === undefined) throw new InvalidInputError('credits', 'is required, or usage in its place')
  if (asked !== undefined && usage !== undefined) throw new InvalidInputError('credits', 'must not be given together with usage')
  const userId = resolveUserId(named, context.options.defaultUser)
  const quote = usage === undefined ? undefined : context.options.prices.quote(operation, usage)
  const credits = quote?.credits ?? asked!
  const json = JSON.stringify(metadata) // now: the caller's object may change before the statement is sent
  const charge = { userId, credits, operation, metadata: json, idempotencyKey }
  const row = await context.postings.post(quote === undefined ? plain(context, charge) : priced(context, charge, quote), client)
  if (client === undefined) context.events.deduct(row, { userId, credits, operation }, json)
  const replayed = judge(row, { credits })
  const charged = quote === undefined ? credits : Number(row.credits)
  return { id: String(row.id), userId, credits: charged, operation, balance: balanceOf(row), replayed }
}

function plain (
  { options, allowance }: Context, { userId, credits, operation, metadata, idempotencyKey }: Charge
): Posting {
  const key = JSON.stringify(idempotencyKey)
  return {
    userId,
    call: `"deduct",${key},${credits},${JSON.stringify(operation)},${metadata}`,
    token: tokenOf(idempotencyKey),
    statement: {
      name: 'ai_credit_deduct',
      text: `select verdict, record_id as id, total, used, held, ${SETTLED}
        from ai_credit_deduct($1, $2, $3, $4, $5, $6, $7, $8)`,
      values: lockTimeout => [
        userId, credits, operation, metadata, idempotencyKey, allowance, options.timeZone, lockTimeout
      ],
      repeatable: idempotencyKey !== null
    }
  }
}

function priced (
  { options, allowance }: Context, { userId, credits, operation, metadata, idempotencyKey }: Charge,
  { version, usage }: Quote
): Posting {
  const key = JSON.stringify(idempotencyKey)
  const quantities = JSON.stringify(usage)
  return {
    userId,
    call: `"priced",${key},${credits},${JSON.stringify(operation)},${metadata},null,${JSON.stringify(version)},${quantities}`,
    token: tokenOf(idempotencyKey),
    columns: ['credits'],
    statement: {
      name: 'ai_credit_deduct_priced',
      text: `select *, record_id as id, ${SETTLED}
        from ai_credit_deduct($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)`,
      values: lockTimeout => [
        userId, credits, operation, metadata, idempotencyKey, version, quantities, allowance, options.timeZone, lockTimeout
      ],
      repeatable: idempotencyKey !== null
    }
  }
}

// One for both: a key stands for one request, however it is charged.
function tokenOf (idempotencyKey: string | null) {
  return idempotencyKey === null ? undefined : `deduct ${idempotencyKey}`
}
