import { InvalidInputError, NotFoundError } from '../errors.js'
import type { Context } from './context.js'
import { balanceOf } from './balance.js'
import type { Queryable } from './database.js'
import {
  checkCapture, checkExtend, checkHold, checkRelease, resolveUserId, rowId, type CreditsOrUsage
} from './input.js'
import type { Posting } from './postings.js'
import type {
  Capture, CaptureInput, Extension, ExtendInput, Hold, HoldInput, PricedCaptureInput, Release, ReleaseInput
} from './types.js'
import { judge } from './verdict.js'
import { functionCall } from './function-call.js'

const HOLD = functionCall('ai_credit_hold', [
  'varchar', 'bigint', 'varchar', 'jsonb', 'integer', 'varchar', 'jsonb', 'integer'
])

const CAPTURE = functionCall('ai_credit_capture', [
  'bigint', 'varchar', 'bigint', 'jsonb', 'boolean', 'varchar', 'varchar', 'varchar', 'varchar', 'jsonb', 'jsonb', 'varchar', 'integer'
])

const RELEASE = functionCall('ai_credit_release', ['bigint', 'varchar', 'jsonb', 'integer'])

const EXTEND = functionCall('ai_credit_extend', ['bigint', 'varchar', 'integer', 'jsonb', 'integer'])

/** How long a hold lives where nothing else is said, in milliseconds. */
export const DEFAULT_TTL = 15 * 60_000

const asked = { what: 'hold' }

/** Sets credits aside. */
export async function hold ({ postings, holdAccounts, events, options, allowance }: Context, input: HoldInput): Promise<Hold> {
  const { userId: named, credits, operation, metadata = {}, ttl = DEFAULT_TTL, idempotencyKey = null, client } = checkHold(input)
  const userId = resolveUserId(named, options.defaultUser)
  const json = JSON.stringify(metadata) // now: the caller's object may change before the statement is sent
  const key = JSON.stringify(idempotencyKey)
  const row = await postings.post({
    userId,
    call: `"hold",${key},${credits},${JSON.stringify(operation)},${json},${ttl}`,
    token: idempotencyKey === null ? undefined : `hold ${key}`,
    columns: ['expires_at'],
    statement: {
      name: 'ai_credit_hold',
      text: HOLD,
      values: lockTimeout => [
        userId, credits, operation, json, ttl, idempotencyKey, allowance, lockTimeout
      ],
      repeatable: idempotencyKey !== null
    }
  }, client)
  if (client === undefined) events.hold(row, { userId, credits, operation })
  const replayed = judge(row, { credits })
  const id = String(row.id)
  holdAccounts.remember(id, userId)
  return {
    id, userId, credits, operation, expiresAt: new Date(row.expires_at), balance: balanceOf(row), replayed
  }
}

/** Turns a hold, or a part of it, into spending. */
export async function capture (
  context: Context, holdId: string, input: CaptureInput | PricedCaptureInput = {}
): Promise<Capture> {
  const {
    userId = null, metadata = null, final = true, shortfall = 'partial', idempotencyKey = null, client, ...rest
  } = checkCapture(input)
  const { credits, operation, version, quantities } = priceOf(context, rest)
  const id = rowId(holdId, 'hold')
  const json = metadata && JSON.stringify(metadata)
  const key = JSON.stringify(idempotencyKey)
  const row = await postOfHold(context, id, userId, {
    call: `"capture",${key},${credits},${JSON.stringify(operation)},${json},${id},${final},"${shortfall}"` +
      (quantities === null ? '' : `,${JSON.stringify(version)},${quantities}`),
    statement: {
      name: 'ai_credit_capture',
      text: CAPTURE,
      values: lockTimeout => [
        id, userId, credits, json, final, shortfall, idempotencyKey, operation, version, quantities,
        context.allowance, context.options.timeZone, lockTimeout
      ],
      repeatable: idempotencyKey !== null || final // a hold is closed once, whoever repeats it
    }
  }, client)
  if (client === undefined) context.events.capture(row, row.user_id, holdId)
  const replayed = judge(row, { ...asked, credits: Number(row.required) })
  return {
    id: String(row.id),
    holdId,
    userId: row.user_id,
    credits: Number(row.credits),
    uncollected: Number(row.uncollected),
    balance: balanceOf(row),
    replayed
  }
}

// What a capture charges: so many credits (null: all that is left), or what the usage costs.
function priceOf ({ options }: Context, { credits, operation, usage }: CreditsOrUsage & { operation?: string }) {
  if (usage === undefined) {
    if (operation !== undefined) throw new InvalidInputError('usage', 'is required with operation')
    return { credits: credits ?? null, operation: null, version: null, quantities: null }
  }
  if (credits !== undefined) throw new InvalidInputError('credits', 'and usage exclude each other')
  if (operation === undefined) throw new InvalidInputError('operation', 'is required with usage')
  const quote = options.prices.quote(operation, usage)
  return { credits: quote.credits, operation, version: quote.version, quantities: JSON.stringify(quote.usage) }
}

/** Gives back what a hold has left. */
export async function release (context: Context, holdId: string, input: ReleaseInput = {}): Promise<Release> {
  const { userId = null, client } = checkRelease(input)
  const id = rowId(holdId, 'hold')
  const row = await postOfHold(context, id, userId, {
    call: `"release",null,null,null,null,${id}`,
    statement: {
      name: 'ai_credit_release',
      text: RELEASE,
      values: lockTimeout => [id, userId, context.allowance, lockTimeout],
      repeatable: true
    }
  }, client)
  const replayed = judge(row, asked)
  return { id: holdId, userId: row.user_id, credits: Number(row.credits), balance: balanceOf(row), replayed }
}

// A statement is shared by account, so whose the hold is has to be known: while there is nothing to share with, the
// hold's own statement finds out by itself.
async function postOfHold (
  { postings, holdAccounts }: Context, id: string, named: string | null,
  { call, statement }: Pick<Posting, 'call' | 'statement'>, client: Queryable | undefined
) {
  const posting = { call, token: `of ${id}`, columns: ['credits', 'uncollected', 'required'], statement }
  const known = named ?? holdAccounts.remembered(id)
  if (client !== undefined || (known === undefined && postings.idle)) return await postings.post({ userId: null, ...posting }, client)
  const userId = known ?? await holdAccounts.find(id)
  if (userId === null) throw new NotFoundError('hold')
  return { user_id: userId, ...await postings.post({ userId, ...posting }) }
}

/** Lets a hold live longer. */
export async function extend (
  { postings, holdAccounts, allowance }: Context, holdId: string, input: ExtendInput
): Promise<Extension> {
  const { userId = null, ttl, client } = checkExtend(input)
  const id = rowId(holdId, 'hold')
  const row = await postings.post({
    userId: userId ?? holdAccounts.remembered(id) ?? null,
    statement: {
      name: 'ai_credit_extend',
      text: EXTEND,
      values: lockTimeout => [id, userId, ttl, allowance, lockTimeout],
      repeatable: true
    }
  }, client)
  judge(row, asked)
  return {
    id: holdId,
    userId: row.user_id,
    credits: Number(row.credits),
    expiresAt: new Date(row.expires_at),
    balance: balanceOf(row)
  }
}
