// A client in its own process. It writes each call to a journal before it sends it, repeats it until it has a reply, and
// writes the reply to the journal. If the client is killed, its successor first repeats the calls without a reply.
import { setTimeout as sleep } from 'node:timers/promises'
import { read, write, type Answer, type Call } from './journal.js'
import { Load } from './load.js'
import { Random } from './random.js'
import { post, type Reply } from './requests.js'

/** The orders of a client. */
export interface Orders {
  journal: string
  round: string
  seed: number
  calls: number
  concurrency: number
  gateways: string[]
}

const DUPLICATES = 0.05
const PAUSE = 20

const orders: Orders = JSON.parse(process.argv[2]!)
let { gateways } = orders
process.on('message', (message: { gateways: string[] }) => { gateways = message.gateways })
process.on('disconnect', () => process.exit())

const past = read(orders.journal)
// A successor makes other calls than its predecessor would have made, because nobody knows those.
const random = new Random(orders.seed + past.calls.length)
const load = new Load(random, orders.round)
load.resume(past)

const left = past.calls.filter(({ number }) => !past.answers.has(number))
let made = past.calls.length
let answered = past.answers.size

await Promise.all(Array.from({ length: orders.concurrency }, work))
process.send!({ done: true })

async function work () {
  for (let call = take(); call !== undefined; call = take()) {
    const answer = await ask(call)
    write(orders.journal, { answer })
    if (answer.status === 200) load.accepted(call, answer.body)
    process.send!({ answered: ++answered })
  }
}

function take (): Call | undefined {
  if (left.length > 0) return left.shift()
  if (made >= orders.calls) return undefined
  const call = load.next(made++)
  write(orders.journal, { call })
  return call
}

async function ask (call: Call): Promise<Answer> {
  const twice = random.happens(DUPLICATES)
  const [answer, duplicate] = await Promise.all([repeat(call), twice ? repeat(call) : undefined])
  const { status, body } = answer
  return {
    number: call.number,
    status,
    body,
    sent: answer.sent + (duplicate?.sent ?? 0),
    unanswered: answer.unanswered + (duplicate?.unanswered ?? 0),
    ...duplicate && { duplicate: { status: duplicate.status, body: duplicate.body } }
  }
}

async function repeat ({ path, body, key }: Call): Promise<Reply & { sent: number, unanswered: number }> {
  for (let unanswered = 0; ; unanswered++) {
    try {
      const reply = await post(random.pick(gateways) + path, body, key)
      if (reply.status !== 503) return { ...reply, sent: unanswered + 1, unanswered }
    } catch {
      // The gateway is gone, so the outcome of the call is not known.
    }
    await sleep(PAUSE * (0.5 + random.next()))
  }
}
