import { Type } from '@sinclair/typebox'
import { ChargedBudget, Credits, Flag, MetadataField, Operation, Shortfall, Ttl, UserId } from '../../ledger/input/fields.js'
import type { Credits as Ledger } from '../../ledger/types.js'
import { account, noBudget, refused, refusedCharge, whole } from '../schemas.js'
import type { Action } from './action.js'

const closed = {
  404: refused('There is no such hold, or it is not this account\'s'),
  409: refused('The hold is closed, or the Idempotency-Key was used for a different request')
}

const held = {
  id: Type.String({ description: 'The hold' }),
  user_id: Type.String(),
  credits: whole('Credits held')
}

const expiry = { expires_at: Type.String({ format: 'date-time', description: 'When the hold lapses' }) }

const named = { user_id: Type.Optional(UserId) }

/** `POST /credits/holds`: sets credits of an account aside. */
export const holdAction = (ledger: Ledger, mustName: boolean): Action => ({
  path: '/credits/holds',
  operation: 'holdCredits',
  summary: 'Set credits aside for a call whose cost is known afterwards',
  body: {
    user_id: account(mustName),
    credits: Credits,
    operation: Operation,
    metadata: Type.Optional(MetadataField),
    budget: Type.Optional(ChargedBudget),
    ttl: Type.Optional(Ttl)
  },
  reply: { ...held, operation: Type.String(), ...expiry },
  refusals: { 402: refusedCharge, 404: noBudget, 409: refused('The Idempotency-Key was used for a different request') },
  call: fields => ledger.hold(fields)
})

/** `POST /credits/holds/:id/capture`: turns a hold, or a part of it, into spending. */
export const captureAction = (ledger: Ledger): Action => ({
  path: '/credits/holds/:id/capture',
  operation: 'captureHold',
  summary: 'Turn a hold, or a part of it, into spending',
  body: {
    ...named,
    credits: Type.Optional(Credits),
    metadata: Type.Optional(MetadataField),
    final: Type.Optional(Flag),
    shortfall: Type.Optional(Shortfall)
  },
  reply: {
    id: Type.String({ description: 'The usage record' }),
    hold_id: Type.String(),
    user_id: Type.String(),
    credits: whole('Credits spent'),
    uncollected: whole('Credits that the account did not have')
  },
  refusals: { 402: refusedCharge, ...closed },
  call: (fields, id) => ledger.capture(id, fields)
})

/** `POST /credits/holds/:id/release`: closes a hold and makes its remaining credits available again. */
export const releaseAction = (ledger: Ledger): Action => ({
  path: '/credits/holds/:id/release',
  operation: 'releaseHold',
  summary: 'Close a hold and make its remaining credits available again',
  body: named,
  reply: { ...held, credits: whole('Credits that are available again') },
  refusals: closed,
  call: ({ idempotencyKey: _key, ...fields }, id) => ledger.release(id, fields) // repeatable as it is
})

/** `POST /credits/holds/:id/extend`: moves the time at which a hold lapses. */
export const extendAction = (ledger: Ledger): Action => ({
  path: '/credits/holds/:id/extend',
  operation: 'extendHold',
  summary: 'Move the time at which a hold lapses',
  body: { ...named, ttl: Ttl },
  reply: { ...held, ...expiry },
  refusals: closed,
  call: ({ idempotencyKey: _key, ...fields }, id) => ledger.extend(id, fields) // repeatable as it is
})
