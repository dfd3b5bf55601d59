/** The error of a refused call: its code, and its other fields. */
export class Refusal extends Error {
  constructor (readonly code: string, readonly facts: object = {}) {
    super(code)
  }
}
