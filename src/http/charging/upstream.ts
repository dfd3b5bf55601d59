import type { FastifyReply } from 'fastify'

type RewriteHeaders = (headers: object, request: unknown) => object

interface ProxyingReply {
  from? (source?: string, options?: { rewriteHeaders?: RewriteHeaders }): unknown
}

/**
 * Calls `onReply` with the status of an upstream's reply, if the handler forwards the request with `reply.from()` of
 * @fastify/reply-from (also through @fastify/http-proxy). If the client's request was aborted, these drop the upstream's
 * reply silently. Their last call before that is `rewriteHeaders`: it is wrapped here.
 */
export function watchUpstream (reply: FastifyReply, onReply: (status: number) => void): void {
  const proxying = reply as unknown as ProxyingReply
  const { from } = proxying
  if (from === undefined) return
  proxying.from = (source, options) => {
    const rewriteHeaders: RewriteHeaders = (headers, request) => {
      setImmediate(() => onReply(reply.statusCode)) // by then the reply was dropped, or passed to `send`
      return options?.rewriteHeaders === undefined ? headers : options.rewriteHeaders(headers, request)
    }
    return from.call(reply, source, { ...options, rewriteHeaders })
  }
}
