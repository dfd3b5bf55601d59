// needs a real server
// Charged requests in every way that clients come and go, while the line to the database is cut again and again.
import { setTimeout as sleep } from 'node:timers/promises'
import fc from 'fast-check'
import t from 'tap'
import { reconciles, until } from '../helper/charging.js'
import { createLedgerDatabase, createPool } from '../helper/database.js'
import { neglect } from '../helper/neglect.js'
import { misjudged, openVisited, visitsOf } from '../helper/visits.js'
import { Proxy } from './proxy.js'
import { Random } from './random.js'
import { long, rounds, seed } from './settings.js'

const VISITS = 40
const NEGLECTED = 200 // holds that lapsed, and grants that expired, of each account

const timeout = 120_000 * (long ? 10 : 1)
t.setTimeout(timeout)
t.comment(`timeout=${timeout}`)

t.test(`clients that leave, and a line that is cut (FAULTS_SEED=${seed})`, async t => {
  const direct = await createLedgerDatabase(t)
  const proxy = await Proxy.open(t, direct)
  const { http1, begun, uncaught, receive, settled } = await openVisited(t, proxy.connectionString, { timeout: 20_000 })
  t.teardown(() => proxy.cutAll())
  const observer = createPool(t, direct)
  const random = new Random(seed)
  const counts = { requests: 0, whole: 0, begun: 0, cuts: 0 }

  for (let round = 0; round < rounds(2, 60); round++) {
    const users = Array.from({ length: 4 }, (_, n) => `neglected ${round} ${n}`)
    await neglect(http1.app.credits, observer, users, NEGLECTED)
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
  }
  counts.begun = begun.size
  t.comment(JSON.stringify(counts))
  t.strictSame(uncaught, [])
  // A hold whose answer was lost is nobody's, and lapses.
  const open = "select from ai_credit_holds where state = 'open' and expires_at > now()"
  await until(async () => (await observer.query(open)).rowCount, count => count === 0)
  await reconciles(t, http1)
})
