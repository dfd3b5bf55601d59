import type { FastifyReply } from 'fastify'
import type { Balance } from '../../ledger/types.js'
import type { MaybePromise } from './maybe-promise.js'
import { hasLength } from './payload.js'

const COST = 'credits-cost'
const REMAINING = 'credits-remaining'

/** Says what the request costs. */
export function showCost (reply: FastifyReply, credits: number): void {
  reply.header(COST, String(credits))
}

/** Says what is available after the hold. */
export function showRemaining (reply: FastifyReply, { available }: Balance): void {
  reply.header(REMAINING, String(available))
}

/** Says in a trailer what a streamed reply costs, if the client asked for trailers and the reply can have them. */
export function showCostInTheEnd (reply: FastifyReply, payload: unknown, status: number, cost: () => MaybePromise<number>): void {
  if (!asksForTrailers(reply) || isWithoutBody(status) || reply.hasHeader('content-length') || hasLength(payload)) return
  reply.trailer(COST, async () => String(await cost()))
}

/** Takes back what was said: the reply became another one. Possible until its headers are written. */
export function withdraw (reply: FastifyReply): void {
  reply.removeHeader(COST)
  withdrawTrailer(reply)
}

/** Takes the trailer back where the reply turned out to have a length, and so cannot have one. */
export function withdrawTrailerOfKnownLength (reply: FastifyReply): void {
  if (reply.hasHeader('content-length')) withdrawTrailer(reply)
}

// Fastify announces trailers before a stream is sent, and in HTTP/1.1 with this encoding.
function withdrawTrailer (reply: FastifyReply) {
  if (!reply.hasTrailer(COST)) return
  reply.removeTrailer(COST)
  if (reply.getHeader('trailer') === COST) reply.removeHeader('trailer').removeHeader('transfer-encoding')
}

// Over HTTP/2 Fastify up to 5.12.4 announced trailers in a way that Node.js refuses, outside the request.
function asksForTrailers ({ request: { method, headers, raw } }: FastifyReply) {
  return /(^|,)\s*trailers\s*(;|,|$)/i.test(String(headers.te)) && method !== 'HEAD' && raw.httpVersion === '1.1'
}

function isWithoutBody (status: number) {
  return status < 200 || status === 204 || status === 304
}
