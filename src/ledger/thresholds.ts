import type { LowThreshold } from './credits-events.js'

/** What of a balance tells whether it is low. */
export interface Level {
  available: number
  total: number
}

/** The thresholds that are crossed downward between two balances: above it before, at it or below it after. */
export function crossed (thresholds: readonly LowThreshold[], before: Level, after: Level): LowThreshold[] {
  return thresholds.filter(threshold => !isLow(before, threshold) && isLow(after, threshold))
}

function isLow ({ available, total }: Level, threshold: LowThreshold) {
  return typeof threshold === 'number' ? available <= threshold : available * 100 <= total * parseInt(threshold)
}
