import type { FastifyReply } from 'fastify'
import type { Balance } from '../../ledger/posting/balance.js'
import type { MaybePromise } from './maybe-promise.js'
import { hasLength } from './payload.js'

const COST = 'credits-cost'
const REMAINING = 'credits-remaining'

/** Sets the header that says what the request costs. */
export function showCost (reply: FastifyReply, credits: number): void {
  reply.header(COST, String(credits))
}

/** Sets the header that says what is available after the hold. */
export function showRemaining (reply: FastifyReply, { available }: Balance): void {
  reply.header(REMAINING, String(available))
}

/** Adds a trailer that says what a streamed reply costs, if the client asked for trailers and the reply can have them. */
export function showCostInTrailer (
  reply: FastifyReply, payload: unknown, status: number, cost: () => MaybePromise<number>
): void {
  if (!asksForTrailers(reply) || isWithoutBody(status) || reply.hasHeader('content-length') || hasLength(payload)) return
  reply.trailer(COST, async () => String(await cost()))
}

/** Removes the cost from the headers and the trailer, because the reply became another one. Works until they are written. */
export function withdrawCost (reply: FastifyReply): void {
  reply.removeHeader(COST)
  withdrawTrailer(reply)
}

/** Removes the trailer if the reply turned out to have a content-length: such a reply cannot have trailers. */
export function withdrawTrailerOfKnownLength (reply: FastifyReply): void {
  if (reply.hasHeader('content-length')) withdrawTrailer(reply)
}

// Fastify announces trailers before it sends a stream: with a header `trailer`, and in HTTP/1.1 with `transfer-encoding`.
function withdrawTrailer (reply: FastifyReply) {
  if (!reply.hasTrailer(COST)) return
  reply.removeTrailer(COST)
  if (reply.getHeader('trailer') === COST) reply.removeHeader('trailer').removeHeader('transfer-encoding')
}

// Not over HTTP/2: Fastify up to 5.12.4 announces trailers there in a way that Node.js refuses, with an error outside the
// request.
function asksForTrailers ({ request: { method, headers, raw } }: FastifyReply) {
  return /(^|,)\s*trailers\s*(;|,|$)/i.test(String(headers.te)) && method !== 'HEAD' && raw.httpVersion === '1.1'
}

function isWithoutBody (status: number) {
  return status < 200 || status === 204 || status === 304
}
