import { isStorable } from './text.js'

/** The position of the last entry on a page of history. The next page begins after it. */
export interface HistoryPosition {
  day: string
  used: number
  operation: string
  /** The hash of the entry's metadata, in hex. */
  hash: string
}

/** Returns the position as an opaque string that can be part of a URL. */
export function encodeCursor ({ day, used, operation, hash }: HistoryPosition): string {
  return Buffer.from(JSON.stringify([day, used, operation, hash])).toString('base64url')
}

/** Returns the position that a cursor encodes; undefined if `encodeCursor` cannot have returned that cursor. */
export function decodeCursor (cursor: unknown): HistoryPosition | undefined {
  if (typeof cursor !== 'string') return undefined
  try {
    const [day, used, operation, hash] = JSON.parse(Buffer.from(cursor, 'base64url').toString())
    const position = { day, used, operation, hash }
    return isPosition(position) && encodeCursor(position) === cursor ? position : undefined
  } catch {
    return undefined
  }
}

function isPosition ({ day, used, operation, hash }: Record<keyof HistoryPosition, unknown>) {
  return typeof day === 'string' && isDay(day) && Number.isSafeInteger(used) &&
    typeof operation === 'string' && isStorable(operation) && typeof hash === 'string' && /^[0-9a-f]{64}$/.test(hash)
}

/** Returns whether the string is a day of the calendar, `YYYY-MM-DD`, from the year 1 on. */
export function isDay (day: string): boolean {
  const date = new Date(day)
  return /^\d{4}-\d{2}-\d{2}$/.test(day) && !Number.isNaN(date.valueOf()) && date.toISOString().startsWith(day) &&
    day >= '0001-01-01'
}
