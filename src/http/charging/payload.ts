import type { Readable } from 'node:stream'

/** What a handler may send that is no string and no buffer. */
type Streaming = Readable | ReadableStream | Response

/** Whether a payload is still to be produced as it is sent: a stream of Node.js or of the web, or a Response with one. */
export function isStream (payload: unknown): payload is Streaming {
  return isReadable(payload) || isWebStream(isResponse(payload) ? payload.body : payload)
}

/** The status that a payload brings along, or the one of the reply. */
export function statusOf (payload: unknown, statusCode: number): number {
  return isResponse(payload) ? payload.status : statusCode
}

/** Whether a payload says how long it is. */
export function hasLength (payload: unknown): boolean {
  return isResponse(payload) && payload.headers.has('content-length')
}

/** The same payload, with `onFailure` told if it fails. What the client's going does to it is no failure. */
export function watch (payload: Streaming, onFailure: () => void): Streaming {
  if (isReadable(payload)) return payload.once('error', onFailure)
  return isResponse(payload) ? new Response(watchWeb(payload.body!, onFailure), payload) : watchWeb(payload, onFailure)
}

/** Ends a stream that nobody will read. */
export function discard (payload: Streaming): void {
  if (isReadable(payload)) payload.on('error', ignore).destroy()
  else (isResponse(payload) ? payload.body! : payload).cancel().catch(ignore)
}

function watchWeb (stream: ReadableStream, onFailure: () => void) {
  const reader = stream.getReader()
  return new ReadableStream({
    async pull (controller) {
      try {
        const { done, value } = await reader.read()
        if (done) controller.close()
        else controller.enqueue(value)
      } catch (error) {
        onFailure()
        throw error
      }
    },
    cancel: reason => reader.cancel(reason)
  }, { highWaterMark: 0 })
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
