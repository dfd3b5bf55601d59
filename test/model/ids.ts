import assert from 'node:assert'

const ID_FIELDS = ['id', 'holdId', 'usageId', 'referenceId']

/** Which id of the real ledger stands for which of the reference. */
export class Ids {
  readonly #actual = new Map<string, string>()
  readonly #reference = new Map<string, string>()

  /** Learns what a new id of the reference is called, from two answers to one call. */
  learn (expected: object, actual: object): void {
    const id = idOf(expected)
    const actualId = idOf(actual)
    if (id === undefined || actualId === undefined || this.#actual.has(id)) return
    const name = `${id.split(' ')[0]} ${actualId}` // holds, grants and records are numbered apart
    assert(!this.#reference.has(name), `id ${name} was answered before`)
    this.#actual.set(id, actualId)
    this.#reference.set(name, id)
  }

  /** The reference's id of what the real ledger calls so. */
  toReference (kind: string, actualId: string): string {
    return this.#reference.get(`${kind} ${actualId}`) ?? actualId
  }

  /** A value with the reference's ids, with those of the real ledger instead. */
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
