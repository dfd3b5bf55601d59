import { late, tooMany } from './failure.js'

/** A call that may share a statement with others. */
export interface QueuedCall {
  /** The account it is on. */
  userId: string
  /** No two calls on one account with the same token share a statement: the second is to see what the first wrote. */
  token?: string | undefined
  /** When its caller stops waiting, on the clock of `performance.now()`; -Infinity once it has. */
  deadline: number
}

/** What a call of a shared statement came to, where that is no answer: its account has to be waited for. */
export const BUSY = Symbol('busy')

/** The same, where the statement failed: each of its calls is to be run alone. */
export const FAILED = Symbol('failed')

/** Runs a queue's calls. */
export interface CallRunner<Call, Answer> {
  /**
   * Runs calls as one statement, those on one account side by side and in order. Never rejects: it answers for each
   * call its answer, an error, BUSY or FAILED.
   */
  together (calls: Call[]): Promise<(Answer | Error | typeof BUSY | typeof FAILED)[]>
  /** Runs one call, which may wait for its account. */
  alone (call: Call): Promise<Answer>
}

interface Entry<Call, Answer> {
  call: Call
  apart: boolean
  resolve: (answer: Answer) => void
  reject: (error: unknown) => void
}

/** The calls on one account in order of arrival. Of these at most one statement is in flight. */
interface Lane<Call, Answer> {
  userId: string
  entries: Entry<Call, Answer>[]
}

// Measured with `npm run bench`. 256 callers on one account make two halves: while PostgreSQL works on one, the process
// answers and prepares the other.
const MAX_CALLS = 160 // of a statement
const MAX_TOGETHER = 2 // shared statements in flight
const MAX_ALONE = 4 // statements of one call in flight, which may be waiting for an account

/**
 * Gathers calls into statements (group commit). A call leaves at once where a statement may; what arrives while none may
 * goes with the next one, in order of arrival on each account, the accounts taking turns.
 */
export class CallQueue<Call extends QueuedCall, Answer> {
  private readonly lanes = new Map<string, Lane<Call, Answer>>()
  private ready: Lane<Call, Answer>[] = []
  private readonly readyApart: Lane<Call, Answer>[] = []
  private readonly answerable = new Set<Entry<Call, Answer>>() // by their deadlines, which come in order
  private timer: NodeJS.Timeout | undefined
  private waiting = 0
  private together = 0
  private alone = 0
  private scheduled = false

  constructor (private readonly runner: CallRunner<Call, Answer>, private readonly maxQueue: number) {}

  /** Whether nothing is waiting or in flight. */
  get idle (): boolean {
    return this.lanes.size === 0
  }

  /** Calls that wait for their turn. */
  get length (): number {
    return this.waiting
  }

  /**
   * Answers what the call came to. Its deadline is not before that of any call added earlier. Rejects with an
   * UnavailableError where `maxQueue` calls are waiting.
   */
  add (call: Call): Promise<Answer> {
    return new Promise((resolve, reject) => {
      if (this.waiting >= this.maxQueue) throw tooMany(this.maxQueue)
      this.waiting++
      const entry = { call, apart: false, resolve, reject }
      this.answerable.add(entry)
      if (this.timer === undefined) this.watch(call.deadline)
      const lane = this.lanes.get(call.userId)
      if (lane !== undefined) {
        lane.entries.push(entry)
        return
      }
      const opened = { userId: call.userId, entries: [entry] }
      this.lanes.set(call.userId, opened)
      this.ready.push(opened)
      this.schedule()
    })
  }

  // One timer for all: it goes off when the time of the first may have run out.
  private watch (deadline: number) {
    this.timer = setTimeout(() => {
      this.timer = undefined
      const now = performance.now()
      for (const entry of this.answerable) {
        if (entry.call.deadline > now) return this.watch(entry.call.deadline)
        this.settle(entry)
        entry.call.deadline = -Infinity // it is not to be sent after all
        entry.reject(late())
      }
    }, deadline - performance.now())
  }

