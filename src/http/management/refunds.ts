import { Type } from '@sinclair/typebox'
import { Credits, Id, IdempotencyKey, Reason, UserId } from '../../ledger/fields.js'
import type { Credits as Ledger } from '../../ledger/types.js'
import { refused, whole } from '../schemas.js'
import type { Action } from './action.js'

/** `POST /credits/refunds`: gives spent credits back. */
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
  answer: {
    id: Type.String({ description: 'The usage record of the refund' }),
    usage_id: Type.String({ description: 'The usage record that it gives back' }),
    user_id: Type.String(),
    credits: whole('Credits given back')
  },
  refusals: {
    404: refused('There is no such usage record, or it is not this account\'s'),
    409: refused('It exceeds what is left of the record, or the Idempotency-Key was used for a different request')
  },
  call: fields => ledger.refund(fields)
})
