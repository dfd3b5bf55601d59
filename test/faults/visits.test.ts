// needs a real server
// Charged requests of clients that connect and leave in every way, while the connections to the database are cut repeatedly.
import { setTimeout as sleep } from 'node:timers/promises'
import fc from 'fast-check'
import t from 'tap'
import { createLedger } from '../../src/index.js'
import { until } from '../helper/charging.js'
import { createLedgerDatabase, createPool } from '../helper/database.js'
import { neglect } from '../../bench/neglect.js'
import { misjudged, miscounted, openVisited, setBudgets, visitsOf, type Called } from '../helper/visits.js'
import { Proxy } from './proxy.js'
import { Random } from './random.js'
import { long, rounds, seed } from './settings.js'

const VISITS = 40
const TTL = 10_000 // milliseconds; a charge is tried until its hold lapses, which has to be longer than a round cuts connections
const NEGLECTED = 200 // holds that lapsed, and grants that expired, of each account

const timeout = 120_000 * (long ? 10 : 1)
t.setTimeout(timeout)
t.comment(`timeout=${timeout}`)

t.test(`clients that leave, and a line that is cut (FAULTS_SEED=${seed})`, async t => {
  const direct = await createLedgerDatabase(t)
  const proxy = await Proxy.open(t, direct)
  const { begun, uncaught, receive, settled } = await openVisited(t, proxy.connectionString, { timeout: 20_000 }, TTL)
  t.teardown(() => proxy.cutAll())
  const observer = createPool(t, direct)
  const undisturbed = createLedger(observer, { allowance: 1e9, timeout: 60_000 }) // a call on a line that was cut a moment ago may still fail
  const random = new Random(seed)
  const all: Called[] = []
  const counts = { requests: 0, whole: 0, begun: 0, cuts: 0 }

  for (let round = 0; round < rounds(2, 60); round++) {
    const users = Array.from({ length: 4 }, (_, n) => `neglected ${round} ${n}`)
    await neglect(undisturbed, observer, users, NEGLECTED)
    await setBudgets(undisturbed, users)
    const ended = new AbortController()
    const cutting = (async () => {
      while (!ended.signal.aborted) {
        await sleep(random.whole(5, 60))
        proxy.cutAll()
        counts.cuts++
      }
    })()
    const called = await receive(fc.sample(visitsOf(users), { seed: seed + round, numRuns: VISITS }))
    ended.abort()
    await cutting
    await settled()
    counts.requests += called.length
    counts.whole += called.filter(({ whole }) => whole).length
    t.strictSame(await misjudged(observer, called, begun), [], `round ${round}`)
    all.push(...called)
  }
  counts.begun = begun.size
  t.comment(JSON.stringify(counts))
  t.strictSame(uncaught, [])
  // If the answer to a hold was lost, nobody knows its id, and it lapses.
  const open = "select from ai_credit_holds where state = 'open' and expires_at > now()"
  await until(async () => (await observer.query(open)).rowCount, count => count === 0)
  t.strictSame(await miscounted(observer, undisturbed, all), [], 'each budget has counted what its requests have paid')
  t.match(await undisturbed.reconcile(), { ok: true, differences: [] }, 'every account reconciles')
})
