const MOST = 100
const OTHER = '_other'

/**
 * Bounds the operations that a metric shows: each makes a series of its own, and whoever may charge can invent them.
 * Those that are `expected`, and the first hundred others, keep their names; the rest share one.
 */
export function boundOperations (expected: (operation: string) => boolean): (operation: string) => string {
  const others = new Set<string>()
  return operation => {
    if (expected(operation) || others.has(operation)) return operation
    if (others.size === MOST) return OTHER
    others.add(operation)
    return operation
  }
}
