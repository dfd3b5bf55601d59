// Compares charges that count in three levels of budgets with charges that count in none: a key with a limit by day, within a member
// by day and month, within a team by month.
// npm run bench:budgets [-- --json --rounds=5 --seconds=2]
import { createLedger } from '../src/index.js'
import { readArguments } from './arguments.js'
import { charge } from './contenders/contender.js'
import { makeLedger } from './contenders/library.js'
import { ACCOUNTS, anyUser, HOT, openPool, PLENTY, query, startServer } from './databases.js'
import { runLoad } from './load.js'
import { describeMachine } from './machine.js'
import { table } from './report.js'
import { median } from './statistics.js'

const CALLERS = 256
const KEYS = 100 // of the hot account, ten to a member; a spread account has one
const PER_MEMBER = 10

interface Load {
  accounts: 'hot' | 'spread'
  /** How many keys of the account are charged. */
  keys: number
  budgets: boolean
}

const loads: Load[] = ([['hot', 1], ['hot', KEYS], ['spread', 1]] as const).flatMap(([accounts, keys]) =>
  [false, true].map(budgets => ({ accounts, keys, budgets })))

const { json, rounds, seconds } = readArguments()
const server = await startServer()
const machine = await describeMachine(await server.createDatabase('machine'))
const connectionString = await server.createDatabase('budgets')
await makeLedger(connectionString)
const pool = openPool(connectionString)
const ledger = createLedger(pool)
await makeBudgets()

const measured = loads.map(load => ({ ...load, perSecond: [] as number[], p99: [] as number[] }))
for (let round = 0; round < rounds; round++) {
  for (const of of round % 2 ? measured.toReversed() : measured) {
    process.stderr.write(`round ${round + 1}: ${nameOf(of)}\n`)
    await runLoad(CALLERS, seconds / 4, () => call(of))
    const { perSecond, p99 } = await runLoad(CALLERS, seconds, () => call(of))
    of.perSecond.push(perSecond)
    of.p99.push(p99)
  }
}
const reconciled = [await ledger.reconcile(HOT), await ledger.reconcile(anyUser())].every(({ ok }) => ok)
await ledger.close()
await pool.end()
await server.stop()

const result = measured.map(({ perSecond, p99, ...load }, index) => {
  const without = measured[index - index % 2]!.perSecond
  const ratio = median(perSecond.map((calls, round) => calls / without[round]!))
  return { ...load, perSecond: median(perSecond), p99: median(p99), ratio }
})
if (json) {
  process.stdout.write(`${JSON.stringify({ machine, rounds, seconds, reconciled, result })}\n`)
} else {
  process.stdout.write(`${Object.entries(machine).map(entry => entry.join(': ')).join(', ')}\n\n`)
  process.stdout.write(table(['deducts, 256 callers', 'per second', 'p99 ms', 'ratio'], result.map(
    ({ perSecond, p99, ratio, ...load }) =>
      [nameOf(load), Math.round(perSecond).toLocaleString('en'), p99.toFixed(1), ratio.toFixed(2)])))
  process.stdout.write(`\nreconciled: ${reconciled}\n`)
}

function nameOf ({ accounts, keys, budgets }: Load) {
  return `${accounts}, ${budgets ? `three levels, ${keys} keys` : 'no budgets'}`
}

async function call ({ accounts, keys, budgets }: Load) {
  const userId = accounts === 'hot' ? HOT : anyUser()
  return await ledger.deduct({ userId, ...charge, ...budgets && { budget: `key:${Math.floor(Math.random() * keys)}` } })
}

// By SQL, because ten thousand accounts have them. No load reaches a limit. The first charge finds each one's period over.
async function makeBudgets () {
  const limit = `(${PLENTY}, 0, 0, null, 0)::ai_credit_limit`
  await query(connectionString, `
    insert into ai_credit_budgets (user_id, budget, within, made_seq, day, month)
    select user_id, budget, within, 0, day, month
    from (
      select user_id, keys from (select 'user' || n as user_id, 1 as keys from generate_series(0, ${ACCOUNTS - 1}) n) spread
      union all select '${HOT}', ${KEYS}
    ) account, lateral (
      select 'team' as budget, null as within, null as day, ${limit} as month
      union all select 'member:' || n, 'team', ${limit}, ${limit} from generate_series(0, (keys - 1) / ${PER_MEMBER}) n
      union all select 'key:' || n, 'member:' || n / ${PER_MEMBER}, ${limit}, null from generate_series(0, keys - 1) n
    ) tree`)
  await query(connectionString, 'vacuum analyze')
}
