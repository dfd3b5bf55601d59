// The format of shared statements, which the SQL function ai_credit_execute reads and writes.
import { BUSY, NEW, SETTLING, type Obstacle } from './call-runner.js'
import { NumberReader } from './number-reader.js'
import type { Verdict } from './verdict.js'

/** The verdicts. The index of each is its number in the results of ai_credit_execute. */
export const VERDICTS =
  ['busy', 'accepted', 'replayed', 'conflict', 'insufficient', 'missing', 'closed', 'operation', 'new', 'settling', 'budget']

/** The place of a charge's budget among the elements of its call. */
const BUDGET = 11

/** The obstacles, by the verdicts of calls that were not done because of them. */
export const OBSTACLES: Partial<Record<string, Obstacle>> = { busy: BUSY, new: NEW, settling: SETTLING }

/** The fields that all charges have. */
interface ChargeText {
  idempotencyKey: string | null
  /** null, for a capture only: all credits that the hold still has. */
  credits: number | null
  /** null, for a capture only: the operation of the hold. */
  operation: string | null
  /** As JSON; null: none. */
  metadata: string | null
}

/** A charge that may count in a budget. */
interface BudgetText {
  /** null: none. */
  budget: string | null
}

/** How the credits were computed from prices; null: the caller gave the credits. */
interface PriceText {
  /** The version of the prices. */
  version: string | null
  /** The quantities, as JSON. */
  quantities: string | null
}

/** Returns a deduct as the elements of a JSON array. */
export function deductCall ({ version, quantities, budget, ...charge }: ChargeText & PriceText & BudgetText): string {
  const fields = fieldsOf(charge)
  if (quantities === null) return `"deduct",${fields}${budgetAfter(6, budget)}`
  return `"priced",${fields},null,${JSON.stringify(version)},${quantities}${budgetAfter(9, budget)}`
}

/** Returns a hold as the elements of a JSON array. `ttl`: milliseconds until the hold lapses. */
export function holdCall ({ budget, ...charge }: ChargeText & BudgetText, ttl: number): string {
  return `"hold",${fieldsOf(charge)},${ttl}${budgetAfter(7, budget)}`
}

/** Returns a capture of the hold `id` as the elements of a JSON array. */
export function captureCall (
  { version, quantities, ...charge }: ChargeText & PriceText, id: string, final: boolean, shortfall: string
): string {
  const elements = `"capture",${fieldsOf(charge)},${id},${final},"${shortfall}"`
  return quantities === null ? elements : `${elements},${JSON.stringify(version)},${quantities}`
}

/** Returns a release of the hold `id` as the elements of a JSON array. */
export function releaseCall (id: string): string {
  return `"release",null,null,null,null,${id}`
}

// The budget, as the element BUDGET of a call that has so many elements until then.
function budgetAfter (elements: number, budget: string | null) {
  return budget === null ? '' : `${',null'.repeat(BUDGET - elements)},${JSON.stringify(budget)}`
}

function fieldsOf ({ idempotencyKey, credits, operation, metadata }: ChargeText) {
  return `${JSON.stringify(idempotencyKey)},${credits},${JSON.stringify(operation)},${metadata}`
}

/** A call to write: its account, and the elements of its JSON array. */
interface WrittenCall {
  userId: string
  call?: string
}

/**
 * Returns the accounts of the calls, and the calls as a JSON array of arrays. Each call begins with the place of its account,
 * from 1. Calls on one account must be adjacent.
 */
export function writeCalls (calls: WrittenCall[]): [userIds: string[], calls: string] {
  const userIds: string[] = []
  const json = calls.map(({ userId, call }) => {
    if (userId !== userIds.at(-1)) userIds.push(userId)
    return `[${userIds.length},${call}]`
  })
  return [userIds, `[${json.join()}]`]
}

const NONE: readonly string[] = []

/**
 * Reads the results that ai_credit_execute has returned for `calls`: `answers`, an array of numbers as text, and `refusals`, the
 * limits that refused calls, as JSON. Returns for each call its obstacle, or the row that its own statement would return, with the
 * columns that the call names.
 */
export function readResults (
  calls: { columns?: readonly string[] }[], { answers, refusals }: { answers: string, refusals: string | null }
): (Verdict | Obstacle)[] {
  const reader = new NumberReader(answers)
  const limits: string[] = refusals === null ? [] : JSON.parse(refusals)
  let nextLimit = 0
  const results = calls.map(({ columns = NONE }) => {
    const verdict = VERDICTS[reader.number()]!
    const obstacle = OBSTACLES[verdict]
    if (obstacle !== undefined) return obstacle
    const row: Verdict & Record<string, unknown> = {
      verdict, id: reader.id(), total: reader.number(), used: reader.number(), held: reader.number()
    }
    for (const column of columns) row[column] = reader.number()
    if (verdict === 'budget') row.refusal = limits[nextLimit++]!
    return row
  })
  if (!reader.isAtEnd) throw new Error('ai_credit_execute has returned other results than those of its calls')
  return results
}
