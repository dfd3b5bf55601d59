import type { Call, Entries } from './journal.js'
import type { Random } from './random.js'

/** What an account of a gateway under test starts with. */
export const allowance = 400

/** The life of a hold that is to lapse, and of one that is not, in milliseconds. */
export const ttl = { short: 1000, long: 600_000 }

/** The route of the gateways' own that is charged: before it replies, so that what was delivered was paid for. */
export const chargedRoute = { path: '/work', operation: 'work', cost: 7 }

const USERS = 12
const HOT = 0.4 // the share of calls on one account

type Draft = Omit<Call, 'number' | 'key'>

/** Makes the calls of a round: many accounts and one hot one, some of them about what earlier calls have answered. */
export class Load {
  readonly #random: Random
  readonly #round: string
  readonly #holds: Array<{ userId: string, id: string, credits: number }> = []
  readonly #deducts: Array<{ userId: string, key: string, credits: number }> = []

  constructor (random: Random, round: string) {
    this.#random = random
    this.#round = round
  }

  /** The next call. */
  next (number: number): Call {
    const key = `${this.#round} call ${number}`
    const draft = this.#draft()
    return { ...draft, number, key, ...draft.kind === 'charge' && { body: { ...draft.body, call: key } } }
  }

  /** Takes note of a call that was accepted, so that others can follow it. */
  accepted ({ kind, userId, key, body }: Call, answer: any): void {
    const credits = body.credits as number
    if (kind === 'hold') this.#holds.push({ userId, id: answer.id, credits })
    if (kind === 'deduct') this.#deducts.push({ userId, key, credits })
  }

  /** Takes note of what a client before this one has written down. */
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
    return { kind: 'deduct', userId, path: '/api/credits/deduct', body }
  }

  #hold (): Draft {
    const userId = this.#user()
    const life = this.#random.happens(0.3) ? ttl.short : ttl.long
    const body = { user_id: userId, credits: this.#random.whole(1, 20), operation: 'video', ttl: life }
    return { kind: 'hold', userId, path: '/api/credits/holds', body }
  }

  // Of a part, of all, or of more than was held.
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

  // Of accounts that have no other calls, as it has no key: each request that is sent may be charged.
  #charge (): Draft {
    const userId = `charged ${this.#user()}`
    return { kind: 'charge', userId, path: chargedRoute.path, body: { user: userId } }
  }

  #grant (): Draft {
    const userId = this.#user()
    return { kind: 'grant', userId, path: '/api/credits/grants', body: { user_id: userId, credits: this.#random.whole(20, 90) } }
  }

  #user (): string {
    return `${this.#round} user ${this.#random.happens(HOT) ? 0 : this.#random.whole(1, USERS)}`
  }
}
