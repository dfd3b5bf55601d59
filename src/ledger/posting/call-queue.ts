import { tooMany } from '../database/failure.js'
import { BUSY, FAILED, isObstacle, isUndone, NEW, SETTLING, type CallRunner, type Obstacle, type Outcome, type Patience } from './call-runner.js'
import { Contention } from './contention.js'
import { takeFrom, type Entry, type Lane, type QueuedCall } from './lane.js'
import { Lateness } from './lateness.js'
import { NodeQueue } from './node-queue.js'
import { setImmediate } from '../timers.js'
import { WaitingRoom } from './waiting-room.js'

/** The limits of a queue. */
export interface CallQueueOptions {
  /** How many calls may wait. */
  maxQueue: number
  /** How many statements may wait for an account at a time. The same number of other statements may create one. */
  patient: number
  /** A call with a locked account is not sent again in the last `reserve` milliseconds before its deadline. */
  reserve: number
  /** Returns the node of the database on which an account lives. Default: all are on one. */
  nodeOf?: (userId: string) => number
}

// Measured with `npm run bench`. With 256 callers on one account, the calls form two batches: while PostgreSQL runs one, the
// process returns the results of the other and prepares it again.
const MAX_CALLS = 160 // in one statement
const TURN = 8 // calls that an account may send in a statement while others wait for their turn
const MAX_TOGETHER = 2 // shared statements in flight, on each node
const MAX_ALONE = 4 // statements in flight with one call that could share a statement, and that wait for no account, on each node
const MAX_APART = 8 // statements in flight with one call that cannot share a statement, and that wait for no account

/**
 * Gathers calls into shared statements (group commit). A call is sent at once if another statement may be in flight.
 * Otherwise it waits for the next statement. Calls on one account are sent in order of arrival, and accounts take turns.
 *
 * A statement on several accounts waits for none of them. If an account is locked elsewhere, one statement waits for it and
 * carries all of its waiting calls; only few statements wait at the same time. While other processes keep the account busy,
 * its next statements wait at once. Accounts that are missing are created together.
 *
 * Where accounts live on several nodes, a shared statement has accounts of one node. Each node has its own statements in flight.
 */
export class CallQueue<Call extends QueuedCall, Result> {
  private readonly lanes = new Map<string, Lane<Call, Result>>()
  private readonly nodes = new Map<number, NodeQueue<Call, Result>>()
  private readonly readyApart: Lane<Call, Result>[] = []
  private readonly missingApart: Lane<Call, Result>[] = [] // each account must be created by a statement of its own
  private readonly again: Lane<Call, Result>[] = [] // their accounts were locked elsewhere
  private readonly waitingRoom: WaitingRoom<Call, Result>
  private readonly contention = new Contention()
  private readonly lateness = new Lateness<Call, Result>()
  private waiting = 0
  private apart = 0
  private creating = 0 // statements that create one
  private scheduled = false

  constructor (private readonly runner: CallRunner<Call, Result>, private readonly options: CallQueueOptions) {
    this.waitingRoom = new WaitingRoom(options.patient, lanes => {
      for (const lane of lanes) this.makeReady(lane)
      this.dispatch()
    })
  }

  /** Whether nothing is waiting or in flight. */
  get idle (): boolean {
    return this.lanes.size === 0
  }

  /** How many calls wait for their turn. */
  get length (): number {
    return this.waiting
  }

  /**
   * Runs a call and returns its result. The call's deadline must not be before that of any call added earlier. `obstacle`:
   * the obstacle that the call has already met elsewhere. Rejects with UnavailableError if `maxQueue` calls are waiting, or
   * at the deadline.
   */
  add (call: Call, obstacle?: Obstacle): Promise<Result> {
    return new Promise((resolve, reject) => {
      if (this.waiting >= this.options.maxQueue) throw tooMany(this.options.maxQueue)
      this.waiting++
      const found = this.lanes.get(call.userId)
      const lane = found ?? { userId: call.userId, entries: [], blocked: false, triedAgain: false, stalled: false, createsAlone: false }
      const entry = { call, lane, apart: call.apart === true, resolve, reject }
      lane.entries.push(entry)
      this.lateness.add(entry)
      if (found !== undefined) return
      this.lanes.set(call.userId, lane)
      if (obstacle === undefined) this.makeReady(lane)
      else this.setAside(lane, obstacle)
      this.schedule()
    })
  }

