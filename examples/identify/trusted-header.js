import { timingSafeEqual } from 'node:crypto'

/**
 * Returns the option `identify` for fastify-ai-credits behind another gateway. That gateway authenticates the user, sends
 * the user id in `X-User-Id`, and proves by `X-Gateway-Secret` that it is the gateway.
 *
 * The gateway must remove both headers from what its own clients send.
 *
 * @param {{ secret: string }} options
 */
export function identifyByTrustedHeader ({ secret }) {
  return request => isSame(onlyHeader(request, 'x-gateway-secret'), secret) ? onlyHeader(request, 'x-user-id') : null
}

// Refuses a header that came twice: Node.js would join both values with a comma, and make one user of two.
function onlyHeader ({ raw }, name) {
  const values = raw.headersDistinct[name] ?? []
  return values.length === 1 ? values[0] : undefined
}

// Compares in constant time: a guess that is nearly right takes as long as any other.
function isSame (given = '', expected) {
  const [a, b] = [Buffer.from(given), Buffer.from(expected)]
  return a.length === b.length && timingSafeEqual(a, b)
}
