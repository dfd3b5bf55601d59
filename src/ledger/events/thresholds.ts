import type { LowThreshold } from './types.js'

/** What is compared with thresholds: of a balance, or of a budget's limit what is left, and the limit. */
export interface Level {
  available: number
  total: number
}

/** Returns the thresholds that the available credits have fallen to: `before` is above the threshold, `after` is at or below it. */
export function crossed (thresholds: readonly LowThreshold[], before: Level, after: Level): LowThreshold[] {
  return thresholds.filter(threshold => !isLow(before, threshold) && isLow(after, threshold))
}

function isLow ({ available, total }: Level, threshold: LowThreshold) {
  return typeof threshold === 'number' ? available <= threshold : available * 100 <= total * parseInt(threshold)
}
