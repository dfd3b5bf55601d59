import type { FastifyReply } from 'fastify'

type RewriteHeaders = (headers: object, request: unknown) => object

interface ProxyingReply {
  from? (source?: string, options?: { rewriteHeaders?: RewriteHeaders }): unknown
}

/**
 * Tells the status of what an upstream replied, where the handler asks it with `reply.from()` of @fastify/reply-from,
 * which @fastify/http-proxy does too. They drop the upstream's reply without a word where the client's request was
 * aborted; the rewriting of its headers is the last that is seen of it.
 */
export function watchUpstream (reply: FastifyReply, onReply: (status: number) => void): void {
  const proxying = reply as unknown as ProxyingReply
  const { from } = proxying
  if (from === undefined) return
  proxying.from = (source, options) => {
    const rewriteHeaders: RewriteHeaders = (headers, request) => {
      setImmediate(() => onReply(reply.statusCode)) // by then it is dropped, or was given to `send`
      return options?.rewriteHeaders === undefined ? headers : options.rewriteHeaders(headers, request)
    }
    return from.call(reply, source, { ...options, rewriteHeaders })
  }
}
