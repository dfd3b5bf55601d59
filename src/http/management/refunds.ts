import { Type } from '@sinclair/typebox'
import { Credits, Id, IdempotencyKey, Reason, UserId } from '../../ledger/input/fields.js'
import type { Credits as Ledger } from '../../ledger/types.js'
import { refused, whole } from '../schemas.js'
import type { Action } from './action.js'

/** `POST /credits/refunds`: gives back credits that an account has spent. */
export const refundAction = (ledger: Ledger): Action => ({
  path: '/credits/refunds',
  operation: 'refundCredits',
  summary: 'Give spent credits back',
  body: {
    user_id: Type.Optional(UserId),
    usage_id: Type.Optional(Id),
    deduct_key: Type.Optional(IdempotencyKey),
    credits: Type.Optional(Credits),
    reason: Type.Optional(Reason)
  },
  reply: {
    id: Type.String({ description: 'The usage record of the refund' }),
    usage_id: Type.String({ description: 'The usage record that was refunded' }),
    user_id: Type.String(),
    credits: whole('Credits given back')
  },
  refusals: {
    404: refused('There is no such usage record, or it is not this account\'s'),
    409: refused('The refund exceeds what is left of the record, or the Idempotency-Key was used for a different request')
  },
  call: fields => ledger.refund(fields)
})
