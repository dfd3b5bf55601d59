import { finished } from 'node:stream'
import type { FastifyReply } from 'fastify'
import { isClosed, onceClosed } from './closing.js'
import { isReadable, isStream } from './payload.js'
import { watchUpstream } from './upstream.js'

/** What a ReplyWatch calls. */
export interface ReplyListener {
  /** Called before the headers are written, with their status. */
  beforeHeaders (status: number): void
  /** Called when the watch has learned something new. */
  changed (): void
}

/**
 * Watches one reply, and changes nothing about it except during `pause`.
 *
 * Fastify has no hook for most of this. A hook sees a payload only as earlier hooks left it. The status may change after
 * the headers were written. Nothing says who ended a stream early. Therefore the watch replaces methods that Fastify and
 * handlers call anyway, on this one reply only: `send` and `then` of the reply; `writeHead`, `end` and `destroy` of the
 * response. Each of them still calls the original.
 */
export class ReplyWatch {
  /** The status that was sent, or that was written after the client had gone; undefined: none yet. */
  status: number | undefined
  /** The kind of payload that was passed to `reply.send`. */
  kind: 'none' | 'value' | 'stream' = 'none'
  /** The handler waits for the reply (`return reply`): other code sends it later. */
  isAwaited = false
  /**
   * The handler has replied, and waits for an end that never comes: if an HTTP/2 stream was reset early, Fastify's
   * `reply.then` never calls back.
   */
  isAwaitedInVain = false
  /** Nothing more can be sent. */
  isClosed = false
  /** The gateway broke the reply off, before the client went. */
  isBrokenOff = false
  /** `handlerTimeout` broke the reply off. */
  isTimedOut = false
  /** How many streams are read to their end although nobody receives them: replies to HEAD requests. */
  sources = 0
  /** The status of an upstream's reply that was dropped because the client had gone. */
  droppedStatus: number | undefined

  private waiting = 0 // callers of `reply.then` that wait for the reply's end
  private hasEnded: boolean
  private isPaused = false
  private endedBeforeClosing: boolean | undefined
  private readonly stopListening: () => void

  constructor (private readonly reply: FastifyReply, private readonly listener: ReplyListener) {
    const { raw } = reply
    if (raw.headersSent) this.status = raw.statusCode // handlerTimeout passed while the hold was being taken
    this.hasEnded = raw.writableEnded
    this.watchReply()
    this.watchResponse()
    watchUpstream(reply, status => this.upstreamReplied(status))
    this.stopListening = onceClosed(raw, () => this.close())
    if (isClosed(raw)) this.noteClosing()
  }

  /** Whether the reply was written to its end, or is no stream. */
  get isWhole (): boolean {
    return this.kind === 'value' || (this.endedBeforeClosing ?? this.hasEnded)
  }

  /** Whether the handler writes the response itself, for instance after `reply.hijack()`. */
  get isHijacked (): boolean {
    return !this.isPaused && this.reply.sent && !this.hasEnded
  }

  /**
   * Makes the reply count as sent until the promise settles, and returns what it resolves to. Without this wait the reply
   * would be sent by now. So a second `send`, or a value or an error of the handler, must find it sent. Changes of status
   * and headers during the wait are undone.
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

  /** Stops listening to the connection. */
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
    // If the client has gone, Node.js writes no headers, and over HTTP/2 it does not even note the end.
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
    if (reply.sent || this.status !== undefined) return // this call of `send` sends nothing
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
    if (raw.headersSent) this.status ??= raw.statusCode // `writeHead` is not called if a handler wrote to the HTTP/2 stream
    if (this.status !== undefined) this.endedBeforeClosing = this.hasEnded
    this.isClosed = true
    this.noticeWaitingInVain()
  }

  // Waits for setImmediate: by then all other listeners for the closing have run.
  private noticeWaitingInVain () {
    if (this.waiting === 0) return // the usual case, if the client has not left early
    setImmediate(() => {
      this.isAwaitedInVain = this.waiting > 0 && this.kind !== 'none'
      if (this.isAwaitedInVain) this.listener.changed()
    })
  }
}

// Arrays are copied too, because another cookie is added to the same array.
function copyHeaders (reply: FastifyReply): Record<string, unknown> {
  const headers = Object.entries(reply.getHeaders())
  return Object.fromEntries(headers.map(([name, value]) => [name, Array.isArray(value) ? [...value] : value]))
}

function restoreHeaders (reply: FastifyReply, before: Record<string, unknown>) {
  const now = reply.getHeaders()
  if (String(Object.entries(now)) === String(Object.entries(before))) return
  for (const name of Object.keys(now)) reply.removeHeader(name) // all of them, to restore their order too
  reply.headers(before as ReturnType<FastifyReply['getHeaders']>)
}

/** Returns true if an error is the one of Fastify's `handlerTimeout`. */
export function isTimeout (error: unknown): boolean {
  return (error as { code?: unknown } | null | undefined)?.code === 'FST_ERR_HANDLER_TIMEOUT'
}
