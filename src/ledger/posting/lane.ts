import { now } from '../timers.js'

/** A call that may share a statement with others. */
export interface QueuedCall {
  /** The account of the call. */
  userId: string
  /** Calls on one account with the same token do not share a statement, because the second must see what the first wrote. */
  token?: string | undefined
  /** Whether the call creates its account if it is missing. Default: true. */
  createsAccount?: boolean
  /** Whether the call cannot share a statement. */
  apart?: boolean
  /** When the caller stops waiting, on the clock of `now()`; -Infinity once it has stopped. */
  deadline: number
}

/** A call in a lane, and the promise of its caller. */
export interface Entry<Call, Result> {
  call: Call
  lane: Lane<Call, Result>
  apart: boolean
  resolve: (result: Result) => void
  reject: (error: unknown) => void
}

/** The waiting calls on one account, in order of arrival. At most one statement of a lane is in flight. */
export interface Lane<Call, Result> {
  userId: string
  entries: Entry<Call, Result>[]
  /** Whether the account was locked elsewhere at the last attempt. */
  blocked: boolean
  /** Whether the account, locked elsewhere, has had its second attempt in a statement that does not wait. */
  triedAgain: boolean
  /** Whether a statement has waited for the account without success, and no call has succeeded since. */
  stalled: boolean
  /** Whether the account must be created by itself, because it could not be created together with others. */
  createsAlone: boolean
}

/**
 * Removes the calls for the next statement from the lane, and returns them: the first calls that may share a statement, at
 * most `limit`. `apart`: whether a call that cannot share a statement may be among them. Drops calls past their deadline. In
 * a blocked lane, also drops calls that have at most `reserve` milliseconds left, because they must not be sent again.
 */
export function takeFrom<Call extends QueuedCall, Result> (
  { entries, blocked }: Lane<Call, Result>, limit: number, apart: boolean, reserve: number
): Entry<Call, Result>[] {
  const end = now() + (blocked ? reserve : 0)
  const taken: Entry<Call, Result>[] = []
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
