// Clients that come in every way and leave at any moment, of accounts that nobody touched for long and of others.
// needs a real server
import type { ServerHttp2Session } from 'node:http2'
import fc from 'fast-check'
import t from 'tap'
import { buildCharged, reconciles, until, type ChargedGateway } from '../helper/charging.js'
import { createLedgerDatabase } from '../helper/database.js'
import { neglect } from '../helper/neglect.js'
import { catchUncaught } from '../helper/reply-styles.js'
import { declareVisited, misjudged, visit, visitsOf, type Called } from '../helper/visits.js'
import { allowTime, PATIENCE, seed, share } from './settings.js'

const BATCH = 60
const TOGETHER = 20
const NEGLECTED = 1500 // holds that lapsed, and grants that expired

allowTime(t)

t.test(`charged routes and clients that leave (FUZZ_SEED=${seed})`, async t => {
  const uncaught = catchUncaught(t)
  const begun = new Set<string>()
  const connectionString = await createLedgerDatabase(t)
  const settings = { connectionString, options: { allowance: 1e9, timeout: PATIENCE } }
  const declare = (app: ChargedGateway['app']) => declareVisited(app, id => begun.add(id))
  const http1 = await buildCharged(t, declare, settings)
  const http2 = await buildCharged(t, declare, { ...settings, server: { http2: true, forceCloseConnections: false } as object })
  const sessions: ServerHttp2Session[] = []
  http2.app.server.on('session', session => sessions.push(session))
  const urls = { http1: http1.url, http2: http2.url }
  const total = share(0.08)
  const counts = { requests: 0, whole: 0, left: 0, begun: 0 }
  for (let batch = 0; counts.requests < total; batch++) {
    const users = ['busy', ...Array.from({ length: 4 }, (_, n) => `neglected ${batch} ${n}`)]
    await neglect(http1.app.credits, http1.app.pg.pool, users.slice(1), NEGLECTED)
    const visits = fc.sample(visitsOf(users), { seed: seed + batch, numRuns: BATCH })
    const called: Called[] = []
    for (let first = 0; first < BATCH; first += TOGETHER) {
      called.push(...(await Promise.all(visits.slice(first, first + TOGETHER).map(one => visit(urls, one)))).flat())
    }
    for (const { inFlight } of [http1, http2]) await until(inFlight, count => count === 0)
    for (const call of called) counts[call.whole ? 'whole' : 'left']++
    counts.requests += called.length
    t.strictSame(await misjudged(http1.app.pg, called, begun), [], `batch ${batch}`)
  }
  counts.begun = begun.size
  t.comment(JSON.stringify(counts))
  t.strictSame(uncaught, [])
  t.match((await http1.app.pg.query("select count(*)::int as open from ai_credit_holds where state = 'open'")).rows, [{ open: 0 }])
  for (const { lines } of [http1, http2]) t.strictSame(lines.filter(line => /FST_CREDITS/.test(JSON.stringify(line))), [])
  await reconciles(t, http1)
  for (const session of sessions) session.destroy() // Node.js 20 may keep one whose client has gone
})
