import { now } from '../timers.js'

const STATEMENTS = 16
const MAX_ACCOUNTS = 1000

/**
 * Remembers for a short time which accounts were locked elsewhere. Other processes probably keep such an account busy, so its
 * next statements should wait for it at once: a statement that does not wait would find it locked again. After some statements
 * that wait, one is to be tried that does not.
 */
export class Contention {
  private readonly accounts = new Map<string, { until: number, statements: number }>()

  /** `memory`: for how many milliseconds after its last statement an account is remembered. */
  constructor (private readonly memory = 50) {}

  /** Notes that an account was locked elsewhere. */
  note (userId: string): void {
    this.accounts.delete(userId)
    this.accounts.set(userId, { until: now() + this.memory, statements: STATEMENTS })
    if (this.accounts.size > MAX_ACCOUNTS) this.accounts.delete(this.accounts.keys().next().value!)
  }

  /** Returns whether the next statement on an account should wait for it. */
  isLikely (userId: string): boolean {
    if (this.accounts.size === 0) return false
    const account = this.accounts.get(userId)
    if (account === undefined) return false
    const instant = now()
    if (account.statements-- > 0 && account.until > instant) {
      account.until = instant + this.memory
      return true
    }
    this.accounts.delete(userId)
    return false
  }
}
