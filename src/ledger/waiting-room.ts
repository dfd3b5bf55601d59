import type { Lane } from './lane.js'
import { clearTimeout, setTimeout } from './timers.js'

const RETRY_PAUSE = 100 // milliseconds until all are tried again
const RETRY_PAUSE_EACH = 5 // and longer if they are many: two hundred tries a second are enough

/**
 * The lanes whose account is not free. Few of them at a time wait in the database, each for a moment, so that they never
 * hold many connections; and now and then all are tried again without waiting, as some may be free by then.
 *
 * Lanes that have waited in vain before are stalled. They get at most half of the places, so that an account that is only
 * busy for milliseconds finds one at once.
 */
export class WaitingRoom<Call, Answer> {
  private readonly places: number
  private readonly placesOfStalled: number
  private taken = 0
  private takenByStalled = 0
  private fresh: Lane<Call, Answer>[] = []
  private stalled: Lane<Call, Answer>[] = []
  private timer: NodeJS.Timeout | undefined

  /** `retry` gets all lanes back. */
  constructor (places: number, private readonly retry: (lanes: Lane<Call, Answer>[]) => void) {
    this.places = places
    this.placesOfStalled = Math.floor(places / 2)
  }

  /** Takes in a lane. */
  add (lane: Lane<Call, Answer>): void {
    const lanes = lane.stalled ? this.stalled : this.fresh
    lanes.push(lane)
    this.timer ??= setTimeout(() => {
      this.timer = undefined
      const all = [...this.fresh, ...this.stalled]
      this.fresh = []
      this.stalled = []
      this.retry(all)
    }, Math.max(RETRY_PAUSE, RETRY_PAUSE_EACH * (this.fresh.length + this.stalled.length)))
  }

  /** The next lane that may wait now, if there is one. It leaves the room for a place, until `leave`. */
  enter (): { lane: Lane<Call, Answer>, leave: () => void } | undefined {
    if (this.taken === this.places) return
    const asStalled = this.stalled.length > 0 && this.takenByStalled < this.placesOfStalled
    const lane = asStalled ? this.stalled.shift() : this.fresh.shift()
    if (lane === undefined) return
    this.taken++
    if (asStalled) this.takenByStalled++
    if (this.fresh.length + this.stalled.length === 0) {
      clearTimeout(this.timer)
      this.timer = undefined
    }
    return {
      lane,
      leave: () => {
        this.taken--
        if (asStalled) this.takenByStalled--
      }
    }
  }
}
