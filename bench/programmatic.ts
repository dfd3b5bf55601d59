import { ceiling } from './contenders/ceiling.js'
import type { Contender, Opened } from './contenders/contender.js'
import { guarded } from './contenders/guarded.js'
import { handWritten } from './contenders/hand-written.js'
import { library, libraryPairs, libraryWithKeys } from './contenders/library.js'
import { findPgbench, pgbench } from './contenders/pgbench.js'
import { rateLimiter } from './contenders/rate-limiter.js'
import { redisAlways, redisEverySecond } from './contenders/redis.js'
import { anyUser, HOT } from './databases.js'
import { runLoad } from './load.js'
import { findRedis } from './redis/redis-server.js'
import type { Result } from './results.js'

const CALLERS = [1, 64, 256]

/** How long callers warm up before a measurement: a share of its length. */
export const WARM_UP = 0.25

interface Running extends Contender {
  opened: Opened
  acknowledged: number
}

/** Measures calls inside the process. Each round measures all contenders in turn. */
export async function measureCalls (
  createDatabase: (name: string) => Promise<string>, rounds: number, seconds: number, progress: (text: string) => void
): Promise<Result[]> {
  const contenders = [library, libraryWithKeys, libraryPairs, handWritten, guarded, rateLimiter, ceiling]
  if (findPgbench() !== undefined) contenders.push(pgbench)
  if (findRedis() !== undefined) contenders.push(redisAlways, redisEverySecond)
  const running: Running[] = []
  for (const contender of contenders) {
    running.push({ ...contender, opened: await contender.open(await createDatabase(contender.name)), acknowledged: 0 })
  }
  const results: Result[] = []
  for (let round = 0; round < rounds; round++) {
    for (const callers of CALLERS) {
      for (const accounts of ['hot', 'spread'] as const) {
        progress(`round ${round + 1}: calls, ${callers} callers, ${accounts}`)
        for (const contender of rotate(running, round)) {
          if (contender.callers !== undefined && !contender.callers.includes(callers)) continue
          const measured = await measure(contender, callers, seconds, accounts)
          results.push({ way: 'call', contender: contender.name, callers, accounts, round, ...measured })
        }
      }
    }
  }
  for (const { opened } of running) await opened.close()
  return results
}

async function measure (contender: Running, callers: number, seconds: number, accounts: 'hot' | 'spread') {
  const { opened } = contender
  const user = accounts === 'hot' ? () => HOT : anyUser
  const load = (length: number) => opened.load === undefined
    ? runLoad(callers, length, () => opened.call(user()))
    : opened.load(callers, length, accounts === 'hot')
  const warmUp = await load(seconds * WARM_UP)
  const measured = await load(seconds)
  contender.acknowledged += warmUp.calls + measured.calls
  const charged = await opened.charged()
  const wrong = charged.filter(sum => sum !== contender.acknowledged)
  return { ...measured, ...wrong.length > 0 && { void: `charged ${charged.join()}, acknowledged ${contender.acknowledged}` } }
}

// Another contender goes first in each round.
const rotate = <T>(list: T[], by: number) => [...list.slice(by % list.length), ...list.slice(0, by % list.length)]
