import { STATUS_CODES } from 'node:http'
import type { FastifyReply, FastifyRequest } from 'fastify'
import type { Shortage } from '../../ledger/posting/verdict.js'
import { detailsOf } from '../refusal.js'

const SCHEMAS = ['402', '4xx', '4XX', 'default']

/**
 * Returns the body of a 402 with the details of the refusal added. Fastify leaves them out if a route has no schema for the
 * reply. Returns every other payload unchanged, also a body that the host's error handler or schema has made.
 */
export function withDetails (
  request: FastifyRequest, reply: FastifyReply, error: Shortage | undefined, payload: unknown
): unknown {
  if (error === undefined) return payload
  // The body is recognised by string equality, because no hook says who made it: Fastify's own body for this error is
  // known byte for byte. A response schema of ours for 402 would be a clearer way. But it would change other bodies that
  // the route sends with 402, and the host's schema compiler may refuse it.
  const { code, message } = error
  const body = { statusCode: 402, code, error: STATUS_CODES[402], message }
  const response = request.routeOptions.schema?.response as object | undefined
  if (payload !== JSON.stringify(body) || SCHEMAS.some(status => response && status in response)) return payload
  const details = JSON.stringify({ ...body, ...detailsOf(error) })
  reply.header('content-length', Buffer.byteLength(details))
  return details
}
