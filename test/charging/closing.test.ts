// needs no database
import { EventEmitter } from 'node:events'
import type { ServerResponse } from 'node:http'
import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { isClosed, onceClosed } from '../../src/http/charging/closing.js'
import { until } from '../helper/charging.js'

t.test('an HTTP/2 stream that closes without an event is found by the regular check', async t => {
  const stream = Object.assign(new EventEmitter(), { closed: false })
  const raw = Object.assign(new EventEmitter(), { stream, destroyed: false, req: { socket: new EventEmitter() } }) as unknown as ServerResponse
  let closed = 0
  const stop = onceClosed(raw, () => { closed++ })
  t.equal(isClosed(raw), false)
  await sleep(1500) // it is checked once a second
  t.equal(closed, 0)
  stream.closed = true
  t.equal(isClosed(raw), true)
  await until(() => closed, times => times > 0)
  stop()
  t.strictSame([...stream.eventNames(), ...raw.eventNames()], [], 'and no listener is left')
  await sleep(1500)
  t.equal(closed, 1)
})
