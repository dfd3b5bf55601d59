import { setTimeout as sleep } from 'node:timers/promises'
import { UnavailableError } from '../../src/index.js'
import { Histogram, type Counts } from './histogram.js'

const TICK = 1 // millisecond
const MOST = 256 // calls that are sent in one turn of the event loop
const ATTEMPTS = 50 // to learn what became of a call
const PAUSE = 100 // milliseconds between two of them

/** What became of the calls of an open loop. Latencies are in milliseconds. */
export interface OpenLoad {
  asked: number
  accepted: number
  /** Those that were accepted before the end of the load. */
  inTime: number
  /** The 503 that came at once, because `maxQueue` calls were waiting. */
  refused: number
  /** The other 503. Each was sent again with its key, until its outcome was known. */
  late: number
  /** The other errors. These were sent again, too. */
  errors: number
  firstError?: string
  /** The calls whose outcome never became known. */
  unknown: number
  /** Of what was accepted: since the call was due, and since it was sent. */
  sinceDue: Counts
  sinceSent: Counts
  /** Of what was refused, since it was sent. */
  untilRefused: Counts
}

type Call = (key: number) => Promise<unknown>

/**
 * Sends calls at a fixed rate, whatever becomes of those before. One that could not be sent when it was due, because the
 * process was busy, is sent as soon as possible, and its latency counts from when it was due.
 */
export async function runOpenLoad (rate: number, seconds: number, call: Call): Promise<OpenLoad> {
  const load = new Load(rate, seconds, call)
  await load.send()
  return await load.end()
}

class Load {
  private readonly sinceDue = new Histogram()
  private readonly sinceSent = new Histogram()
  private readonly untilRefused = new Histogram()
  private readonly open: number[] = [] // keys of calls whose outcome is not known
  private readonly figures = { accepted: 0, inTime: 0, refused: 0, late: 0, errors: 0 }
  private readonly asked: number
  private readonly start = performance.now()
  private firstError: string | undefined
  private sent = 0
  private done = 0
  private finish = () => {}

  constructor (private readonly rate: number, private readonly seconds: number, private readonly call: Call) {
    this.asked = Math.floor(rate * seconds)
  }

  /** Returns once all calls have an outcome. */
  async send () {
    setTimeout(() => this.sendDue(), TICK)
    await new Promise<void>(resolve => { this.finish = resolve })
  }

  // No call has a timer of its own. A process that is behind takes turns with the replies, as one that reads requests from
  // sockets does.
  private sendDue () {
    const due = Math.min(this.asked, Math.floor((performance.now() - this.start) / 1000 * this.rate))
    const end = Math.min(due, this.sent + MOST)
    while (this.sent < end) this.sendOne(this.sent++)
    if (this.sent < due) setImmediate(() => this.sendDue())
    else if (this.sent < this.asked) setTimeout(() => this.sendDue(), TICK)
  }

  /** Sends the calls again whose outcome is not known. Each had a key, so none is charged twice. */
  async end (): Promise<OpenLoad> {
    for (let attempt = 0; attempt < ATTEMPTS && this.open.length > 0; attempt++) {
      if (attempt > 0) await sleep(PAUSE)
      await Promise.all(this.open.splice(0).map(key => this.call(key).then(
        () => { this.figures.accepted++ },
        () => { this.open.push(key) })))
    }
    const { sinceDue, sinceSent, untilRefused, firstError } = this
    return {
      asked: this.asked,
      ...this.figures,
      ...firstError !== undefined && { firstError },
      unknown: this.open.length,
      sinceDue: sinceDue.toJSON(),
      sinceSent: sinceSent.toJSON(),
      untilRefused: untilRefused.toJSON()
    }
  }

  private sendOne (key: number) {
    const sent = performance.now()
    this.call(key).then(
      () => this.accept(key, sent),
      (error: unknown) => this.fail(key, sent, error)
    ).finally(() => { if (++this.done === this.asked) this.finish() })
  }

  private accept (key: number, sent: number) {
    const now = performance.now()
    this.figures.accepted++
    if (now < this.start + this.seconds * 1000) this.figures.inTime++
    this.sinceDue.record(now - this.start - (key + 1) / this.rate * 1000)
    this.sinceSent.record(now - sent)
  }

  private fail (key: number, sent: number, error: unknown) {
    if (error instanceof UnavailableError && String(error.cause).includes('(maxQueue)')) {
      this.figures.refused++
      this.untilRefused.record(performance.now() - sent)
      return
    }
    this.open.push(key)
    if (error instanceof UnavailableError) this.figures.late++
    else this.figures.errors++
    this.firstError ??= error instanceof UnavailableError ? undefined : String(error)
  }
}
