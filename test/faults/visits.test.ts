// needs a real server
// Charged requests in every way that clients come and go, while the line to the database is cut again and again.
import { setTimeout as sleep } from 'node:timers/promises'
import fc from 'fast-check'
import type { ServerHttp2Session } from 'node:http2'
import t from 'tap'
import { buildCharged, reconciles, until, type ChargedGateway } from '../helper/charging.js'
import { createLedgerDatabase, createPool } from '../helper/database.js'
import { neglect } from '../helper/neglect.js'
import { catchUncaught } from '../helper/reply-styles.js'
import { declareVisited, misjudged, visit, visitsOf, type Called } from '../helper/visits.js'
import { Proxy } from './proxy.js'
import { Random } from './random.js'
import { long, rounds, seed } from './settings.js'

const VISITS = 40
const TOGETHER = 20
const NEGLECTED = 200 // holds that lapsed, and grants that expired, of each account

const timeout = 120_000 * (long ? 10 : 1)
t.setTimeout(timeout)
t.comment(`timeout=${timeout}`)

t.test(`clients that leave, and a line that is cut (FAULTS_SEED=${seed})`, async t => {
  const uncaught = catchUncaught(t)
  const begun = new Set<string>()
  const direct = await createLedgerDatabase(t)
  const proxy = await Proxy.open(t, direct)
  const settings = { connectionString: proxy.connectionString, options: { allowance: 1e9, timeout: 20_000 } }
  const declare = (app: ChargedGateway['app']) => declareVisited(app, id => begun.add(id))
  const http1 = await buildCharged(t, declare, settings)
  const http2 = await buildCharged(t, declare, { ...settings, server: { http2: true, forceCloseConnections: false } as object })
  const sessions: ServerHttp2Session[] = []
  http2.app.server.on('session', session => sessions.push(session))
  t.teardown(() => proxy.cutAll())
  const observer = createPool(t, direct)
  const random = new Random(seed)
  const counts = { requests: 0, whole: 0, begun: 0, cuts: 0 }

  for (let round = 0; round < rounds(2, 60); round++) {
    const users = Array.from({ length: 4 }, (_, n) => `neglected ${round} ${n}`)
    await neglect(http1.app.credits, observer, users, NEGLECTED)
    const visits = fc.sample(visitsOf(users), { seed: seed + round, numRuns: VISITS })
    const called: Called[] = []
    const ended = new AbortController()
    const cutting = (async () => {
      while (!ended.signal.aborted) {
        await sleep(random.whole(5, 60))
        proxy.cutAll()
        counts.cuts++
      }
    })()
    for (let first = 0; first < VISITS; first += TOGETHER) {
      called.push(...(await Promise.all(visits.slice(first, first + TOGETHER).map(one =>
        visit({ http1: http1.url, http2: http2.url }, one)))).flat())
    }
    ended.abort()
    await cutting
    for (const { inFlight } of [http1, http2]) await until(inFlight, count => count === 0)
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
  for (const session of sessions) session.destroy() // Node.js 20 may keep one whose client has gone
})
