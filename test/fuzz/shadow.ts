import assert from 'node:assert'
import type { FastifyInstance } from 'fastify'
import type { Queryable } from '../../src/index.js'

/** What an accepted request has written. */
export type Kind = 'deduct' | 'capture' | 'refund' | 'hold' | 'grant'

/** What was accepted on one account of one kind. */
interface Sum {
  count: number
  credits: number
}

// The rows that only an accepted request writes; what time does by itself is elsewhere.
const WRITTEN = `
  select user_id, kind, count(*)::integer as count, sum(abs(credits_used))::varchar as credits
  from ai_credit_usage group by user_id, kind
  union all
  select user_id, 'hold', count(*)::integer, sum(credits)::varchar from ai_credit_holds group by user_id
  union all
  select user_id, kind, count(*)::integer, sum(credits)::varchar
  from ai_credit_grants where kind = 'grant' group by user_id, kind`

const ACCOUNTS = `
  select user_id, (spent_before + used_credits)::varchar as spent, (total_credits - opening_total)::varchar as given,
    exists (select from ai_credit_events event
      where event.user_id = account.user_id and kind in ('expiry', 'renewal', 'revoke')) as aged
  from ai_credits account`

/**
 * Counts what requests were told to have done, beside the database: whatever else is written there was written by a
 * request that was refused, or to an account that nobody named.
 */
export class Shadow {
  readonly #sums = new Map<string, Sum>()
  readonly #named = new Set<string>()
  readonly #answers = new Map<string, string>()
  accepted = 0
  refused = 0

  /** An account that a request named, whatever it was answered. */
  name (userId: string): void {
    this.#named.add(userId)
  }

  /** A request that was accepted, for the first time. */
  accept (kind: Kind, userId: string, credits: number): void {
    this.name(userId)
    const { count, credits: before } = this.#sum(userId, kind)
    this.#sums.set(JSON.stringify([userId, kind]), { count: count + 1, credits: before + credits })
  }

  /** The answers to one key of one account are all the same. */
  answerTo (scope: unknown[], body: string): void {
    const place = JSON.stringify(scope)
    const earlier = this.#answers.get(place)
    if (earlier === undefined) this.#answers.set(place, body)
    else assert.strictEqual(body, earlier, `the answers to ${place}`)
  }

  /** The database holds what was accepted, on the accounts that were named, and nothing else. */
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

  #sum (userId: string, kind: Kind): Sum {
    return this.#sums.get(JSON.stringify([userId, kind])) ?? { count: 0, credits: 0 }
  }
}

/** At the end every account adds up. */
export async function reconcile (app: FastifyInstance): Promise<number> {
  const { ok, accounts, differences } = await app.credits.reconcile()
  assert.deepStrictEqual({ ok, differences }, { ok: true, differences: [] })
  return accounts
}
