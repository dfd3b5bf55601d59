import { finished } from 'node:stream'
import type { FastifyReply } from 'fastify'
import { isClosed, onceClosed } from './closing.js'
import { isReadable, isStream } from './payload.js'
import { watchUpstream } from './upstream.js'

/** Who is told of what a reply does. */
export interface ReplyListener {
  /** The headers are about to be written, with this status. */
  beforeHeaders (status: number): void
  /** Something is known that was not known before. */
  changed (): void
}

/**
 * What becomes of one reply. It looks on and changes nothing.
 *
 * Fastify has no hook for most of it: a hook sees a payload only as the hooks before it left it, the status may change
 * after the headers were written, and nothing tells who ended a stream early. So the methods of this one reply that
 * Fastify and handlers call anyway are overlaid: `send` and `then` of the reply, `writeHead`, `end` and `destroy` of the response.
 */
export class ReplyWatch {
  /** The status that was sent, or was written for a client that had gone. */
  status: number | undefined
  /** What was given to `reply.send`. */
  kind: 'none' | 'value' | 'stream' = 'none'
  /** The handler waits for the reply, as with `return reply`: it is sent by something else, and later. */
  isAwaited = false
  /**
   * Whether the handler has replied, and waits for an end that will not come: where a stream of HTTP/2 was reset early,
   * Fastify's `reply.then` never calls back.
   */
  isAwaitedInVain = false
  /** Nothing more can be sent. */
  isClosed = false
  /** The gateway broke the reply off, before the client went. */
  isBrokenOff = false
  /** `handlerTimeout` broke the reply off. */
  isTimedOut = false
  /** Streams that are read to their end although nobody receives them: the replies to HEAD requests. */
  sources = 0
  /** The status of an upstream whose reply was dropped, as the client had gone. */
  droppedStatus: number | undefined

  private waiting = 0 // who waits for the reply's end
  private hasEnded: boolean
  private isPaused = false
  private endedBeforeClosing: boolean | undefined
  private readonly stopListening: () => void

  constructor (private readonly reply: FastifyReply, private readonly listener: ReplyListener) {
    const { raw } = reply
    if (raw.headersSent) this.status = raw.statusCode // handlerTimeout came while the hold was being taken
    this.hasEnded = raw.writableEnded
    this.watchReply()
    this.watchResponse()
    watchUpstream(reply, status => this.upstreamReplied(status))
    this.stopListening = onceClosed(raw, () => this.close())
    if (isClosed(raw)) this.noteClosing()
  }

  /** Whether the reply was written to its end, or is none that is written bit by bit. */
  get isWhole (): boolean {
    return this.kind === 'value' || (this.endedBeforeClosing ?? this.hasEnded)
  }

  /** Whether the handler has taken the response into its own hands. */
  get isHijacked (): boolean {
    return !this.isPaused && this.reply.sent && !this.hasEnded
  }

  /**
   * Makes the reply count as sent until the promise settles. Without a wait it would have been sent by now: a second
   * `send`, a value or an error of the handler would find it so, and neither status nor headers would change any more.
   */
  async pause<T> (promise: PromiseLike<T>): Promise<T> {
    const { reply } = this
    const { statusCode } = reply
    const headers = copyHeaders(reply)
    this.isPaused = true
    Object.defineProperty(reply, 'sent', { configurable: true, value: true })
    try {
      return await promise
    } finally {
      this.isPaused = false
      delete (reply as { sent?: boolean }).sent
      reply.raw.statusCode = statusCode
      restoreHeaders(reply, headers)
    }
  }

  /** Leaves the connection without a listener. */
  stop (): void {
    this.stopListening()
  }

  private watchReply () {
    const { reply } = this
    const { send, then } = reply
    reply.send = (payload?: unknown) => {
      this.beforeSending(payload)
      return send.call(reply, payload)
    }
    reply.then = (fulfilled, rejected) => {
      this.isAwaited ||= !reply.sent
      this.waiting++
      const ended = (callback: (error: any) => void) => (error?: Error) => {
        this.waiting--
        callback(error)
      }
      then.call(reply, ended(fulfilled), ended(rejected))
      if (this.isClosed) this.noticeWaitingInVain()
    }
  }

  private watchResponse () {
    const { raw } = this.reply
    const { writeHead, end, destroy } = raw
    raw.writeHead = ((status: number, ...rest: [never]) => {
      if (!raw.headersSent) this.listener.beforeHeaders(status)
      const result = writeHead.call(raw, status, ...rest)
      this.status ??= status
      if (this.isClosed) this.listener.changed()
      return result
    }) as typeof writeHead
    // For a client that has gone Node.js writes no headers, and over HTTP/2 it does not even note the end.
    raw.end = ((...args: [never, never]) => {
      this.hasEnded = true
      const result = end.call(raw, ...args)
      this.status ??= raw.statusCode
      if (this.isClosed) this.listener.changed()
      return result
    }) as typeof end
    raw.destroy = error => {
      if (!this.isClosed && !this.hasEnded) {
        this.isBrokenOff = true
        this.isTimedOut = isTimeout(error)
      }
      return destroy.call(raw, error)
    }
  }

  private beforeSending (payload: unknown) {
    const { reply } = this
    if (reply.sent || this.status !== undefined) return // which sends nothing more
    this.kind = isStream(payload) ? 'stream' : 'value'
    if (this.isClosed) this.noticeWaitingInVain()
    if (reply.request.method !== 'HEAD' || !isReadable(payload)) return
    this.sources++
    finished(payload, () => {
      this.sources--
      this.listener.changed()
    })
  }

  private upstreamReplied (status: number) {
    if (!this.isClosed || this.kind !== 'none') return
    this.droppedStatus = status
    this.listener.changed()
  }

  private close () {
    if (this.isClosed) return
    this.noteClosing()
    this.listener.changed()
  }

  private noteClosing () {
    const { raw } = this.reply
    if (raw.headersSent) this.status ??= raw.statusCode // also where a handler wrote to the stream of HTTP/2 itself
    if (this.status !== undefined) this.endedBeforeClosing = this.hasEnded
    this.isClosed = true
    this.noticeWaitingInVain()
  }

  // In a moment: whoever is told of the closing has been told by then.
  private noticeWaitingInVain () {
    if (this.waiting === 0) return // most often: a request that nobody left does no more work here
    setImmediate(() => {
      this.isAwaitedInVain = this.waiting > 0 && this.kind !== 'none'
      if (this.isAwaitedInVain) this.listener.changed()
    })
  }
}

// Cookies are added to an array, so the array is copied.
function copyHeaders (reply: FastifyReply): Record<string, unknown> {
  return Object.fromEntries(Object.entries(reply.getHeaders()).map(([name, value]) => [name, Array.isArray(value) ? [...value] : value]))
}

function restoreHeaders (reply: FastifyReply, before: Record<string, unknown>) {
  const now = reply.getHeaders()
  if (String(Object.entries(now)) === String(Object.entries(before))) return
  for (const name of Object.keys(now)) reply.removeHeader(name) // all of them, as they are to be in the same order
  reply.headers(before as ReturnType<FastifyReply['getHeaders']>)
}

/** Whether an error says that `handlerTimeout` came. */
export function isTimeout (error: unknown): boolean {
  return (error as { code?: unknown } | null | undefined)?.code === 'FST_ERR_HANDLER_TIMEOUT'
}
