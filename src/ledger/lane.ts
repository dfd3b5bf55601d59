import { now } from './timers.js'

/** A call that may share a statement with others. */
export interface QueuedCall {
  /** The account it is on. */
  userId: string
  /** No two calls on one account with the same token share a statement: the second is to see what the first wrote. */
  token?: string | undefined
  /** Whether it goes as a statement of its own. */
  apart?: boolean
  /** When its caller stops waiting, on the clock of `now()`; -Infinity once it has. */
  deadline: number
}

/** A call in a lane, and who waits for it. */
export interface Entry<Call, Answer> {
  call: Call
  lane: Lane<Call, Answer>
  apart: boolean
  resolve: (answer: Answer) => void
  reject: (error: unknown) => void
}

/** The calls on one account in order of arrival. Of these at most one statement is in flight. */
export interface Lane<Call, Answer> {
  userId: string
  entries: Entry<Call, Answer>[]
  /** Whether the account was locked elsewhere when it was last tried, and nothing was answered since. */
  blocked: boolean
  /** Whether it was waited for in vain, and nothing was answered since. */
  stalled: boolean
}

/**
 * Takes the lane's first calls that somebody still waits for: those that may share a statement, or one that goes alone.
 * Those that nobody waits for any more are dropped, and of a blocked lane those that have no more than `reserve`
 * milliseconds left: they are not sent again.
 */
export function takeFrom<Call extends QueuedCall, Answer> (
  { entries, blocked }: Lane<Call, Answer>, limit: number, apart: boolean, reserve: number
): Entry<Call, Answer>[] {
  const end = now() + (blocked ? reserve : 0)
  const taken: Entry<Call, Answer>[] = []
  let tokens: Set<string> | undefined
  let count = 0
  for (const entry of entries) {
    const { token, deadline } = entry.call
    if (taken.length === limit || (entry.apart && !apart) || (token !== undefined && tokens?.has(token))) break
    count++
    if (deadline <= end) continue
    taken.push(entry)
    if (token !== undefined) tokens = (tokens ?? new Set()).add(token)
  }
  entries.splice(0, count)
  return taken
}
