import { appendFileSync, existsSync, readFileSync } from 'node:fs'

/** A call of the client, as it is written down before it is sent. Sent again, it is the same to the byte. */
export interface Call {
  /** Its place in the journal. */
  number: number
  kind: 'deduct' | 'hold' | 'capture' | 'release' | 'refund' | 'grant' | 'charge'
  userId: string
  /** Unique among all calls of a test. */
  key: string
  path: string
  body: Record<string, unknown>
  /** Of a capture or a release: the hold. */
  holdId?: string
}

/** What a call came to at last. */
export interface Answer {
  number: number
  status: number
  body: any
  /** How often it was sent, and how often nothing definite came back: no answer, or 503. */
  sent: number
  unanswered: number
  /** What another request with the same key got, that was sent at the same moment. */
  duplicate?: { status: number, body: any }
}

/** What a client has written down. */
export interface Entries {
  calls: Call[]
  answers: Map<number, Answer>
}

/** Writes a line; it is there even if the process is killed at once. */
export function write (file: string, line: { call: Call } | { answer: Answer }): void {
  appendFileSync(file, `${JSON.stringify(line)}\n`)
}

/** Reads all lines but one that a killed process did not finish. */
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
