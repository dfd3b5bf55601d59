import t from 'tap'
import { payable, type ChargeFacts } from '../../src/http/charging/payable.js'

// A complete reply of a route that costs 100.
const whole: ChargeFacts = {
  cancelled: false,
  timedOut: false,
  failed: false,
  status: 200,
  captured: undefined,
  whole: true,
  brokenOff: false,
  reportsUse: false,
  byUsage: false,
  used: 0,
  minimum: 0,
  fixed: 100
}
const cutOff = { ...whole, whole: false }
const brokenOff = { ...cutOff, brokenOff: true }
const metered = { fixed: undefined, minimum: 5 }
const used30 = { used: 30, reportsUse: true }
const byUsage = { fixed: undefined, byUsage: true, reportsUse: true }

const rows: [name: string, ChargeFacts, number | 'cost'][] = [
  ['cancelled', { ...whole, cancelled: true }, 0],
  ['cancelled, and then cut off', { ...cutOff, ...used30, cancelled: true }, 0],
  ['cancelled after it was captured', { ...whole, captured: 100, cancelled: true }, 0],

  ['failed before it began', { ...whole, failed: true }, 0],
  ['failed, and the error handler made a 200 of it', { ...whole, failed: true, status: 200 }, 0],
  ['failed after the client had gone', { ...cutOff, failed: true, status: undefined, ...used30 }, 0],
  ['failed after it was captured', { ...whole, failed: true, captured: 100, status: 500 }, 0],
  ['handlerTimeout', { ...whole, timedOut: true, status: 503 }, 0],
  ['handlerTimeout in mid-stream', { ...brokenOff, timedOut: true, ...used30 }, 0],

  ['status 400', { ...whole, status: 400 }, 0],
  ['status 599, cut off', { ...cutOff, status: 599, ...used30 }, 0],
  ['status 500 after it was captured', { ...whole, status: 500, captured: 100 }, 0],
  ['status 399', { ...whole, status: 399 }, 'cost'],

  ['status 304', { ...whole, status: 304 }, 0],
  ['status 304, with a minimum', { ...whole, status: 304, ...metered }, 0],
  ['status 304 of what was used', { ...whole, status: 304, ...used30 }, 30],
  ['status 304 of what was used, with usage', { ...whole, status: 304, ...byUsage }, 'cost'],
  ['status 304 after it was captured', { ...whole, status: 304, captured: 100 }, 0],

  ['no reply', { ...cutOff, status: undefined }, 0],
  ['no reply, with a minimum', { ...cutOff, status: undefined, ...metered }, 0],
  ['no reply, but something was used', { ...cutOff, status: undefined, ...used30 }, 30],
  ['no reply, with usage', { ...cutOff, status: undefined, ...byUsage }, 'cost'],

  ['captured', { ...whole, captured: 60 }, 60],
  ['captured, and used less', { ...cutOff, captured: 60, ...used30 }, 60],
  ['captured, and then its source failed', { ...brokenOff, captured: 60 }, 60],

  ['whole', whole, 'cost'],
  ['whole, of what was used', { ...whole, ...metered, ...used30 }, 'cost'],
  ['a redirect', { ...whole, status: 302 }, 'cost'],
  ['no content', { ...whole, status: 204 }, 'cost'],

  ['its source failed', brokenOff, 0],
  ['its source failed, with a minimum', { ...brokenOff, ...metered }, 5],
  ['its source failed, and something was used', { ...brokenOff, ...used30 }, 30],
  ['its source failed, and more was used than it costs', { ...brokenOff, used: 300, reportsUse: true }, 100],
  ['its source failed, with usage', { ...brokenOff, ...byUsage }, 'cost'],

  ['the client went', cutOff, 'cost'],
  ['the client went, and something was used', { ...cutOff, ...used30 }, 30],
  ['the client went, and less was used than the minimum', { ...cutOff, minimum: 50, ...used30 }, 50],
  ['the client went, and more was used than it costs', { ...cutOff, used: 300, reportsUse: true }, 100],
  ['the client went, and nothing was used', { ...cutOff, reportsUse: true }, 0],
  ['the client went, with usage', { ...cutOff, ...byUsage }, 'cost']
]

t.test('what is paid', async t => {
  for (const [name, facts, expected] of rows) t.equal(payable(facts), expected, name)
})