  // Dispatches once per turn of the event loop, so calls that arrive in the same turn can share a statement.
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
    for (const node of this.nodes.values()) this.createMissing(node)
    while (this.creating < this.options.patient && this.missingApart.length > 0) this.create(this.missingApart.shift()!)
    while (this.apart < MAX_APART && this.readyApart.length > 0) this.runApart(this.readyApart.shift()!)
    for (const node of this.nodes.values()) this.sendReady(node)
  }

  private createMissing (node: NodeQueue<Call, Result>) {
    const { missing } = node
    if (missing.length === 1 && missing[0]!.entries.length === 1) this.missingApart.push(missing.pop()!)
    if (missing.length > 0 && !node.isCreating) this.createTogether(node)
  }

  private sendReady (node: NodeQueue<Call, Result>) {
    const { ready } = node
    while (ready.length > 0) {
      if (node.alone < MAX_ALONE && ready.length === 1 && ready[0]!.entries.length === 1) {
        this.runAlone(node, ready.pop()!)
      } else if (node.together < MAX_TOGETHER) {
        this.runTogether(node)
      } else {
        return
      }
    }
  }

  private runAlone (node: NodeQueue<Call, Result>, lane: Lane<Call, Result>) {
    node.alone++
    this.runFirst(lane, undefined, () => node.alone--)
  }

  private runApart (lane: Lane<Call, Result>) {
    this.apart++
    this.runFirst(lane, undefined, () => this.apart--)
  }

  private create (lane: Lane<Call, Result>) {
    this.creating++
    this.runFirst(lane, 'create', () => this.creating--)
  }

  private async runPatiently (lane: Lane<Call, Result>, leave: () => void) {
    if (lane.entries.length < 2 || lane.entries[0]!.apart) return await this.runFirst(lane, 'wait', leave)
    await this.runLanes([lane], 'wait')
    leave()
    this.dispatch()
  }

  private async createTogether (node: NodeQueue<Call, Result>) {
    const lanes = takeTurns(node.missing)
    for (const lane of lanes) lane.createsAlone = true // if this does not create it
    node.isCreating = true
    await this.runLanes(lanes, 'create')
    node.isCreating = false
    this.dispatch()
  }

  private async runFirst (lane: Lane<Call, Result>, patience: Patience | undefined, done: () => void) {
    const taken = this.take(lane, 1, true)
    const obstacle = taken[0] && await this.runEntry(taken[0], patience)
    done()
    if (obstacle === undefined) {
      this.proceed(lane, taken)
    } else {
      this.putBack(lane, taken)
      lane.stalled ||= patience !== undefined
      this.setAside(lane, obstacle)
    }
    this.dispatch()
  }

  private async runEntry (entry: Entry<Call, Result>, patience: Patience | undefined): Promise<Obstacle | undefined> {
    try {
      const outcome = await this.runner.alone(entry.call, patience)
      if (isObstacle(outcome)) return outcome
      entry.resolve(outcome)
    } catch (error) {
      entry.reject(error)
    }
    this.lateness.remove(entry)
  }

  private async runTogether (node: NodeQueue<Call, Result>) {
    node.together++
    await this.runLanes(takeTurns(node.ready), undefined)
    node.together--
    this.dispatch()
  }

  // The results are returned after the next statement was sent. PostgreSQL and the callers then work at the same time.
  private async runLanes (lanes: Lane<Call, Result>[], patience: Patience | undefined) {
    const shares = this.share(lanes)
    const entries = shares.flat()
    const outcomes = await this.runner.together(entries.map(({ call }) => call), patience)
    const someUndone = outcomes.some(isUndone)
    let place = 0
    for (const [index, lane] of lanes.entries()) {
      const share = shares[index]!
      if (someUndone) this.proceedPartly(lane, share, outcomes.slice(place, place += share.length), patience, lanes.length > 1)
      else this.proceed(lane, share)
    }
    setImmediate(() => {
      this.returnResults(entries, outcomes)
      this.tryAgain()
    })
  }

  // A statement on many accounts finds some of them locked by other processes, for as long as a statement takes. They go once more
  // with the calls that come next, which costs no statement of their own.
  private tryAgain () {
    if (this.again.length === 0) return
    for (const lane of this.again.splice(0)) this.makeReady(lane)
    this.schedule()
  }

  private returnResults (entries: Entry<Call, Result>[], outcomes: Outcome<Result>[]) {
    for (const [index, entry] of entries.entries()) {
      const outcome = outcomes[index]!
      if (isUndone(outcome)) continue
      this.lateness.remove(entry)
      if (outcome instanceof Error) entry.reject(outcome)
      else entry.resolve(outcome as Result)
    }
  }

  // Divides the room in a statement among the lanes, so that an account with many calls leaves room for the others.
  private share (lanes: Lane<Call, Result>[]) {
    let room = MAX_CALLS
    return lanes.map((lane, index) => {
      const share = this.take(lane, Math.min(room, Math.max(TURN, Math.ceil(room / (lanes.length - index)))), false)
      room -= share.length
      return share
    })
  }

  private take (lane: Lane<Call, Result>, limit: number, apart: boolean) {
    this.waiting -= lane.entries.length
    const taken = takeFrom(lane, limit, apart, this.options.reserve)
    this.waiting += lane.entries.length
    return taken
  }

  // After a statement that did not do all of the lane's calls. An obstacle blocks the whole lane.
  private proceedPartly (
    lane: Lane<Call, Result>, share: Entry<Call, Result>[], outcomes: Outcome<Result>[], patience: Patience | undefined,
    isOneOfMany: boolean
  ) {
    const undone = share.filter((_entry, index) => isUndone(outcomes[index]))
    for (const [index, entry] of share.entries()) entry.apart ||= outcomes[index] === FAILED
    this.putBack(lane, undone)
    const obstacle = outcomes.find(isObstacle)
    if (obstacle === undefined) return this.proceed(lane, share)
    if (obstacle === BUSY && isOneOfMany && !lane.triedAgain) {
      lane.blocked = lane.triedAgain = true
      this.again.push(lane)
      return
    }
    lane.stalled ||= patience === 'wait'
    this.setAside(lane, obstacle)
  }

  // Puts calls back at the front, to keep the order of arrival.
  private putBack (lane: Lane<Call, Result>, entries: Entry<Call, Result>[]) {
    lane.entries.unshift(...entries)
    this.waiting += entries.length
  }

  // After a statement that met no obstacle. If no call was taken, because all were late, the account was not tried.
  private proceed (lane: Lane<Call, Result>, taken: Entry<Call, Result>[]) {
    if (taken.length > 0) lane.blocked = lane.triedAgain = lane.stalled = lane.createsAlone = false
    this.makeReady(lane)
  }

  // The lane's next call is sent when another statement may be in flight.
  private makeReady (lane: Lane<Call, Result>) {
    const next = lane.entries[0]
    if (next === undefined) this.lanes.delete(lane.userId)
    else if (this.contention.isLikely(lane.userId)) this.waitingRoom.add(lane)
    else (next.apart ? this.readyApart : this.nodeOf(lane).ready).push(lane)
  }

  // After an obstacle. If a missing account could not be created in a short time, another transaction is creating it and has
  // not committed yet. The lane then waits as for a locked account.
  private setAside (lane: Lane<Call, Result>, obstacle: Obstacle) {
    if (obstacle === SETTLING) lane.stalled = false // the account made progress
    if (obstacle === BUSY) this.contention.note(lane.userId)
    const isToCreate = obstacle === NEW && !lane.stalled
    lane.blocked = obstacle !== SETTLING && !isToCreate
    if (!isToCreate) this.waitingRoom.add(lane)
    else (lane.createsAlone || !canCreate(lane.entries[0]) ? this.missingApart : this.nodeOf(lane).missing).push(lane)
  }

  // Asked each time that a lane has something to send, because its account may move to another node.
  private nodeOf (lane: Lane<Call, Result>) {
    const id = this.options.nodeOf?.(lane.userId) ?? 0
    let node = this.nodes.get(id)
    if (node === undefined) this.nodes.set(id, node = new NodeQueue())
    return node
  }
}

// Removes the lanes whose turn it is, and returns them: as many as a statement has room for if each takes its turn.
function takeTurns<Call, Result> (lanes: Lane<Call, Result>[]) {
  let room = MAX_CALLS
  let count = 0
  while (count < lanes.length && room > 0) room -= Math.min(TURN, lanes[count++]!.entries.length)
  return lanes.splice(0, count)
}

// Whether a call can be the first of a shared statement that creates its account.
function canCreate<Call extends QueuedCall, Result> (entry: Entry<Call, Result> | undefined) {
  return entry !== undefined && !entry.apart && entry.call.createsAccount !== false
}
