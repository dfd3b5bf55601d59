import type { EventEmitter } from 'node:events'
import type { ServerResponse } from 'node:http'

/** A socket, or a stream of HTTP/2. */
type Connection = EventEmitter & { destroyed?: boolean }

const waiting = new WeakMap<Connection, Set<() => void>>()

/** Whether a response can send no more. */
export function isClosed (raw: ServerResponse): boolean {
  return raw.destroyed || connectionOf(raw).destroyed === true
}

/**
 * Calls back when a response can send no more. The function that it returns calls this off.
 *
 * A response emits no `close` of its own where its connection closes while it waits behind another one (pipelining), or
 * where a stream of HTTP/2 was reset early: so the connection is listened to as well. However many requests share one,
 * it has a single listener.
 */
export function onceClosed (raw: ServerResponse, callback: () => void): () => void {
  const connection = connectionOf(raw)
  const others = waiting.get(connection) ?? listenTo(connection)
  others.add(callback)
  raw.once('close', callback)
  return () => {
    raw.removeListener('close', callback)
    others.delete(callback)
    if (others.size === 0) forget(connection)
  }
}

function connectionOf (raw: ServerResponse): Connection {
  return (raw as { stream?: Connection }).stream ?? raw.req.socket
}

function listenTo (connection: Connection) {
  const callbacks = new Set<() => void>()
  waiting.set(connection, callbacks)
  connection.once('close', tellAll)
  return callbacks
}

function forget (connection: Connection) {
  waiting.delete(connection)
  connection.removeListener('close', tellAll)
}

// The last request may have gone while the connection was telling others.
function tellAll (this: Connection) {
  for (const callback of [...waiting.get(this) ?? []]) callback()
}
