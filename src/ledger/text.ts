/** Whether the string holds no NUL (PostgreSQL's text cannot) and no lone surrogate (UTF-8 cannot). */
export function isStorable (value: string): boolean {
  return value.isWellFormed() && !value.includes('\0')
}

/** Whether the value is a storable string of 1 to `maxLength` code points. */
export function isText (value: unknown, maxLength: number): value is string {
  return typeof value === 'string' && value !== '' && isStorable(value) && hasAtMost(value, maxLength)
}

function hasAtMost (value: string, codePoints: number) {
  if (value.length <= codePoints) return true
  return value.length <= 2 * codePoints && [...value].length <= codePoints
}
