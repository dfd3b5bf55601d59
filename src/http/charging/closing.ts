import type { EventEmitter } from 'node:events'
import type { ServerResponse } from 'node:http'

/** A socket, or a stream of HTTP/2. */
type Connection = EventEmitter & { destroyed?: boolean, writableFinished?: boolean }

const events = ['close', 'finish'] // after either of them nothing more can be sent

const waiting = new WeakMap<Connection, Set<() => void>>()

/** Whether a response can send no more. */
export function isClosed (raw: ServerResponse): boolean {
  const connection = connectionOf(raw)
  return raw.destroyed || connection.destroyed === true || connection.writableFinished === true
}

/**
 * Calls back when a response can send no more. The function that it returns calls this off.
 *
 * A response emits no `close` of its own where its connection closes while it waits behind another one (pipelining), or
 * where a stream of HTTP/2 was reset early: so the connection is listened to as well. A stream of HTTP/2 that says `finish`
 * may never say `close`, as after a 304. However many requests share a connection, it has a single listener of each kind.
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
  for (const event of events) connection.once(event, tellAll)
  return callbacks
}

function forget (connection: Connection) {
  waiting.delete(connection)
  for (const event of events) connection.removeListener(event, tellAll)
}

// The last request may have gone while the connection was telling others.
function tellAll (this: Connection) {
  for (const callback of [...waiting.get(this) ?? []]) callback()
}
