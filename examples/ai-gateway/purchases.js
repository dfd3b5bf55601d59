import { timingSafeEqual } from 'node:crypto'

const YEAR = 365 * 24 * 60 * 60 * 1000

const body = {
  type: 'object',
  required: ['payment_id', 'paid_at', 'user_id', 'credits'],
  additionalProperties: false,
  properties: {
    payment_id: { type: 'string', minLength: 1, maxLength: 200 },
    paid_at: { type: 'string', format: 'date-time' },
    user_id: { type: 'string', minLength: 1, maxLength: 255 },
    credits: { type: 'integer', minimum: 1, maximum: 1_000_000 }
  }
}

/**
 * `POST /purchases`: a payment provider calls it when somebody has paid, and repeats the call when in doubt. Each payment
 * grants its credits once.
 *
 * @param {{ secret: string }} options
 */
export default async function purchases (app, { secret }) {
  app.post('/purchases', { schema: { body } }, async (request, reply) => {
    if (!isSame(request.headers['x-webhook-secret'], secret)) return reply.status(401).send({ error: 'Unauthorized' })
    const { payment_id: paymentId, paid_at: paidAt, user_id: userId, credits } = request.body
    const { id, balance, replayed } = await app.credits.grant({
      userId,
      credits,
      reason: 'purchase',
      expiresAt: new Date(Date.parse(paidAt) + YEAR), // not a year from now: a repeated call must have equal arguments
      idempotencyKey: `payment ${paymentId}`
    })
    return { grant: id, granted: !replayed, available: balance.available }
  })
}

function isSame (given = '', expected) {
  const [a, b] = [Buffer.from(given), Buffer.from(expected)]
  return a.length === b.length && timingSafeEqual(a, b)
}
