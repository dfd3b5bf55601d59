import type { FastifyReply } from 'fastify'
import type { Balance } from '../../ledger/types.js'
import { hasLength } from './payload.js'

const COST = 'credits-cost'

/** Says what the request costs. */
export function showCost (reply: FastifyReply, credits: number): void {
  reply.header(COST, String(credits))
}

/** Says what is available after the hold. */
export function showRemaining (reply: FastifyReply, { available }: Balance): void {
  reply.header('credits-remaining', String(available))
}

/** Says in a trailer what a streamed reply costs, if the client asked for trailers and the reply can have them. */
export function showCostInTheEnd (reply: FastifyReply, payload: unknown, cost: () => Promise<number>): void {
  const { method, headers, raw } = reply.request
  const asked = /(^|,)\s*trailers\s*(;|,|$)/i.test(String(headers.te))
  if (!asked || method === 'HEAD' || raw.httpVersion === '1.0' || reply.hasHeader('content-length') || hasLength(payload)) return
  reply.trailer(COST, async () => String(await cost()))
}
