import type { FastifyReply, FastifyRequest } from 'fastify'
import { splitUrl } from './validation.js'

/** Sets a Link header (RFC 8288) with the URL of the next page, unless this page is the last. */
export function linkToNextPage (request: FastifyRequest, reply: FastifyReply, cursor: string | null): void {
  if (cursor === null) return
  const query = new URLSearchParams({ ...request.query as Record<string, string>, cursor })
  reply.header('link', `<${splitUrl(request.originalUrl, request.server).path}?${query}>; rel="next"`)
}
