import type { Lane } from './lane.js'
import { clearTimeout, setTimeout } from '../timers.js'

const RETRY_PAUSE = 100 // milliseconds until all lanes are tried again
const RETRY_PAUSE_EACH = 5 // milliseconds for each lane, if that is longer: 200 attempts per second are enough

/**
 * The lanes with an account that is not free. A few of them at a time wait in the database, each for a short time. They
 * therefore never use many connections. At intervals, all lanes are tried again without waiting, because some accounts may
 * be free by then.
 *
 * A lane that has waited without success is stalled. Stalled lanes get at most half of the places. A lane with an account
 * that is busy for milliseconds only therefore finds a place at once.
 */
export class WaitingRoom<Call, Result> {
  private readonly places: number
  private readonly placesOfStalled: number
  private taken = 0
  private takenByStalled = 0
  private fresh: Lane<Call, Result>[] = []
  private stalled: Lane<Call, Result>[] = []
  private timer: NodeJS.Timeout | undefined

  /** `places`: how many lanes may wait in the database at a time. `retry`: gets all lanes back, to try them again. */
  constructor (places: number, private readonly retry: (lanes: Lane<Call, Result>[]) => void) {
    this.places = places
    this.placesOfStalled = Math.floor(places / 2)
  }

  /** Adds a lane. */
  add (lane: Lane<Call, Result>): void {
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

  /**
   * Removes the next lane that may wait in the database now, and returns it; undefined if there is none. The lane uses a
   * place until `leave` is called.
   */
  enter (): { lane: Lane<Call, Result>, leave: () => void } | undefined {
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
