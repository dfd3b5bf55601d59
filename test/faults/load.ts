import type { BudgetDefinition, Ledger } from '../../src/index.js'
import type { Call, Entries } from './journal.js'
import type { Random } from './random.js'

/** The credits that an account starts with. */
export const allowance = 400

/** The ttl of a hold that shall lapse (short), and of one that shall not (long), in milliseconds. */
export const ttl = { short: 1000, long: 600_000 }

/** The charged route of the gateways. It pays before it replies, so all delivered work is paid. */
export const chargedRoute = { path: '/work', operation: 'work', cost: 7 }

/** The budgets of each account, and their limits, which the load comes near to. A key is made by its first charge. */
export const budgets: Array<[budget: string, definition: BudgetDefinition]> = [
  ['team', { total: 90 }], ['member', { within: 'team', total: 70, month: 80 }], ['key:*', { within: 'member', total: 25, day: 30 }]
]

const KEYS = 4
const USERS = 12
const HOT = 0.4 // the share of calls on one account

type Draft = Omit<Call, 'number' | 'key'>

/** Makes the budgets of the accounts of a round. */
export async function makeBudgets (ledger: Ledger, round: string): Promise<void> {
  await Promise.all(Array.from({ length: USERS + 1 }, async (_, user) => {
    for (const [budget, definition] of budgets) await ledger.setBudget(userOf(round, user), budget, definition)
  }))
}

/** Generates the calls of a round, on many accounts and a hot one. Some use the ids that earlier calls have returned. */
export class Load {
  readonly #random: Random
  readonly #round: string
  readonly #holds: Array<{ userId: string, id: string, credits: number }> = []
  readonly #deducts: Array<{ userId: string, key: string, credits: number }> = []

  constructor (random: Random, round: string) {
    this.#random = random
    this.#round = round
  }

  /** Returns the next call. */
  next (number: number): Call {
    const key = `${this.#round} call ${number}`
    const draft = this.#draft()
    return { ...draft, number, key, ...draft.kind === 'charge' && { body: { ...draft.body, call: key } } }
  }

  /** Notes a call that was accepted. Later calls may use its ids. */
  accepted ({ kind, userId, key, body }: Call, answer: any): void {
    const credits = body.credits as number
    if (kind === 'hold') this.#holds.push({ userId, id: answer.id, credits })
    if (kind === 'deduct') this.#deducts.push({ userId, key, credits })
  }

  /** Notes the accepted calls in the journal of an earlier client. */
  resume ({ calls, answers }: Entries): void {
    for (const call of calls) {
      const answer = answers.get(call.number)
      if (answer?.status === 200) this.accepted(call, answer.body)
    }
  }

  #draft (): Draft {
    const share = this.#random.next()
    if (share < 0.12 && this.#holds.length > 0) return this.#capture()
    if (share < 0.18 && this.#holds.length > 0) return this.#release()
    if (share < 0.26 && this.#deducts.length > 0) return this.#refund()
    if (share < 0.31) return this.#grant()
    if (share < 0.51) return this.#hold()
    if (share < 0.63) return this.#charge()
    return this.#deduct()
  }

  #deduct (): Draft {
    const userId = this.#user()
    const body = { user_id: userId, credits: this.#random.whole(1, 20), operation: 'chat', metadata: { model: this.#random.whole(1, 3) } }
    return this.#inBudget({ kind: 'deduct', userId, path: '/api/credits/deduct', body })
  }

  #hold (): Draft {
    const userId = this.#user()
    const life = this.#random.happens(0.3) ? ttl.short : ttl.long
    const body = { user_id: userId, credits: this.#random.whole(1, 20), operation: 'video', ttl: life }
    return this.#inBudget({ kind: 'hold', userId, path: '/api/credits/holds', body })
  }

  // Half of them charge a budget, most of these a key.
  #inBudget (draft: Draft): Draft {
    if (this.#random.happens(0.5)) return draft
    const budget = this.#random.happens(0.8) ? `key:${this.#random.whole(1, KEYS)}` : this.#random.pick(['member', 'team'])
    return { ...draft, body: { ...draft.body, budget } }
  }

  // Captures a part, all, or more than was held.
  #capture (): Draft {
    const { userId, id, credits } = this.#random.pick(this.#holds)
    const body = { user_id: userId, credits: this.#random.whole(1, credits + 3), final: this.#random.happens(0.6) }
    return { kind: 'capture', userId, holdId: id, path: `/api/credits/holds/${id}/capture`, body }
  }

  #release (): Draft {
    const { userId, id } = this.#random.pick(this.#holds)
    return { kind: 'release', userId, holdId: id, path: `/api/credits/holds/${id}/release`, body: { user_id: userId } }
  }

  #refund (): Draft {
    const { userId, key, credits } = this.#random.pick(this.#deducts)
    const body = { user_id: userId, deduct_key: key, credits: this.#random.whole(1, credits) }
    return { kind: 'refund', userId, path: '/api/credits/refunds', body }
  }

  // Uses accounts that have no other calls, because it has no key: each request that is sent may be charged.
  #charge (): Draft {
    const userId = `charged ${this.#user()}`
    return { kind: 'charge', userId, path: chargedRoute.path, body: { user: userId } }
  }

  #grant (): Draft {
    const userId = this.#user()
    return { kind: 'grant', userId, path: '/api/credits/grants', body: { user_id: userId, credits: this.#random.whole(20, 90) } }
  }

  #user (): string {
    return userOf(this.#round, this.#random.happens(HOT) ? 0 : this.#random.whole(1, USERS))
  }
}

function userOf (round: string, number: number): string {
  return `${round} user ${number}`
}