  // From here on nobody has to watch its deadline.
  private settle (entry: Entry<Call, Answer>) {
    this.answerable.delete(entry)
    if (this.answerable.size > 0) return
    clearTimeout(this.timer)
    this.timer = undefined
  }

  // Once: what arrives in the same turn of the event loop leaves together.
  private schedule () {
    if (this.scheduled) return
    this.scheduled = true
    setImmediate(() => {
      this.scheduled = false
      this.dispatch()
    })
  }

  private dispatch () {
    while (this.alone < MAX_ALONE && this.readyApart.length > 0) this.runAlone(this.readyApart.shift()!)
    while (this.ready.length > 0) {
      const [first] = this.ready
      if (this.alone < MAX_ALONE && this.ready.length === 1 && first!.entries.length === 1) {
        this.runAlone(this.ready.pop()!)
      } else if (this.together < MAX_TOGETHER) {
        this.runTogether()
      } else {
        return
      }
    }
  }

  private async runAlone (lane: Lane<Call, Answer>) {
    const entry = this.takeFrom(lane, 1, true)[0]
    if (entry !== undefined) {
      this.settle(entry) // the statement has the same deadline
      this.alone++
      try {
        entry.resolve(await this.runner.alone(entry.call))
      } catch (error) {
        entry.reject(error)
      }
      this.alone--
    }
    this.free(lane)
    this.dispatch()
  }

  private async runTogether () {
    const lanes = this.ready.splice(0, MAX_CALLS)
    const shares = this.share(lanes)
    const entries = shares.flat()
    this.together++
    const answers = await this.runner.together(entries.map(({ call }) => call))
    this.together--
    const someUnanswered = answers.some(isUnanswered)
    let place = 0
    for (const [index, lane] of lanes.entries()) {
      const share = shares[index]!
      if (someUnanswered) this.putBack(lane, share, answers.slice(place, place += share.length))
      this.free(lane)
    }
    this.dispatch()
    // Once the next statement is on its way, so that PostgreSQL and the callers work at the same time.
    setImmediate(() => {
      for (const [index, entry] of entries.entries()) {
        const answer = answers[index]!
        if (answer === BUSY || answer === FAILED) continue
        this.settle(entry)
        if (answer instanceof Error) entry.reject(answer)
        else entry.resolve(answer)
      }
    })
  }

  // An account with many calls leaves room for those after it.
  private share (lanes: Lane<Call, Answer>[]) {
    let room = MAX_CALLS
    return lanes.map((lane, index) => {
      const share = this.takeFrom(lane, Math.ceil(room / (lanes.length - index)), false)
      room -= share.length
      return share
    })
  }

  // The lane's first calls that somebody still waits for and that may share a statement.
  private takeFrom ({ entries }: Lane<Call, Answer>, limit: number, apart: boolean) {
    const now = performance.now()
    const taken: Entry<Call, Answer>[] = []
    let tokens: Set<string> | undefined
    let count = 0
    for (const entry of entries) {
      const { token, deadline } = entry.call
      if (taken.length === limit || (entry.apart && !apart) || (token !== undefined && tokens?.has(token))) break
      count++
      if (deadline <= now) continue
      taken.push(entry)
      if (token !== undefined) tokens = (tokens ?? new Set()).add(token)
    }
    entries.splice(0, count)
    this.waiting -= count
    return taken
  }

  // Those without an answer were first, so they stay first. Once one of them has waited for the account, it is there.
  private putBack (lane: Lane<Call, Answer>, share: Entry<Call, Answer>[], answers: unknown[]) {
    const unanswered = share.filter((_entry, index) => isUnanswered(answers[index]))
    for (const [index, entry] of unanswered.entries()) entry.apart = index === 0 || answers[index] === FAILED
    lane.entries.unshift(...unanswered)
    this.waiting += unanswered.length
  }

  private free (lane: Lane<Call, Answer>) {
    const next = lane.entries[0]
    if (next === undefined) this.lanes.delete(lane.userId)
    else (next.apart ? this.readyApart : this.ready).push(lane)
  }
}

const isUnanswered = (answer: unknown) => answer === BUSY || answer === FAILED
