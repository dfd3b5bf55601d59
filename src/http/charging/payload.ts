import type { Readable } from 'node:stream'

/** Returns true if a payload is produced while it is sent: a Node.js stream, a web stream, or a Response with one. */
export function isStream (payload: unknown): boolean {
  const body = isResponse(payload) ? payload.body : payload
  return isReadable(body) || isWebStream(body)
}

/** Returns the status of a payload that has one (a Response), otherwise the reply's status. */
export function statusOf (payload: unknown, statusCode: number): number {
  return isResponse(payload) && typeof payload.status === 'number' ? payload.status : statusCode
}

/** Returns true if a payload is a Response with a content-length. */
export function hasLength (payload: unknown): boolean {
  return isResponse(payload) && payload.headers.has('content-length')
}

/** Ends a stream that nobody will read. Does nothing for other payloads. */
export function discard (payload: unknown): void {
  const body = isResponse(payload) ? payload.body : payload
  if (isReadable(body)) body.on('error', ignore).destroy()
  else if (isWebStream(body)) body.cancel().catch(ignore)
}

/** Returns true if a payload is a Node.js stream. Like Fastify, it looks for the method `pipe`. */
export function isReadable (payload: unknown): payload is Readable {
  return typeof (payload as Readable | null | undefined)?.pipe === 'function'
}

function isWebStream (payload: unknown): payload is ReadableStream {
  return typeof (payload as ReadableStream | null | undefined)?.getReader === 'function'
}

function isResponse (payload: unknown): payload is Response {
  return Object.prototype.toString.call(payload) === '[object Response]'
}

function ignore () {}
