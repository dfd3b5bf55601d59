const ZERO = 48 // the codes of characters
const NINE = 57
const MINUS = 45

const COPIED = 12 // a substring of up to so many characters is a copy in V8. A longer one keeps the whole string in memory

/** Reads an array of bigint in PostgreSQL's text form, such as `{1,-2}`, number by number. It has no NULL. */
export class NumberReader {
  private place = 1 // of the next number

  constructor (private readonly text: string) {}

  /** Whether all numbers, and nothing else, were read. */
  get isAtEnd (): boolean {
    return this.place === this.text.length
  }

  /** Returns the next number. Exact up to 2^53. */
  number (): number {
    const { text } = this
    const isNegative = text.charCodeAt(this.place) === MINUS
    let place = isNegative ? this.place + 1 : this.place
    let number = 0
    for (let code = text.charCodeAt(place); code >= ZERO && code <= NINE; code = text.charCodeAt(++place)) {
      number = number * 10 + (code - ZERO) // in brackets, as the sum with the code may pass 2^53
    }
    this.place = place + 1
    return isNegative ? -number : number
  }

  /** Returns the next number, which is an id, as a string of its digits. It may be above 2^53. */
  id (): string {
    const { text, place: first } = this
    let place = first
    for (let code = text.charCodeAt(place); code >= ZERO && code <= NINE;) code = text.charCodeAt(++place)
    this.place = place + 1
    if (place <= first + COPIED) return text.slice(first, place)
    return text.slice(first, first + COPIED) + text.slice(first + COPIED, place) // a caller may keep the id for long
  }
}
