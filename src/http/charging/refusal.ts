import { STATUS_CODES } from 'node:http'
import type { FastifyReply, FastifyRequest } from 'fastify'
import type { InsufficientCreditsError } from '../../errors.js'
import { shownBalance } from '../balance.js'

const SCHEMAS = ['402', '4xx', '4XX', 'default']

/**
 * The body of a refusal with `credits` and `required`, which Fastify leaves out where a route has no schema for it. Only
 * of Fastify's own body: what the host's error handler or schema made is the host's. No hook tells who made a body, so it
 * is told by the body: this one is what Fastify makes of this error, to the byte. (A schema of ours for 402 would tell
 * better, but would change other bodies that the route sends with 402, and a host's compiler may refuse it.)
 */
export function withDetails (request: FastifyRequest, reply: FastifyReply, error: InsufficientCreditsError | undefined, payload: unknown): unknown {
  if (error === undefined) return payload
  const { code, message, credits, required } = error
  const body = { statusCode: 402, code, error: STATUS_CODES[402], message }
  const response = request.routeOptions.schema?.response as object | undefined
  if (payload !== JSON.stringify(body) || SCHEMAS.some(status => response && status in response)) return payload
  const details = JSON.stringify({ ...body, credits: shownBalance(credits), required })
  reply.header('content-length', Buffer.byteLength(details))
  return details
}
