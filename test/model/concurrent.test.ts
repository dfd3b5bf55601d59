// needs a real server
import assert from 'node:assert'
import fc from 'fast-check'
import t from 'tap'
import { createLedger, type Ledger, type StatementEntry } from '../../src/index.js'
import { createClockedLedgerDatabase } from '../helper/clock.js'
import { createPool } from '../helper/database.js'
import {
  callOf, concurrentCommand, option, prelude, quietCommand, start, step, type Call, type Command, type Known, type Option
} from './commands.js'
import { outcomeOf } from './outcome.js'
import { isOnId, Replay, type Made } from './replay.js'
import { runs, seed } from './settings.js'

const numRuns = Math.ceil(runs / 3)

const timeout = 60_000 + numRuns * 2000
// The first sets the limit of this process, the second that of the test runner.
t.setTimeout(timeout)
t.comment(`timeout=${timeout}`)

// The database measures a call's wait for a lock with the test's clock, which jumps by days.
const ELEVEN_DAYS = 1_000_000_000

const { connectionString, setClock } = await createClockedLedgerDatabase(t, '2026-01-01T00:00:00Z')
const pools = Array.from({ length: 4 }, () => createPool(t, connectionString, { max: 4 }))
await createLedger(pools[0]!).migrate()
let sequences = 0

/** A round: commands that run one by one, then calls that run together while the clock moves. */
interface Round {
  quiet: Command[]
  together: Command[]
  steps: number[]
}

const round: fc.Arbitrary<Round> = fc.record({
  quiet: fc.array(quietCommand, { maxLength: 4 }),
  together: fc.array(concurrentCommand, { minLength: 2, maxLength: 16, size: 'max' }),
  steps: fc.array(step, { maxLength: 3 })
}, { noNullPrototype: true })

t.test(`calls made together are what the reference does in the order of the statement (MODEL_SEED=${seed})`, async t => {
  const rounds = fc.array(round, { minLength: 1, maxLength: 5, size: 'max' })
  const property = fc.asyncProperty(start, option, prelude, rounds, async (start, option, prelude, rounds) => {
    const session = new Session(start, option, `sequence ${sequences++}`)
    await setClock(new Date(start).toISOString())
    await session.run({ quiet: prelude, together: [], steps: [] })
    for (const round of rounds) await session.run(round)
  })
  await fc.assert(property, { seed, numRuns })
  t.pass(`${numRuns} sequences`)
})

t.test('afterwards every account of theirs adds up', async t => {
  const { ok, accounts, differences } = await createLedger(pools[0]!).reconcile()
  t.strictSame(differences, [])
  t.ok(ok)
  t.comment(`${accounts} accounts`)
})

/** A running sequence: several ledgers, and a reference for each account. */
class Session {
  readonly #replays: Replay[]
  readonly #known: Known
  /** The account of each hold, grant and record, by method and id. */
  readonly #owners = new Map<string, string>()
  #ledgers: Ledger[]

  constructor (start: number, option: Option, name: string) {
    const users = ['ann', 'ben', 'cleo'].map(user => `${user} of ${name}`)
    this.#ledgers = open(option)
    this.#replays = users.map(user => new Replay(user, start, option))
    this.#known = { users, calls: [], holds: [], grants: [], records: [], now: start }
  }

  async run ({ quiet, together, steps }: Round): Promise<void> {
    for (const command of quiet) await this.#obey(command)
    const calls = together.map(command => callOf(command, this.#known)).filter(call => call !== undefined)
    const times = [this.#known.now]
    const [made] = await Promise.all([this.#make(calls), this.#move(steps, times)])
    this.#refuseStrangers(made)
    for (const replay of this.#replays) {
      replay.together(made.filter(({ call }) => this.#ownerOf(call) === replay.userId), await this.#news(replay), times)
    }
    for (const each of made) {
      this.#known.calls.push(each.call)
      this.#learn(each)
    }
    for (const { userId } of this.#replays) await this.#ask({ method: 'budgets', args: [userId] })
  }

  async #obey (command: Command): Promise<void> {
    if (command.do === 'wait') return await this.#pass(command.ms)
    if (command.do === 'option') return this.#restart(command.allowance)
    await this.#ask(callOf(command, this.#known)!)
  }

  // Makes a call while no other is under way.
  async #ask (call: Call): Promise<void> {
    const made = { call, outcome: await outcomeOf(this.#ledgers[0]!, call) }
    this.#refuseStrangers([made])
    this.#replays.find(({ userId }) => userId === this.#ownerOf(call))?.alone(made, this.#known.now)
    this.#learn(made)
  }

  #restart (option: Option): void {
    this.#ledgers = open(option)
    for (const replay of this.#replays) replay.setOption(option)
  }

  async #pass (ms: number): Promise<void> {
    this.#known.now += ms
    await setClock(new Date(this.#known.now).toISOString())
  }

  async #move (steps: number[], times: number[]): Promise<void> {
    for (const ms of steps) {
      times.push(this.#known.now + ms)
      await this.#pass(ms)
    }
  }

  async #make (calls: Call[]): Promise<Made[]> {
    return await Promise.all(calls.map(async (call, index) =>
      ({ call, outcome: await outcomeOf(this.#ledgers[index % this.#ledgers.length]!, call) })))
  }

  // No account is concerned if an id does not exist, or if a call names another account than the id's.
  #refuseStrangers (made: Made[]): void {
    for (const { call, outcome } of made) {
      if (this.#ownerOf(call) === undefined) assert.deepStrictEqual(outcome, { refusal: { code: 'FST_CREDITS_NOT_FOUND' } })
    }
  }

  #ownerOf ({ method, args: [first, input] }: Call): string | undefined {
    if (isOnId(method)) return this.#owners.get(`${method === 'revoke' ? 'grant' : 'hold'} ${first}`)
    if (first.usageId !== undefined) return this.#owners.get(`record ${first.usageId}`)
    return typeof first === 'string' ? first : first.userId
  }

  #learn ({ call, outcome: { answer } }: Made): void {
    if (answer?.replayed !== false) return
    const { method } = call
    if (method === 'hold' || method === 'grant') {
      this.#known[`${method}s`].push(answer.id)
      this.#owners.set(`${method} ${answer.id}`, answer.userId)
    } else if (method === 'deduct' || method === 'capture' || method === 'refund') {
      this.#known.records.push(answer.id)
      this.#owners.set(`record ${answer.id}`, answer.userId)
    }
  }

  async #news ({ userId, length }: Replay): Promise<StatementEntry[]> {
    const from = length === 0 ? {} : { cursor: String(length - 1) }
    return (await this.#ledgers[0]!.statement(userId, from)).entries
  }
}

function open (allowance: Option): Ledger[] {
  return pools.map(pool => createLedger(pool, { allowance, timeout: ELEVEN_DAYS }))
}
