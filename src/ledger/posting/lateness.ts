import { late, lateForLock } from '../database/failure.js'
import type { Entry, QueuedCall } from './lane.js'
import { clearTimeout, now, setTimeout } from '../timers.js'

/**
 * Rejects queued calls with UnavailableError at their deadlines. One timer serves all calls: it is set to a deadline that is
 * not later than that of any waiting call.
 */
export class Lateness<Call extends QueuedCall, Result> {
  private readonly entries = new Set<Entry<Call, Result>>() // in order of arrival, which is the order of their deadlines
  private timer: NodeJS.Timeout | undefined

  /** Starts to watch a call. */
  add (entry: Entry<Call, Result>): void {
    this.entries.add(entry)
    if (this.timer === undefined) this.watch(entry.call.deadline)
  }

  /** Stops watching a call, because it has its result. */
  remove (entry: Entry<Call, Result>): void {
    this.entries.delete(entry)
    if (this.entries.size > 0) return
    clearTimeout(this.timer)
    this.timer = undefined
  }

  private watch (deadline: number) {
    this.timer = setTimeout(() => {
      this.timer = undefined
      const instant = now()
      for (const entry of this.entries) {
        if (entry.call.deadline > instant) return this.watch(entry.call.deadline)
        this.remove(entry)
        entry.call.deadline = -Infinity // it must not be sent any more
        entry.reject(entry.lane.stalled ? lateForLock() : late())
      }
    }, deadline - now())
  }
}
