import { IdempotencyConflictError, InsufficientCreditsError } from '../errors.js'
import type { ParsedLedgerOptions } from '../options.js'
import { balanceOf } from './balance.js'
import type { Database, Statement } from './database.js'
import { checkDeduct, resolveUserId } from './input.js'
import type { DeductInput, Deduction } from './types.js'

interface Charge extends DeductInput {
  userId: string
}

/** Spends credits: checks the request, posts it, and turns the verdict into an answer or an error. */
export async function deduct (database: Database, options: ParsedLedgerOptions, input: DeductInput): Promise<Deduction> {
  const { client, ...request } = checkDeduct(input)
  const charge = { ...request, userId: resolveUserId(request.userId, options.defaultUser) }
  const row = await database.row(statement(charge, options), client)
  const balance = balanceOf(row)
  switch (row.verdict) {
    case 'insufficient': throw new InsufficientCreditsError(balance, charge.credits)
    case 'conflict': throw new IdempotencyConflictError()
  }
  return {
    id: String(row.record_id),
    userId: charge.userId,
    credits: charge.credits,
    operation: charge.operation,
    balance,
    replayed: row.verdict === 'replayed'
  }
}

function statement (charge: Charge, { allowance, timeZone }: ParsedLedgerOptions): Statement {
  const { userId, credits, operation, metadata = {}, idempotencyKey = null } = charge
  const json = JSON.stringify(metadata) // now: the caller's object may change before the statement is sent
  return {
    name: 'ai_credit_deduct',
    text: 'select * from ai_credit_deduct($1, $2, $3, $4, $5, $6, $7, $8)',
    values: lockTimeout => [
      userId, credits, operation, json, idempotencyKey, JSON.stringify({ credits: allowance }), timeZone, lockTimeout
    ],
    repeatable: idempotencyKey !== null
  }
}
