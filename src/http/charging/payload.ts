import type { Readable } from 'node:stream'

/** Whether a payload is still to be produced as it is sent: a stream of Node.js or of the web, or a Response with one. */
export function isStream (payload: unknown): boolean {
  const body = isResponse(payload) ? payload.body : payload
  return isReadable(body) || isWebStream(body)
}

/** The status that a payload brings along, or the one of the reply. */
export function statusOf (payload: unknown, statusCode: number): number {
  return isResponse(payload) && typeof payload.status === 'number' ? payload.status : statusCode
}

/** Whether a payload says how long it is. */
export function hasLength (payload: unknown): boolean {
  return isResponse(payload) && payload.headers.has('content-length')
}

/** Ends a payload that nobody will read, where it is a stream. */
export function discard (payload: unknown): void {
  const body = isResponse(payload) ? payload.body : payload
  if (isReadable(body)) body.on('error', ignore).destroy()
  else if (isWebStream(body)) body.cancel().catch(ignore)
}

/** Whether a payload is a stream of Node.js: by what it can do, as Fastify tells them. */
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
