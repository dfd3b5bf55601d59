// Clients connect in every way and leave at any moment. Some use accounts that no call has used for long.
// needs a real server
import fc from 'fast-check'
import t from 'tap'
import { reconciles } from '../helper/charging.js'
import { createLedgerDatabase } from '../helper/database.js'
import { neglect } from '../../bench/neglect.js'
import { misjudged, miscounted, openVisited, setBudgets, visitsOf, type Called } from '../helper/visits.js'
import { allowTime, PATIENCE, seed, share } from './settings.js'

const BATCH = 60
const NEGLECTED = 1500 // holds that lapsed, and grants that expired

allowTime(t)

t.test(`charged routes and clients that leave (FUZZ_SEED=${seed})`, async t => {
  const { http1, http2, begun, uncaught, receive, settled } = await openVisited(t, await createLedgerDatabase(t), { timeout: PATIENCE })
  const { credits, pg } = http1.app
  const total = share(0.08)
  const all: Called[] = []
  const counts = { requests: 0, whole: 0, left: 0, begun: 0 }
  for (let batch = 0; counts.requests < total; batch++) {
    const users = ['busy', ...Array.from({ length: 4 }, (_, n) => `neglected ${batch} ${n}`)]
    await neglect(credits, pg.pool, users.slice(1), NEGLECTED)
    await setBudgets(credits, users)
    const called = await receive(fc.sample(visitsOf(users), { seed: seed + batch, numRuns: BATCH }))
    await settled()
    for (const call of called) counts[call.whole ? 'whole' : 'left']++
    counts.requests += called.length
    t.strictSame(await misjudged(pg, called, begun), [], `batch ${batch}`)
    all.push(...called)
  }
  t.strictSame(await miscounted(pg, credits, all), [], 'each budget has counted what its requests have paid')
  counts.begun = begun.size
  t.comment(JSON.stringify(counts))
  t.strictSame(uncaught, [])
  t.match((await pg.query("select count(*)::int as open from ai_credit_holds where state = 'open'")).rows, [{ open: 0 }])
  for (const { lines } of [http1, http2]) t.strictSame(lines.filter(line => /FST_CREDITS/.test(JSON.stringify(line))), [])
  await reconciles(t, http1)
})
