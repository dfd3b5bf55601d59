import { Type } from '@sinclair/typebox'
import { Credits, Priority, Reason, Time } from '../../ledger/input/fields.js'
import type { Credits as Ledger } from '../../ledger/types.js'
import { account, refused, whole } from '../schemas.js'
import type { Action } from './action.js'

/** `POST /credits/grants`: adds credits to an account. */
export const grantAction = (ledger: Ledger, mustName: boolean): Action => ({
  path: '/credits/grants',
  operation: 'grantCredits',
  summary: 'Add credits to an account',
  body: {
    user_id: account(mustName),
    credits: Credits,
    reason: Type.Optional(Reason),
    expires_at: Type.Optional(Time),
    priority: Type.Optional(Priority)
  },
  reply: {
    id: Type.String({ description: 'The grant' }),
    user_id: Type.String(),
    credits: whole('Credits added'),
    expires_at: Type.Unsafe({ type: ['string', 'null'], format: 'date-time', description: 'When it expires; null: never' }),
    priority: whole('Grants with a lower number are spent first')
  },
  refusals: { 409: refused('The Idempotency-Key was used for a different request') },
  call: fields => ledger.grant(fields)
})
