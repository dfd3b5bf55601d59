/** Returns whether PostgreSQL can store the string: it has no NUL, and no lone surrogate, which UTF-8 cannot encode. */
export function isStorable (value: string): boolean {
  return value.isWellFormed() && !value.includes('\0')
}

/** Returns whether the value is a string of 1 to `maxLength` code points that PostgreSQL can store. */
export function isText (value: unknown, maxLength: number): value is string {
  return typeof value === 'string' && value !== '' && isStorable(value) && hasAtMost(value, maxLength)
}

function hasAtMost (value: string, codePoints: number) {
  if (value.length <= codePoints) return true
  return value.length <= 2 * codePoints && [...value].length <= codePoints
}
