import assert from 'node:assert'
import type { FastifyInstance } from 'fastify'
import type { Queryable } from '../../src/index.js'

/** The kind of rows that an accepted request has written. */
export type Kind = 'deduct' | 'capture' | 'refund' | 'hold' | 'grant'

/** The accepted requests of one kind on one account. */
interface Sum {
  count: number
  credits: number
}

// Counts the rows that only an accepted request writes, not those that lapse, expiry or renewal write.
const WRITTEN = `
  select user_id, kind, count(*)::integer as count, sum(abs(credits_used))::varchar as credits
  from ai_credit_usage group by user_id, kind
  union all
  select user_id, 'hold', count(*)::integer, sum(credits)::varchar from ai_credit_holds group by user_id
  union all
  select user_id, kind || ' in ' || budgets[1], count(*)::integer, sum(credits)::varchar
  from (
    select user_id, kind, credits_used as credits, budgets from ai_credit_usage where kind = 'deduct'
    union all
    select user_id, 'hold', credits, budgets from ai_credit_holds
  ) charge
  where budgets is not null group by user_id, kind, budgets[1]
  union all
  select user_id, kind, count(*)::integer, sum(credits)::varchar
  from ai_credit_grants where kind = 'grant' group by user_id, kind`

const ACCOUNTS = `
  select user_id, (spent_before + used_credits)::varchar as spent, (total_credits - opening_total)::varchar as given,
    exists (select from ai_credit_events event
      where event.user_id = account.user_id and kind in ('expiry', 'renewal', 'revoke')) as aged
  from ai_credits account`

/**
 * Counts what the accepted requests should have written. If the database holds anything else, a refused request has written
 * it, or it belongs to an account that nobody named.
 */
export class Shadow {
  readonly #sums = new Map<string, Sum>()
  readonly #named = new Set<string>()
  readonly #answers = new Map<string, string>()
  accepted = 0
  refused = 0

  /** Notes an account that a request named, whatever the reply. */
  name (userId: string): void {
    this.#named.add(userId)
  }

  /** Notes a request that was accepted, and that is no replay. `budget`: the one in which it counts. */
  accept (kind: Kind, userId: string, credits: number, budget?: string): void {
    this.name(userId)
    this.#add(userId, kind, credits)
    if (budget !== undefined && (kind === 'deduct' || kind === 'hold')) this.#add(userId, `${kind} in ${budget}`, credits)
  }

  /** Asserts that all replies to one key of one account are equal. */
  answerTo (scope: unknown[], body: string): void {
    const place = JSON.stringify(scope)
    const earlier = this.#answers.get(place)
    if (earlier === undefined) this.#answers.set(place, body)
    else assert.strictEqual(body, earlier, `the answers to ${place}`)
  }

  /** Asserts that the database holds what was accepted, on the accounts that were named, and nothing else. */
  async compare (db: Queryable): Promise<void> {
    const { rows } = await db.query(WRITTEN)
    const written = rows.map(({ user_id: userId, kind, count, credits }) =>
      [JSON.stringify([userId, kind]), { count, credits: Number(credits) }] as const)
    assert.deepStrictEqual(new Map(written), this.#sums, 'what was written is what was accepted')
    for (const account of (await db.query(ACCOUNTS)).rows) this.#compareAccount(account)
  }

  #compareAccount ({ user_id: userId, spent, given, aged }: Record<string, any>): void {
    assert(this.#named.has(userId), `nobody named the account ${JSON.stringify(userId)}`)
    const [deducted, captured, refunded, granted] = (['deduct', 'capture', 'refund', 'grant'] as const)
      .map(kind => this.#sum(userId, kind).credits) as [number, number, number, number]
    assert.strictEqual(Number(spent), deducted + captured - refunded, `what ${JSON.stringify(userId)} has spent`)
    if (!aged) assert.strictEqual(Number(given), granted, `what ${JSON.stringify(userId)} was given`)
  }

  #add (userId: string, what: string, credits: number): void {
    const { count, credits: before } = this.#sum(userId, what)
    this.#sums.set(JSON.stringify([userId, what]), { count: count + 1, credits: before + credits })
  }

  #sum (userId: string, kind: string): Sum {
    return this.#sums.get(JSON.stringify([userId, kind])) ?? { count: 0, credits: 0 }
  }
}

/** Asserts that every account reconciles. */
export async function reconcile (app: FastifyInstance): Promise<number> {
  const { ok, accounts, differences } = await app.credits.reconcile()
  assert.deepStrictEqual({ ok, differences }, { ok: true, differences: [] })
  return accounts
}
