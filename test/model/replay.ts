import assert from 'node:assert'
import type { StatementEntry } from '../../src/index.js'
import type { Call, Option } from './commands.js'
import { Ids } from './ids.js'
import { expectedOf, type Outcome } from './outcome.js'
import { Reference } from './reference.js'

const ofTime = ['opening', 'lapse', 'expiry', 'renewal']

/** A call that was made, and its outcome. */
export interface Made {
  call: Call
  outcome: Outcome
}

/** Replays what the database did to one account on a reference, in the order of the account's statement. */
export class Replay {
  readonly userId: string
  readonly #reference: Reference
  readonly #ids = new Ids()
  #entries = 0

  constructor (userId: string, start: number, option: Option) {
    this.userId = userId
    this.#reference = new Reference(start, option)
  }

  /** How many entries of the statement have been replayed. */
  get length (): number {
    return this.#entries
  }

  setOption (option: Option): void {
    this.#reference.setOption(option)
  }

  /** Replays a call that was made while no other was under way. */
  alone (made: Made, now: number): void {
    this.#pass(now)
    this.#expect(made)
    if (made.outcome.answer) this.#entries = this.#reference.entries(this.userId).length
  }

  /**
   * Replays calls that were made together, while the clock showed `times`. A call that changed the account has an entry, and
   * the reference must do the same there. Any other call must have the reference's outcome at some place in the order.
   */
  together (made: Made[], entries: StatementEntry[], times: number[]): void {
    const postings = new Map(made.filter(isPosting).map(posting => [nameOf(posting), posting]))
    let others = made.filter(call => !isPosting(call))
    for (const [index, entry] of entries.entries()) {
      others = others.filter(call => !this.#explains(call, times))
      if (isOfTime(entry)) this.#pass(this.#settledAt(entries.slice(index)))
      else this.#post(entry, postings)
      assert.deepStrictEqual(entry, this.#entry(entry.seq))
      this.#entries = entry.seq + 1
    }
    others = others.filter(call => !this.#explains(call, times))
    assert.deepStrictEqual(others, [], 'answered as the account stood at no time')
    assert.deepStrictEqual([...postings.values()], [], 'in the statement')
    this.#pass(times.at(-1)!)
    assert.strictEqual(this.#reference.entries(this.userId).length, this.#entries, 'as many entries')
  }

  #post (entry: StatementEntry, postings: Map<string, Made>): void {
    const name = `${entry.kind} ${entry.id ?? entry.referenceId}`
    const posting = postings.get(name)
    assert(posting, `nobody asked for ${name}`)
    postings.delete(name)
    this.#pass(+entry.at)
    this.#expect(posting)
  }

  // The statement does not say when a call settled what was due: at the instant of the first of these entries, or at that of
  // a later renewal. Several renewals are one entry if no call came between them.
  #settledAt (entries: StatementEntry[]): number {
    const end = entries.findIndex(entry => !isOfTime(entry))
    const renewals = entries.slice(0, end < 0 ? undefined : end).filter(({ kind }) => kind === 'renewal')
    const times = [entries[0]!, ...renewals].map(({ at }) => +at)
    return times.find(time => this.#settlesTo(time, entries)) ?? times[0]!
  }

  #settlesTo (time: number, entries: StatementEntry[]): boolean {
    const copy = this.#reference.clone()
    copy.now = Math.max(copy.now, time)
    const expected = copy.entries(this.userId).slice(entries[0]!.seq).map(entry => this.#ids.toActual(entry))
    return isEqual(entries.slice(0, expected.length), expected)
  }

  #entry (seq: number): StatementEntry | undefined {
    return this.#ids.toActual(this.#reference.entries(this.userId)[seq])
  }

  #expect ({ call, outcome }: Made): void {
    const expected = expectedOf(this.#reference, this.#translate(call))
    if (expected.answer && outcome.answer) this.#ids.learn(expected.answer, outcome.answer)
    assert.deepStrictEqual(outcome, this.#toActual(expected), `the answer to ${JSON.stringify(call)}`)
  }

  #explains ({ call, outcome }: Made, times: number[]): boolean {
    return times.some(time => {
      const copy = this.#reference.clone()
      copy.now = Math.max(copy.now, time)
      const expected = this.#toActual(expectedOf(copy, this.#translate(call)))
      return isEqual(outcome, expected)
    })
  }

  // A posting that began earlier may come after another one. Then the time stays as it is.
  #pass (time: number): void {
    this.#reference.now = Math.max(this.#reference.now, time)
  }

  #toActual (expected: Outcome): Outcome {
    return expected.answer ? { answer: this.#ids.toActual(expected.answer) } : expected
  }

  #translate ({ method, args: [first, ...rest] }: Call): Call {
    const kind = method === 'revoke' ? 'grant' : 'hold'
    if (isOnId(method)) return { method, args: [this.#ids.toReference(kind, first), ...rest] }
    if (first?.usageId === undefined) return { method, args: [first, ...rest] }
    return { method, args: [{ ...first, usageId: this.#ids.toReference('record', first.usageId) }] }
  }
}

/** Returns true if a method's first argument is an id. */
export function isOnId (method: Call['method']): boolean {
  return ['capture', 'release', 'extend', 'revoke'].includes(method)
}

function isOfTime ({ kind }: StatementEntry): boolean {
  return ofTime.includes(kind)
}

function isPosting ({ outcome: { answer } }: Made): boolean {
  return answer?.replayed === false
}

function nameOf ({ call, outcome }: Made): string {
  return `${call.method} ${outcome.answer.id}`
}

function isEqual (actual: unknown, expected: unknown): boolean {
  try {
    assert.deepStrictEqual(actual, expected)
    return true
  } catch {
    return false
  }
}
