import type { EventEmitter } from 'node:events'
import type { ServerResponse } from 'node:http'

/** A socket, or a stream of HTTP/2. */
type Connection = EventEmitter & { destroyed?: boolean, closed?: boolean, writableFinished?: boolean }

interface Listeners {
  callbacks: Set<() => void>
  timer: NodeJS.Timeout | undefined
}

const EVENTS = ['close', 'finish', 'aborted'] // after any of them nothing more can be sent

const CHECK_INTERVAL = 1000 // milliseconds

const listeners = new WeakMap<Connection, Listeners>()

/** Returns true if a response can send no more. */
export function isClosed (raw: ServerResponse): boolean {
  return raw.destroyed || isOver(connectionOf(raw))
}

/**
 * Calls back when a response can send no more. Returns a function that cancels this.
 *
 * It listens to the connection as well as to the response. A response emits no `close` if its connection closes while it
 * waits behind another response (pipelining), or if its HTTP/2 stream was reset early. An HTTP/2 stream may emit nothing
 * at all: in Node.js 20, if its client goes while the stream still has bytes to write. Therefore each HTTP/2 stream is also
 * checked once a second. All requests of a connection share one listener for each event.
 */
export function onceClosed (raw: ServerResponse, callback: () => void): () => void {
  const connection = connectionOf(raw)
  const { callbacks } = listeners.get(connection) ?? listenTo(connection, connection !== raw.req.socket)
  callbacks.add(callback)
  raw.once('close', callback)
  return () => {
    raw.removeListener('close', callback)
    callbacks.delete(callback)
    if (callbacks.size === 0) stopListening(connection)
  }
}

function connectionOf (raw: ServerResponse): Connection {
  return (raw as { stream?: Connection }).stream ?? raw.req.socket
}

function isOver ({ destroyed, closed, writableFinished }: Connection) {
  return destroyed === true || closed === true || writableFinished === true
}

function listenTo (connection: Connection, isStream: boolean): Listeners {
  const check = () => {
    if (isOver(connection)) callBackAll.call(connection)
  }
  const entry = { callbacks: new Set<() => void>(), timer: isStream ? setInterval(check, CHECK_INTERVAL).unref() : undefined }
  listeners.set(connection, entry)
  for (const event of EVENTS) connection.once(event, callBackAll)
  return entry
}

function stopListening (connection: Connection) {
  clearInterval(listeners.get(connection)?.timer)
  listeners.delete(connection)
  for (const event of EVENTS) connection.removeListener(event, callBackAll)
}

// The entry is missing if the last request left while the connection was calling back others.
function callBackAll (this: Connection) {
  for (const callback of [...listeners.get(this)?.callbacks ?? []]) callback()
}
