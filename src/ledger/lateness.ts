import { late, lateForLock } from './failure.js'
import type { Entry, QueuedCall } from './lane.js'
import { clearTimeout, now, setTimeout } from './timers.js'

/** Rejects queued calls whose time runs out, with one timer for all: it goes off when that of the first may have. */
export class Lateness<Call extends QueuedCall, Answer> {
  private readonly entries = new Set<Entry<Call, Answer>>() // by their deadlines, which come in order
  private timer: NodeJS.Timeout | undefined

  /** Watches a call. */
  add (entry: Entry<Call, Answer>): void {
    this.entries.add(entry)
    if (this.timer === undefined) this.watch(entry.call.deadline)
  }

  /** A call is answered. */
  remove (entry: Entry<Call, Answer>): void {
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
        entry.call.deadline = -Infinity // it is not to be sent after all
        entry.reject(entry.lane.stalled ? lateForLock() : late())
      }
    }, deadline - now())
  }
}
