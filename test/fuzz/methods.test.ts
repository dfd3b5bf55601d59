// needs a real server
import assert from 'node:assert'
import { inspect } from 'node:util'
import fc from 'fast-check'
import t from 'tap'
import { createLedger, type Ledger } from '../../src/index.js'
import { buildHost, defaults } from '../helper/app.js'
import { callsOf, options, type Call } from './calls.js'
import { allowTime, PATIENCE, seed, share, thorough } from './settings.js'
import { Shadow, type Kind } from './shadow.js'
import { users } from './values.js'

const BATCH = 300
const TOGETHER = 25

const refusals = ['INVALID', 'INSUFFICIENT', 'NOT_FOUND', 'HOLD_CLOSED', 'GRANT_CLOSED', 'REFUND_EXCEEDS', 'IDEMPOTENCY_CONFLICT',
  'BUDGET_EXCEEDED', 'BUDGET_IN_USE']
  .map(code => `FST_CREDITS_${code}`)

const kinds = ['deduct', 'capture', 'refund', 'hold', 'grant']

allowTime(t)

t.test(`calls of every method (FUZZ_SEED=${seed})`, async t => {
  const app = await buildHost(t)
  const ledger = createLedger(app.pg.pool, { ...defaults, allowance: 1_000_000, timeout: PATIENCE })
  await ledger.migrate()
  const shadow = new Shadow()
  for (const user of users) {
    shadow.name(user)
    await ledger.setBudget(user, 'team', { month: 100_000 })
    for (const template of ['key:*', 'ünï😀:*']) await ledger.setBudget(user, template, { within: 'team', day: 3000 })
  }
  const total = share(0.15)
  const seen: Record<string, number> = {}
  for (let made = 0, batch = 0; made < total; batch++) {
    const calls = fc.sample(callsOf(10 + batch * 5), { seed: seed + batch, numRuns: Math.min(BATCH, total - made) })
    made += calls.length
    for (let first = 0; first < calls.length; first += TOGETHER) {
      await Promise.all(calls.slice(first, first + TOGETHER).map(async call => {
        try {
          await make(ledger, shadow, seen, call)
        } catch (error) {
          const { stack, cause } = error as Error
          assert.fail(`${stack} ${inspect(cause)}\nFUZZ_SEED=${seed}, batch ${batch}: ${call.method} ${inspect(call.args, { depth: 5 }).slice(0, 1500)}`)
        }
      }))
    }
    await shadow.compare(app.pg)
  }
  const { ok, accounts, differences } = await ledger.reconcile()
  t.strictSame(differences, [])
  t.ok(ok)
  t.comment(`${total} calls, ${shadow.accepted} accepted, ${shadow.refused} refused; ${accounts} accounts; ${JSON.stringify(seen)}`)
  if (thorough) t.strictSame(refusals.filter(code => seen[code] === undefined), [], 'every refusal came up')
})

async function make (ledger: Ledger, shadow: Shadow, seen: Record<string, number>, { method, args }: Call): Promise<void> {
  let answer: any
  const named = nameIn({ method, args })
  try {
    answer = await (ledger[method] as (...args: unknown[]) => Promise<unknown>)(...args)
  } catch (error) {
    const { code, statusCode } = error as { code: string, statusCode: number }
    if (!refusals.includes(code)) throw error
    assert(statusCode >= 400 && statusCode < 500)
    seen[code] = (seen[code] ?? 0) + 1
    shadow.refused++
    if (typeof named === 'string') shadow.name(named) // one that is refused may be opened
    return
  }
  shadow.accepted++
  seen[method] = (seen[method] ?? 0) + 1
  const userId = answer?.userId ?? named ?? 'default_user'
  if (named !== undefined) assert.strictEqual(userId, named, 'the account that was named')
  shadow.name(userId)
  if (kinds.includes(method) && !answer.replayed) shadow.accept(method as Kind, userId, answer.credits, (args[0] as any).budget)
}

// The account that a call names, if it does.
function nameIn ({ method, args }: Call): unknown {
  const [first, second] = args as any[]
  const onId = ['capture', 'release', 'extend', 'revoke'].includes(method)
  if (onId) return second?.userId
  const named = ['deduct', 'hold', 'grant', 'refund'].includes(method) ? first?.userId : first
  return named ?? (method === 'refund' && first?.usageId !== undefined ? undefined : 'default_user')
}

t.test(`options of every kind (FUZZ_SEED=${seed})`, async t => {
  const pool = { connect: async () => { throw new Error('not used') }, on: () => {} }
  let taken = 0
  for (const given of fc.sample(options, { seed, numRuns: share(0.02) })) {
    try {
      createLedger(pool, given as object)
      taken++
    } catch (error) {
      if ((error as { code: string }).code !== 'FST_CREDITS_INVALID_OPTION') {
        t.fail(`FUZZ_SEED=${seed}: ${inspect(given)}`, { found: error })
      }
    }
  }
  t.comment(`${share(0.02)} options, ${taken} taken`)
})
