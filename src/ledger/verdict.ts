import {
  GrantClosedError, HoldClosedError, IdempotencyConflictError, InsufficientCreditsError, InvalidInputError, NotFoundError,
  RefundExceedsError
} from '../errors.js'
import { balanceOf } from './balance.js'

/** What every posting function of the ledger returns, beside its own columns. */
export interface Verdict {
  verdict: string
  total: unknown
  used: unknown
  held: unknown
}

/** What a call was about, for the error that says so. */
export interface Asked {
  /** What an id names: 'hold', 'grant' or 'usage record'. */
  what?: string
  /** The credits asked for. */
  credits?: number
}

/** Throws the error that a refusing verdict stands for; returns whether an accepted call is a replay. */
export function judge (row: Verdict, { what = '', credits = 0 }: Asked): boolean {
  switch (row.verdict) {
    case 'insufficient': throw new InsufficientCreditsError(balanceOf(row), credits)
    case 'conflict': throw new IdempotencyConflictError()
    case 'missing': throw new NotFoundError(what)
    case 'closed': throw what === 'hold' ? new HoldClosedError() : new GrantClosedError()
    case 'exceeds': throw new RefundExceedsError()
    case 'past': throw new InvalidInputError('expiresAt', 'must be in the future')
    case 'operation': throw new InvalidInputError('operation', "is not the hold's")
    case 'overflow': throw new InvalidInputError('credits', 'would take the total past 2^53 - 1')
  }
  return row.verdict === 'replayed'
}
