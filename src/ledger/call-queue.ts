import { tooMany } from './failure.js'
import { takeFrom, type Entry, type Lane, type QueuedCall } from './lane.js'
import { Lateness } from './lateness.js'
import { setImmediate } from './timers.js'
import { WaitingRoom } from './waiting-room.js'

/** What a call came to, where that is no answer: its account is locked elsewhere. Nothing was done. */
export const BUSY = Symbol('busy')

/** The same, where there is no such account yet. */
export const NEW = Symbol('new')

/** The same, where a part of what time does to the account was done, and there is more of it. */
export const SETTLING = Symbol('settling')

/** The same, where the statement failed: each of its calls is to be run alone. */
export const FAILED = Symbol('failed')

/** Why an account could not be had. */
export type Obstacle = typeof BUSY | typeof NEW | typeof SETTLING

/** A call may wait for its account, or create it, where it only waits if somebody else is creating it. */
export type Patience = 'wait' | 'create'

/** Runs a queue's calls. */
export interface CallRunner<Call, Answer> {
  /**
   * Runs calls as one statement, those on one account side by side and in order, and waits for no account. Never rejects:
   * it returns for each call its answer, an error, an obstacle or FAILED.
   */
  together (calls: Call[]): Promise<(Answer | Error | Obstacle | typeof FAILED)[]>
  /** Runs one call. `patience`: what it may wait a moment for; undefined: nothing, and it creates no account. */
  alone (call: Call, patience: Patience | undefined): Promise<Answer | Obstacle>
}

/** How many calls a queue takes. */
export interface CallQueueOptions {
  /** How many calls may wait. */
  maxQueue: number
  /** How many statements may wait for an account at a time; as many others may create one. */
  patient: number
  /** The milliseconds before its deadline in which a call is not sent again whose account is locked elsewhere. */
  reserve: number
}

// Measured with `npm run bench`. 256 callers on one account make two halves: while PostgreSQL works on one, the process
// answers and prepares the other.
const MAX_CALLS = 160 // of a statement
const MAX_TOGETHER = 2 // shared statements in flight
const MAX_ALONE = 4 // statements of one call in flight that wait for nothing
const MAX_APART = 8 // the same of calls that can share no statement

/**
 * Gathers calls into statements (group commit). A call leaves at once where a statement may; what arrives while none may
 * goes with the next one, in order of arrival on each account, the accounts taking turns. Every call is first tried
 * without waiting for its account; only those whose account was not free wait for it, and only few at a time.
 */
export class CallQueue<Call extends QueuedCall, Answer> {
  private readonly lanes = new Map<string, Lane<Call, Answer>>()
  private ready: Lane<Call, Answer>[] = []
  private readonly readyApart: Lane<Call, Answer>[] = []
  private readonly missing: Lane<Call, Answer>[] = [] // their account is to be created
  private readonly waitingRoom: WaitingRoom<Call, Answer>
  private readonly lateness = new Lateness<Call, Answer>()
  private waiting = 0
  private together = 0
  private alone = 0
  private apart = 0
  private creating = 0
  private scheduled = false

  constructor (private readonly runner: CallRunner<Call, Answer>, private readonly options: CallQueueOptions) {
    this.waitingRoom = new WaitingRoom(options.patient, lanes => {
      for (const lane of lanes) this.free(lane)
      this.dispatch()
    })
  }

  /** Whether nothing is waiting or in flight. */
  get idle (): boolean {
    return this.lanes.size === 0
  }

  /** Calls that wait for their turn. */
  get length (): number {
    return this.waiting
  }

