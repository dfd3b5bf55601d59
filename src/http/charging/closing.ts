import type { EventEmitter } from 'node:events'
import type { ServerResponse } from 'node:http'

/** A socket, or a stream of HTTP/2. */
type Connection = EventEmitter & { destroyed?: boolean, closed?: boolean, writableFinished?: boolean }

interface Waiting {
  callbacks: Set<() => void>
  timer: NodeJS.Timeout | undefined
}

const EVENTS = ['close', 'finish', 'aborted'] // after each of them nothing more can be sent

const LOOK_EVERY = 1000 // milliseconds

const waiting = new WeakMap<Connection, Waiting>()

/** Whether a response can send no more. */
export function isClosed (raw: ServerResponse): boolean {
  return raw.destroyed || isOver(connectionOf(raw))
}

/**
 * Calls back when a response can send no more. The function that it returns calls this off.
 *
 * A response emits no `close` of its own where its connection closes while it waits behind another one (pipelining), or
 * where a stream of HTTP/2 was reset early: so the connection is listened to as well. A stream of HTTP/2 may emit nothing at
 * all, as in Node.js 20 where its client goes while it still has bytes to write: so it is looked at now and then. However
 * many requests share a connection, it has a single listener for each event.
 */
export function onceClosed (raw: ServerResponse, callback: () => void): () => void {
  const connection = connectionOf(raw)
  const { callbacks } = waiting.get(connection) ?? listenTo(connection, connection !== raw.req.socket)
  callbacks.add(callback)
  raw.once('close', callback)
  return () => {
    raw.removeListener('close', callback)
    callbacks.delete(callback)
    if (callbacks.size === 0) forget(connection)
  }
}

function connectionOf (raw: ServerResponse): Connection {
  return (raw as { stream?: Connection }).stream ?? raw.req.socket
}

function isOver ({ destroyed, closed, writableFinished }: Connection) {
  return destroyed === true || closed === true || writableFinished === true
}

function listenTo (connection: Connection, isStream: boolean): Waiting {
  const look = () => {
    if (isOver(connection)) tellAll.call(connection)
  }
  const entry = { callbacks: new Set<() => void>(), timer: isStream ? setInterval(look, LOOK_EVERY).unref() : undefined }
  waiting.set(connection, entry)
  for (const event of EVENTS) connection.once(event, tellAll)
  return entry
}

function forget (connection: Connection) {
  clearInterval(waiting.get(connection)?.timer)
  waiting.delete(connection)
  for (const event of EVENTS) connection.removeListener(event, tellAll)
}

// The last request may have gone while the connection was telling others.
function tellAll (this: Connection) {
  for (const callback of [...waiting.get(this)?.callbacks ?? []]) callback()
}
