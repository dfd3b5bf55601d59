/** Returns the median, of an even count the higher of the two in the middle; NaN if there are no numbers. */
export function median (numbers: number[]): number {
  const sorted = numbers.toSorted((a, b) => a - b)
  return sorted[sorted.length >> 1] ?? NaN
}

/** Returns a percentile of sorted numbers; `share` is from 0 to 1. NaN if there are no numbers. */
export function percentile (sorted: Float64Array, share: number): number {
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] ?? NaN
}
