const FINEST = 0.001 // milliseconds
const GROWTH = Math.log(1.01)

/** A histogram as processes send it to each other: how many times each place of a scale occurred, and the greatest number. */
export interface Counts {
  counts: [place: number, count: number][]
  max: number
}

/** Counts many latencies in little memory, each within one percent. */
export class Histogram {
  private readonly counts = new Map<number, number>()
  private max = 0
  private total = 0

  /** Returns the histogram of what several processes have counted. */
  static of (parts: Counts[]): Histogram {
    const sum = new Histogram()
    for (const { counts, max } of parts) {
      for (const [place, count] of counts) sum.add(place, count)
      sum.max = Math.max(sum.max, max)
    }
    return sum
  }

  /** Counts a latency in milliseconds. */
  record (milliseconds: number) {
    this.add(Math.round(Math.log(Math.max(milliseconds, FINEST) / FINEST) / GROWTH), 1)
    if (milliseconds > this.max) this.max = milliseconds
  }

  /** Returns a percentile in milliseconds; `share` is from 0 to 1. NaN if nothing was counted. */
  percentile (share: number): number {
    if (this.total === 0) return NaN
    let left = Math.min(this.total - 1, Math.floor(this.total * share))
    for (const [place, count] of [...this.counts].sort(([a], [b]) => a - b)) {
      left -= count
      if (left < 0) return Math.min(this.max, FINEST * Math.exp(place * GROWTH))
    }
    return this.max
  }

  /** The greatest latency in milliseconds. */
  get greatest (): number {
    return this.max
  }

  toJSON (): Counts {
    return { counts: [...this.counts], max: this.max }
  }

  private add (place: number, count: number) {
    this.counts.set(place, (this.counts.get(place) ?? 0) + count)
    this.total += count
  }
}
