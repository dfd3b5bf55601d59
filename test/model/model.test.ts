import assert from 'node:assert'
import fc from 'fast-check'
import t from 'tap'
import { createLedger, type Budget, type HistoryEntry, type Ledger, type StatementEntry } from '../../src/index.js'
import { defaults } from '../helper/app.js'
import { createClockedLedgerDatabase } from '../helper/clock.js'
import { createPool } from '../helper/database.js'
import { budgetNames, callOf, command, option, prelude, start, type Call, type Command, type Known, type Option } from './commands.js'
import { Ids } from './ids.js'
import { expectedOf, outcomeOf, type Outcome } from './outcome.js'
import { Reference } from './reference.js'
import { runs, seed } from './settings.js'

const PAGE = 7
const ENOUGH = 300

// The generator of sequences could become too narrow unnoticed. Each of these outcomes occurs a dozen times or more in that
// many sequences.
const everything = [
  ...['balance', 'deduct', 'hold', 'capture', 'release', 'extend', 'grant', 'revoke', 'refund', 'setAllowance', 'setOverdraft',
    'setBudget', 'removeBudget', 'budgets']
    .map(method => `${method} accepted`),
  ...['deduct', 'hold', 'grant', 'release', 'lapse', 'expiry', 'renewal', 'capture', 'refund', 'revoke', 'opening']
    .map(kind => `entry ${kind}`),
  ...['INSUFFICIENT', 'IDEMPOTENCY_CONFLICT', 'NOT_FOUND', 'HOLD_CLOSED', 'GRANT_CLOSED', 'REFUND_EXCEEDS', 'INVALID',
    'BUDGET_EXCEEDED', 'BUDGET_IN_USE']
    .map(code => `FST_CREDITS_${code}`),
  'no such budget', 'a circle of budgets', 'too many levels of budgets',
  ...['total', 'month', 'week', 'day'].flatMap(period => [`the ${period} of its budget`, `the ${period} of a budget above`]),
  ...['deduct', 'hold', 'capture', 'refund'].map(kind => `entry ${kind} in a budget`),
  'a budget made from a template', 'more used than a limit', 'replayed'
]

const timeout = 60_000 + runs * 500
// The first sets the limit of this process, the second that of the test runner.
t.setTimeout(timeout)
t.comment(`timeout=${timeout}`)

const { connectionString, setClock } = await createClockedLedgerDatabase(t, '2026-01-01T00:00:00Z')
const pool = createPool(t, connectionString)
await createLedger(pool, defaults).migrate()

// All sequences share one database, because each has its own accounts; the time of an account never goes back.
let sequences = 0
const seen = new Map<string, number>()

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
  t.comment(JSON.stringify(Object.fromEntries([...seen].sort())))
  t.strictSame(everything.filter(what => !seen.has(what)), [])
})

t.test('afterwards every account of theirs adds up', async t => {
  const { ok, accounts, differences } = await createLedger(pool, defaults).reconcile()
  t.strictSame(differences, [])
  t.ok(ok)
  t.comment(`${accounts} accounts`)
})

// Entries in one order. The database sorts those of equal use by the hash of their metadata.
function inOrder (entries: HistoryEntry[]): HistoryEntry[] {
  const textOf = ({ date, operation, metadata }: HistoryEntry) => JSON.stringify([date, operation, Object.entries(metadata).sort()])
  return [...entries].sort((a, b) => textOf(a) < textOf(b) ? -1 : 1)
}

function see (what: string): void {
  seen.set(what, (seen.get(what) ?? 0) + 1)
}

function seeOutcome ({ method, args }: Call, { answer, refusal }: Outcome): void {
  if (refusal) return seeRefusal(method, args, refusal)
  see(answer?.replayed ? 'replayed' : `${method} accepted`)
  if (method === 'setBudget') seeBudgets([answer])
  if (method === 'budgets') seeBudgets(answer.entries)
}

function seeBudgets (budgets: Budget[]): void {
  for (const { limits, used } of budgets) {
    for (const period of ['day', 'week', 'month', 'total'] as const) if (used[period]! > limits[period]!) see('more used than a limit')
  }
}

function seeRefusal (method: string, args: any[], { code, budget, period, problem }: NonNullable<Outcome['refusal']>): void {
  see(code)
  if (period !== undefined) see(`the ${period} of ${budget === args[0].budget ? 'its budget' : 'a budget above'}`)
  if (problem !== undefined) see(/levels/.test(problem) ? 'too many levels of budgets' : 'a circle of budgets')
  if (code === 'FST_CREDITS_NOT_FOUND' && /Budget|deduct|hold/.test(method)) see('no such budget')
}

/** A running sequence, in the reference and in the database. */
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

  /** Asserts that both ledgers have the same statement of every account, entry by entry. */
  async compareStatements (): Promise<void> {
    for (const userId of this.#known.users) {
      const expected = this.#reference.entries(userId).map(entry => this.#ids.toActual(entry))
      assert.deepStrictEqual(await this.#statement(userId), expected, `the statement of ${userId}`)
      for (const { kind, budget } of expected) see(`entry ${kind}${budget === undefined ? '' : ' in a budget'}`)
      await this.#compareBudgets(userId)
      const { differences } = await this.#ledger.reconcile(userId)
      assert.deepStrictEqual(differences, [])
    }
  }

  // Also the history of those that were removed.
  async #compareBudgets (userId: string): Promise<void> {
    const budgets = await this.#ledger.budgets(userId)
    assert.deepStrictEqual(budgets, this.#reference.budgets(userId), `the budgets of ${userId}`)
    seeBudgets(budgets.entries)
    for (const budget of budgetNames) {
      const expected = this.#reference.history(userId, budget)
      if (expected.length === 0) continue // most, which would take their time
      const { entries } = await this.#ledger.history(userId, { budget, days: 36_500 })
      assert.deepStrictEqual(inOrder(entries), inOrder(expected), `the history of ${budget} of ${userId}`)
    }
  }

  async #wait (ms: number): Promise<void> {
    this.#known.now += ms
    this.#reference.now = this.#known.now
    await setClock(new Date(this.#known.now).toISOString())
  }

  // Like a host that starts again with another allowance.
  #restart (allowance: Option): void {
    this.#reference.setOption(allowance)
    this.#ledger = createLedger(pool, { ...defaults, allowance })
  }

  async #compare (call: Call): Promise<void> {
    const before = call.args[0].budget && this.#reference.budgets(call.args[0].userId).entries
    const expected = expectedOf(this.#reference, call)
    const actual = await outcomeOf(this.#ledger, this.#translate(call))
    if (expected.answer && actual.answer) this.#learn(call, expected.answer, actual.answer)
    const translated = expected.answer ? { answer: this.#ids.toActual(expected.answer) } : expected
    assert.deepStrictEqual(actual, translated, `the answer to ${JSON.stringify(call)}`)
    seeOutcome(call, actual)
    if (actual.answer?.replayed === false && before?.every(({ budget }: Budget) => budget !== call.args[0].budget)) see('a budget made from a template')
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
