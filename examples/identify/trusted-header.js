import { timingSafeEqual } from 'node:crypto'

/**
 * Who is asking is whom a gateway in front says: it has authenticated the user, names them in `X-User-Id`, and proves by
 * `X-Gateway-Secret` that it is the gateway. Answers the option `identify` for fastify-ai-credits.
 *
 * The gateway must remove both headers from what its own clients send.
 *
 * @param {{ secret: string }} options
 */
export function identifyByTrustedHeader ({ secret }) {
  return request => isSame(onlyHeader(request, 'x-gateway-secret'), secret) ? onlyHeader(request, 'x-user-id') : null
}

// Node.js joins a header that came twice with a comma, and so would make one user of two.
function onlyHeader ({ raw }, name) {
  const values = raw.headersDistinct[name] ?? []
  return values.length === 1 ? values[0] : undefined
}

// Takes as long for a guess that is nearly right as for any other.
function isSame (given = '', expected) {
  const [a, b] = [Buffer.from(given), Buffer.from(expected)]
  return a.length === b.length && timingSafeEqual(a, b)
}