  /**
   * Returns what the call came to. Its deadline is not before that of any call added earlier. `obstacle`: what it was
   * tried for in vain. Rejects with an UnavailableError where `maxQueue` calls are waiting.
   */
  add (call: Call, obstacle?: Obstacle): Promise<Answer> {
    return new Promise((resolve, reject) => {
      if (this.waiting >= this.options.maxQueue) throw tooMany(this.options.maxQueue)
      this.waiting++
      const found = this.lanes.get(call.userId)
      const lane = found ?? { userId: call.userId, entries: [], blocked: false, stalled: false }
      const entry = { call, lane, apart: call.apart === true, resolve, reject }
      lane.entries.push(entry)
      this.lateness.add(entry)
      if (found !== undefined) return
      this.lanes.set(call.userId, lane)
      if (obstacle === undefined) this.free(lane)
      else this.keep(lane, obstacle)
      this.schedule()
    })
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
    for (let next = this.waitingRoom.enter(); next !== undefined; next = this.waitingRoom.enter()) {
      this.runPatiently(next.lane, next.leave)
    }
    while (this.creating < this.options.patient && this.missing.length > 0) this.create(this.missing.shift()!)
    while (this.apart < MAX_APART && this.readyApart.length > 0) this.runApart(this.readyApart.shift()!)
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

  private runAlone (lane: Lane<Call, Answer>) {
    this.alone++
    this.runFirst(lane, undefined, () => this.alone--)
  }

  private runApart (lane: Lane<Call, Answer>) {
    this.apart++
    this.runFirst(lane, undefined, () => this.apart--)
  }

  private create (lane: Lane<Call, Answer>) {
    this.creating++
    this.runFirst(lane, 'create', () => this.creating--)
  }

  private runPatiently (lane: Lane<Call, Answer>, leave: () => void) {
    this.runFirst(lane, 'wait', leave)
  }

  private async runFirst (lane: Lane<Call, Answer>, patience: Patience | undefined, done: () => void) {
    const taken = this.take(lane, 1, true)
    const obstacle = taken[0] && await this.runEntry(taken[0], patience)
    done()
    if (obstacle === undefined) {
      this.answered(lane, taken)
    } else {
      this.putBack(lane, taken)
      lane.stalled ||= patience !== undefined
      this.keep(lane, obstacle)
    }
    this.dispatch()
  }

  private async runEntry (entry: Entry<Call, Answer>, patience: Patience | undefined): Promise<Obstacle | undefined> {
    try {
      const answer = await this.runner.alone(entry.call, patience)
      if (isObstacle(answer)) return answer
      entry.resolve(answer)
    } catch (error) {
      entry.reject(error)
    }
    this.lateness.remove(entry)
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
      if (someUnanswered) this.sort(lane, share, answers.slice(place, place += share.length))
      else this.answered(lane, share)
    }
    this.dispatch()
    // Once the next statement is on its way, so that PostgreSQL and the callers work at the same time.
    setImmediate(() => {
      for (const [index, entry] of entries.entries()) {
        const answer = answers[index]!
        if (isUnanswered(answer)) continue
        this.lateness.remove(entry)
        if (answer instanceof Error) entry.reject(answer)
        else entry.resolve(answer as Answer)
      }
    })
  }

  // An account with many calls leaves room for those after it.
  private share (lanes: Lane<Call, Answer>[]) {
    let room = MAX_CALLS
    return lanes.map((lane, index) => {
      const share = this.take(lane, Math.ceil(room / (lanes.length - index)), false)
      room -= share.length
      return share
    })
  }

  private take (lane: Lane<Call, Answer>, limit: number, apart: boolean) {
    this.waiting -= lane.entries.length
    const taken = takeFrom(lane, limit, apart, this.options.reserve)
    this.waiting += lane.entries.length
    return taken
  }

  // Of a lane after a statement that did not answer all of its calls: an obstacle is in the way of the whole lane.
  private sort (lane: Lane<Call, Answer>, share: Entry<Call, Answer>[], answers: unknown[]) {
    const unanswered = share.filter((_entry, index) => isUnanswered(answers[index]))
    for (const [index, entry] of share.entries()) entry.apart ||= answers[index] === FAILED
    this.putBack(lane, unanswered)
    const obstacle = answers.find(isObstacle)
    if (obstacle === undefined) this.answered(lane, share)
    else this.keep(lane, obstacle)
  }

  // They were first, so they stay first.
  private putBack (lane: Lane<Call, Answer>, entries: Entry<Call, Answer>[]) {
    lane.entries.unshift(...entries)
    this.waiting += entries.length
  }

  // Where nothing was taken, as the time of all was up, nothing was answered.
  private answered (lane: Lane<Call, Answer>, taken: Entry<Call, Answer>[]) {
    if (taken.length > 0) lane.blocked = lane.stalled = false
    this.free(lane)
  }

  // Its next call leaves when a statement may.
  private free (lane: Lane<Call, Answer>) {
    const next = lane.entries[0]
    if (next === undefined) this.lanes.delete(lane.userId)
    else (next.apart ? this.readyApart : this.ready).push(lane)
  }

  // A missing account that could not be created in a moment is one that a transaction elsewhere has yet to commit.
  private keep (lane: Lane<Call, Answer>, obstacle: Obstacle) {
    if (obstacle === SETTLING) lane.stalled = false // it gets on
    const isToCreate = obstacle === NEW && !lane.stalled
    lane.blocked = obstacle !== SETTLING && !isToCreate
    if (isToCreate) this.missing.push(lane)
    else this.waitingRoom.add(lane)
  }
}

function isObstacle (answer: unknown): answer is Obstacle {
  return answer === BUSY || answer === NEW || answer === SETTLING
}

function isUnanswered (answer: unknown): answer is Obstacle | typeof FAILED {
  return answer === FAILED || isObstacle(answer)
}
