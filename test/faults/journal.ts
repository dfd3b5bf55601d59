import { appendFileSync, existsSync, readFileSync } from 'node:fs'

/** A call of the client, written to the journal before it is sent. A repetition is equal to the byte. */
export interface Call {
  /** Its number in the journal. */
  number: number
  kind: 'deduct' | 'hold' | 'capture' | 'release' | 'refund' | 'grant' | 'charge'
  userId: string
  /** Unique among all calls of a test. */
  key: string
  path: string
  body: Record<string, unknown>
  /** The hold of a capture or a release. */
  holdId?: string
}

/** The final reply to a call. */
export interface Answer {
  number: number
  status: number
  body: any
  /** How often the call was sent; and how often it had no definite reply: none, or 503. */
  sent: number
  unanswered: number
  /** The reply to another request with the same key that was sent at the same moment. */
  duplicate?: { status: number, body: any }
}

/** The entries of a journal. */
export interface Entries {
  calls: Call[]
  answers: Map<number, Answer>
}

/** Writes a line. It is in the file even if the process is killed at once. */
export function write (file: string, line: { call: Call } | { answer: Answer }): void {
  appendFileSync(file, `${JSON.stringify(line)}\n`)
}

/** Reads all lines, except one that a killed process did not finish. */
export function read (file: string): Entries {
  const entries: Entries = { calls: [], answers: new Map() }
  const lines = existsSync(file) ? readFileSync(file, 'utf8').split('\n').slice(0, -1) : []
  for (const line of lines) {
    const { call, answer } = JSON.parse(line)
    if (call) entries.calls.push(call)
    else entries.answers.set(answer.number, answer)
  }
  return entries
}
