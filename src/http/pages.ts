import type { FastifyReply, FastifyRequest } from 'fastify'
import { splitUrl } from './validation.js'

/** Tells in a Link header (RFC 8288) where the next page is, unless this is the last. */
export function linkToNextPage (request: FastifyRequest, reply: FastifyReply, cursor: string | null): void {
  if (cursor === null) return
  const query = new URLSearchParams({ ...request.query as Record<string, string>, cursor })
  reply.header('link', `<${splitUrl(request.originalUrl).path}?${query}>; rel="next"`)
}
