import assert from 'node:assert'

const ID_FIELDS = ['id', 'holdId', 'usageId', 'referenceId']

/** Maps the ids of the real ledger to those of the reference. */
export class Ids {
  readonly #actual = new Map<string, string>()
  readonly #reference = new Map<string, string>()

  /** Learns a new pair of ids from the two results of one call. */
  learn (expected: object, actual: object): void {
    const id = idOf(expected)
    const actualId = idOf(actual)
    if (id === undefined || actualId === undefined || this.#actual.has(id)) return
    const name = `${id.split(' ')[0]} ${actualId}` // holds, grants and records have separate numbers
    assert(!this.#reference.has(name), `id ${name} was answered before`)
    this.#actual.set(id, actualId)
    this.#reference.set(name, id)
  }

  /** Returns the reference's id for an id of the real ledger. */
  toReference (kind: string, actualId: string): string {
    return this.#reference.get(`${kind} ${actualId}`) ?? actualId
  }

  /** Returns a value with the reference's ids replaced by those of the real ledger. */
  toActual (value: any): any {
    if (typeof value !== 'object' || value === null || value instanceof Date) return value
    return Object.fromEntries(Object.entries(value).map(([name, field]) =>
      [name, ID_FIELDS.includes(name) ? this.actualId(field as string) : field]))
  }

  actualId (id: string): string {
    return this.#actual.get(id) ?? id
  }
}

function idOf (answer: object): string | undefined {
  return (answer as { id?: string }).id
}
