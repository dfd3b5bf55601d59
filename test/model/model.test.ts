import assert from 'node:assert'
import fc from 'fast-check'
import t from 'tap'
import { createLedger, type Ledger, type StatementEntry } from '../../src/index.js'
import { defaults } from '../helper/app.js'
import { createClockedLedgerDatabase } from '../helper/clock.js'
import { createPool } from '../helper/database.js'
import { callOf, command, option, prelude, start, type Call, type Command, type Known, type Option } from './commands.js'
import { Ids } from './ids.js'
import { expectedOf, outcomeOf, type Outcome } from './outcome.js'
import { Reference } from './reference.js'
import { runs, seed } from './settings.js'

const PAGE = 7
const ENOUGH = 300

// The generator of sequences could become dull unnoticed: each of these comes up dozens of times in as many sequences.
const everything = [
  ...['balance', 'deduct', 'hold', 'capture', 'release', 'extend', 'grant', 'revoke', 'refund', 'setAllowance', 'setOverdraft']
    .map(method => `${method} accepted`),
  ...['deduct', 'hold', 'grant', 'release', 'lapse', 'expiry', 'renewal', 'capture', 'refund', 'revoke', 'opening']
    .map(kind => `entry ${kind}`),
  ...['INSUFFICIENT', 'IDEMPOTENCY_CONFLICT', 'NOT_FOUND', 'HOLD_CLOSED', 'GRANT_CLOSED', 'REFUND_EXCEEDS', 'INVALID']
    .map(code => `FST_CREDITS_${code}`),
  'replayed'
]

const timeout = 60_000 + runs * 500
// The first for this process, the second for the test runner, whose limit is meant for a single file.
t.setTimeout(timeout)
t.comment(`timeout=${timeout}`)

const { connectionString, setClock } = await createClockedLedgerDatabase(t, '2026-01-01T00:00:00Z')
const pool = createPool(t, connectionString)
await createLedger(pool, defaults).migrate()

// One database serves all sequences, as each has accounts of its own; an account's time never goes back.
let sequences = 0
const seen = new Set<string>()

t.test(`random sequences of calls are answered as the reference answers them (MODEL_SEED=${seed})`, async t => {
  const sequence = fc.array(command, { minLength: 1, maxLength: 70, size: 'max' })
  const property = fc.asyncProperty(start, option, prelude, sequence, async (start, option, prelude, commands) => {
    const session = new Session(start, option, `sequence ${sequences++}`)
    await setClock(new Date(start).toISOString())
    for (const command of [...prelude, ...commands]) await session.obey(command)
    await session.compareStatements()
  })
  await fc.assert(property, { seed, numRuns: runs })
  t.pass(`${runs} sequences`)
})

t.test('they came to everything that a call can come to', { skip: runs < ENOUGH && 'too few sequences' }, async t => {
  t.strictSame(everything.filter(what => !seen.has(what)), [])
})

t.test('afterwards every account of theirs adds up', async t => {
  const { ok, accounts, differences } = await createLedger(pool, defaults).reconcile()
  t.strictSame(differences, [])
  t.ok(ok)
  t.comment(`${accounts} accounts`)
})

function see ({ method }: Call, { answer, refusal }: Outcome): void {
  if (refusal) seen.add(refusal.code)
  else seen.add(answer.replayed ? 'replayed' : `${method} accepted`)
}

/** A sequence under way, in the reference and in the database. */
class Session {
  readonly #reference: Reference
  readonly #ids = new Ids()
  readonly #known: Known
  #ledger: Ledger

  constructor (start: number, option: Option, name: string) {
    this.#reference = new Reference(start, option)
    this.#ledger = createLedger(pool, { ...defaults, allowance: option })
    const users = ['ann', 'ben', 'cleo'].map(user => `${user} of ${name}`)
    this.#known = { users, calls: [], holds: [], grants: [], records: [], now: start }
  }

  async obey (command: Command): Promise<void> {
    if (command.do === 'wait') await this.#wait(command.ms)
    else if (command.do === 'option') this.#restart(command.allowance)
    else {
      const call = callOf(command, this.#known)
      if (call !== undefined) await this.#compare(call)
    }
  }

  /** Both ledgers tell the same about every account, entry by entry. */
  async compareStatements (): Promise<void> {
    for (const userId of this.#known.users) {
      const expected = this.#reference.entries(userId).map(entry => this.#ids.toActual(entry))
      assert.deepStrictEqual(await this.#statement(userId), expected, `the statement of ${userId}`)
      for (const { kind } of expected) seen.add(`entry ${kind}`)
      const { differences } = await this.#ledger.reconcile(userId)
      assert.deepStrictEqual(differences, [])
    }
  }

  async #wait (ms: number): Promise<void> {
    this.#known.now += ms
    this.#reference.now = this.#known.now
    await setClock(new Date(this.#known.now).toISOString())
  }

  // As a host does that starts again with another allowance.
  #restart (allowance: Option): void {
    this.#reference.setOption(allowance)
    this.#ledger = createLedger(pool, { ...defaults, allowance })
  }

  async #compare (call: Call): Promise<void> {
    const expected = expectedOf(this.#reference, call)
    const actual = await outcomeOf(this.#ledger, this.#translate(call))
    if (expected.answer && actual.answer) this.#learn(call, expected.answer, actual.answer)
    const translated = expected.answer ? { answer: this.#ids.toActual(expected.answer) } : expected
    assert.deepStrictEqual(actual, translated, `the answer to ${JSON.stringify(call)}`)
    see(call, actual)
    this.#known.calls.push(call)
  }

  #learn ({ method }: Call, expected: any, actual: any): void {
    this.#ids.learn(expected, actual)
    if (expected.replayed !== false) return
    if (method === 'hold') this.#known.holds.push(expected.id)
    if (method === 'grant') this.#known.grants.push(expected.id)
    if (method === 'deduct' || method === 'capture' || method === 'refund') this.#known.records.push(expected.id)
  }

  #translate ({ method, args }: Call): Call {
    return {
      method,
      args: args.map(argument => typeof argument === 'string' ? this.#ids.actualId(argument) : this.#ids.toActual(argument))
    }
  }

  async #statement (userId: string): Promise<StatementEntry[]> {
    const entries: StatementEntry[] = []
    let cursor: string | null | undefined
    while (cursor !== null) {
      const page = await this.#ledger.statement(userId, { limit: PAGE, ...(cursor && { cursor }) })
      entries.push(...page.entries)
      cursor = page.cursor
    }
    return entries
  }
}
