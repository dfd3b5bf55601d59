import t from 'tap'
import { createLedger, type Balance, type Credits, type RecurringAllowance, type StatementEntry } from '../../src/index.js'
import { buildGateway, getBalance } from '../helper/app.js'
import { justBefore, onLedger } from '../helper/clocked-ledger.js'

const daily: RecurringAllowance = { credits: 10, every: 'day' }

interface Calendar {
  title: string
  timeZone?: string
  plan: Partial<RecurringAllowance>
  created: string
  renewals: string[]
}

const calendars: Calendar[] = [
  {
    title: 'a day ends at midnight',
    plan: { every: 'day' },
    created: '2024-02-28T10:00:00Z',
    renewals: ['2024-02-29T00:00:00Z', '2024-03-01T00:00:00Z', '2024-03-02T00:00:00Z']
  },
  {
    title: 'a day ends at midnight of timeZone',
    timeZone: 'Asia/Kathmandu',
    plan: { every: 'day' },
    created: '2024-02-28T18:00:00Z',
    renewals: ['2024-02-28T18:15:00Z', '2024-02-29T18:15:00Z']
  },
  {
    title: 'a week ends before Monday, also across the end of a year',
    plan: { every: 'week' },
    created: '2024-12-25T10:00:00Z',
    renewals: ['2024-12-30T00:00:00Z', '2025-01-06T00:00:00Z']
  },
  {
    title: 'a week that begins with its first instant ends a week later',
    plan: { every: 'week' },
    created: '2024-12-30T00:00:00Z',
    renewals: ['2025-01-06T00:00:00Z', '2025-01-13T00:00:00Z']
  },
  {
    title: 'a week that begins on a Sunday evening ends with it',
    plan: { every: 'week' },
    created: '2024-12-29T23:59:59Z',
    renewals: ['2024-12-30T00:00:00Z', '2025-01-06T00:00:00Z']
  },
  {
    title: 'a month ends before the first',
    plan: { every: 'month' },
    created: '2024-01-31T12:00:00Z',
    renewals: ['2024-02-01T00:00:00Z', '2024-03-01T00:00:00Z', '2024-04-01T00:00:00Z']
  },
  {
    title: 'the day on which daylight saving begins has 23 hours',
    timeZone: 'Europe/Berlin',
    plan: { every: 'day' },
    created: '2024-03-30T12:00:00Z',
    renewals: ['2024-03-30T23:00:00Z', '2024-03-31T22:00:00Z', '2024-04-01T22:00:00Z']
  },
  {
    title: 'the day on which daylight saving ends has 25 hours',
    timeZone: 'Europe/Berlin',
    plan: { every: 'day' },
    created: '2024-10-26T12:00:00Z',
    renewals: ['2024-10-26T22:00:00Z', '2024-10-27T23:00:00Z', '2024-10-28T23:00:00Z']
  },
  {
    title: 'a week in which daylight saving begins',
    timeZone: 'America/New_York',
    plan: { every: 'week' },
    created: '2024-03-01T12:00:00Z',
    renewals: ['2024-03-04T05:00:00Z', '2024-03-11T04:00:00Z', '2024-03-18T04:00:00Z']
  },
  {
    title: 'a month in which daylight saving begins',
    timeZone: 'America/New_York',
    plan: { every: 'month' },
    created: '2024-02-10T12:00:00Z',
    renewals: ['2024-03-01T05:00:00Z', '2024-04-01T04:00:00Z']
  },
  {
    title: 'a month in which daylight saving ends',
    timeZone: 'America/New_York',
    plan: { every: 'month' },
    created: '2024-10-10T12:00:00Z',
    renewals: ['2024-11-01T04:00:00Z', '2024-12-01T05:00:00Z']
  },
  {
    title: 'a day that begins at one, as its midnight is left out',
    timeZone: 'America/Santiago',
    plan: { every: 'day' },
    created: '2024-09-06T12:00:00Z',
    renewals: ['2024-09-07T04:00:00Z', '2024-09-08T04:00:00Z', '2024-09-09T03:00:00Z']
  },
  {
    title: 'a day whose last hour comes twice',
    timeZone: 'America/Santiago',
    plan: { every: 'day' },
    created: '2024-04-05T12:00:00Z',
    renewals: ['2024-04-06T03:00:00Z', '2024-04-07T04:00:00Z', '2024-04-08T04:00:00Z']
  },
  {
    title: 'a day whose last hour comes twice, on an account made in the second',
    timeZone: 'America/Santiago',
    plan: { every: 'day' },
    created: '2024-04-07T03:30:00Z',
    renewals: ['2024-04-07T04:00:00Z', '2024-04-08T04:00:00Z']
  },
  {
    title: 'a day whose midnight comes twice begins with the first',
    timeZone: 'Atlantic/Azores',
    plan: { every: 'day' },
    created: '2024-10-25T12:00:00Z',
    renewals: ['2024-10-26T00:00:00Z', '2024-10-27T00:00:00Z', '2024-10-28T01:00:00Z']
  },
  {
    title: 'a day whose midnight comes twice, on an account made between the two',
    timeZone: 'Atlantic/Azores',
    plan: { every: 'day', anchor: 'account' },
    created: '2024-10-27T00:30:00Z',
    renewals: ['2024-10-28T01:00:00Z', '2024-10-29T01:00:00Z']
  },
  {
    title: 'a 31st is the last day of shorter months, and the 31st again after',
    plan: { every: 'month', anchor: 'account' },
    created: '2023-01-31T15:00:00Z',
    renewals: ['2023-02-28T00:00:00Z', '2023-03-31T00:00:00Z', '2023-04-30T00:00:00Z', '2023-05-31T00:00:00Z']
  },
  {
    title: 'a 31st is a 29th of February in a leap year',
    plan: { every: 'month', anchor: 'account' },
    created: '2024-01-31T15:00:00Z',
    renewals: ['2024-02-29T00:00:00Z', '2024-03-31T00:00:00Z', '2024-04-30T00:00:00Z']
  },
  {
    title: 'a 31st of timeZone, across its daylight saving',
    timeZone: 'Europe/Berlin',
    plan: { every: 'month', anchor: 'account' },
    created: '2024-01-30T23:30:00Z',
    renewals: ['2024-02-28T23:00:00Z', '2024-03-30T23:00:00Z', '2024-04-29T22:00:00Z']
  },
  {
    title: 'a 15th stays a 15th',
    plan: { every: 'month', anchor: 'account' },
    created: '2024-11-15T00:00:00Z',
    renewals: ['2024-12-15T00:00:00Z', '2025-01-15T00:00:00Z']
  },
  {
    title: 'a week counts from the account\'s first day',
    plan: { every: 'week', anchor: 'account' },
    created: '2024-05-01T10:00:00Z',
    renewals: ['2024-05-08T00:00:00Z', '2024-05-15T00:00:00Z']
  },
  {
    title: 'a month that would end at a midnight left out',
    timeZone: 'America/Santiago',
    plan: { every: 'month', anchor: 'account' },
    created: '2024-08-08T12:00:00Z',
    renewals: ['2024-09-08T04:00:00Z', '2024-10-08T03:00:00Z']
  }
]

for (const { title, timeZone = 'UTC', plan, created, renewals } of calendars) {
  const allowance = { ...daily, ...plan }
  t.test(`exact to the microsecond: ${title}`, onLedger(created, { allowance, timeZone }, async (t, { credits, at }) => {
    await spend(credits, 1)
    for (const renewal of renewals) {
      await at(justBefore(renewal))
      t.equal((await credits.balance('ann')).used, 1, `not before ${renewal}`)
      await at(renewal)
      t.strictSame(await credits.balance('ann'), balance(10), `at ${renewal}`)
      await spend(credits, 1)
    }
    t.strictSame((await renewalsOf(credits)).map(({ at }) => at), renewals.map(renewal => new Date(renewal)))
  }))
}

t.test('the last day of a 29th of February comes back after a year',
  onLedger('2024-02-29T12:00:00Z', { allowance: { credits: 10, every: 'month', anchor: 'account' } },
    async (t, { credits, at }) => {
      await credits.balance('ann')
      await at('2025-02-27T23:59:59Z')
      await credits.balance('ann')
      await at('2025-03-28T23:59:59Z')
      await credits.balance('ann')
      await at('2025-03-29T00:00:00Z')
      await credits.balance('ann')
      t.strictSame((await renewalsOf(credits)).map(({ at, details }) => [at.toISOString(), details!.periods]), [
        ['2025-01-29T00:00:00.000Z', 11], ['2025-02-28T00:00:00.000Z', 1], ['2025-03-29T00:00:00.000Z', 1]
      ])
    }))

t.test('whatever touches the account first renews it, once', onLedger('2024-05-01T12:00:00Z', { allowance: daily },
  async (t, { credits, at }) => {
    type Touch = (userId: string, holdId: string, usageId: string) => Promise<{ balance: Balance } | Balance>
    const first: Record<string, Touch> = {
      balance: userId => credits.balance(userId),
      deduct: userId => credits.deduct({ userId, credits: 1, operation: 'chat' }),
      hold: userId => credits.hold({ userId, credits: 1, operation: 'chat' }),
      capture: (_, holdId) => credits.capture(holdId, { credits: 1 }),
      release: (_, holdId) => credits.release(holdId),
      extend: (_, holdId) => credits.extend(holdId, { ttl: 1000 }),
      grant: userId => credits.grant({ userId, credits: 1 }),
      refund: (_userId, _holdId, usageId) => credits.refund({ usageId }),
      setOverdraft: userId => credits.setOverdraft(userId, 1),
      setAllowance: userId => credits.setAllowance(userId, daily),
      statement: async userId => (await credits.statement(userId)).entries.at(-1)!
    }
    const made: Record<string, [holdId: string, usageId: string]> = {}
    for (const userId of Object.keys(first)) {
      const { id: usageId } = await credits.deduct({ userId, credits: 2, operation: 'chat' })
      const { id: holdId } = await credits.hold({ userId, credits: 3, operation: 'chat', ttl: 86_400_000 })
      made[userId] = [holdId, usageId]
    }
    await at('2024-05-02T00:00:00Z')
    for (const [userId, call] of Object.entries(first)) {
      const answer = await call(userId, ...made[userId]!)
      t.ok(('balance' in answer ? answer.balance : answer).used < 2, `${userId} answers the new period`)
      await credits.balance(userId)
      t.strictSame((await renewalsOf(credits, userId)).map(({ seq }) => seq), [3], `${userId} renewed once`)
    }
  }))

t.test('the route answers the new period', onLedger('2024-05-01T12:00:00Z', { allowance: daily },
  async (t, { connectionString, at }) => {
    const app = await buildGateway(t, { allowance: daily }, { connectionString })
    await spend(app.credits, 4)
    t.strictSame(await getBalance(app, 'ann'), { available: 6, total: 10, used: 4 })
    await at('2024-05-02T00:00:00Z')
    t.strictSame(await getBalance(app, 'ann'), { available: 10, total: 10, used: 0 })
  }))

const rollovers: Array<[string, RecurringAllowance['rollover'], number[]]> = [
  ['nothing where it is left out', undefined, [10, 10, 10]],
  ["nothing with 'none'", 'none', [10, 10, 10]],
  ["all with 'all'", 'all', [17, 26, 36]],
  ['up to max, not max of each period', { max: 5 }, [15, 15, 15]],
  ['all below max', { max: 8 }, [17, 18, 18]],
  ['nothing with max 0', { max: 0 }, [10, 10, 10]]
]

for (const [title, rollover, available] of rollovers) {
  const allowance = { ...daily, ...rollover !== undefined && { rollover } }
  t.test(`a period carries into the next ${title}`, onLedger('2024-05-01T12:00:00Z', { allowance },
    async (t, { credits, at }) => {
      await spend(credits, 3)
      await at('2024-05-02T12:00:00Z')
      t.strictSame(await credits.balance('ann'), balance(available[0]!))
      await spend(credits, 1)
      await at('2024-05-03T12:00:00Z')
      t.strictSame(await credits.balance('ann'), balance(available[1]!))
      await at('2024-05-04T12:00:00Z')
      t.strictSame(await credits.balance('ann'), balance(available[2]!))
    }))
}

t.test('what is carried burns with the allowance, and expires or is carried with it',
  onLedger('2024-05-01T12:00:00Z', { allowance: { ...daily, rollover: { max: 5 } } }, async (t, { credits, at }) => {
    await credits.grant({ userId: 'ann', credits: 100 })
    await at('2024-05-02T12:00:00Z')
    await spend(credits, 12)
    await at('2024-05-03T12:00:00Z')
    t.strictSame(await credits.balance('ann'), balance(100 + 3 + 10), 'of 15, 3 were left; the grant is whole')
  }))

t.test('at renewal used starts again at 0, and grants keep what is left of them',
  onLedger('2024-05-01T12:00:00Z', { allowance: daily }, async (t, { credits, at }) => {
    await credits.grant({ userId: 'ann', credits: 50 })
    await spend(credits, 15)
    t.strictSame(await credits.balance('ann'), balance(60, 15))
    await at('2024-05-02T00:00:00Z')
    t.strictSame(await credits.balance('ann'), balance(55), '45 of the grant and the new 10')
    await at('2024-05-03T00:00:00Z')
    t.strictSame(await credits.balance('ann'), balance(55), 'what nobody spent of the allowance is gone')
  }))

t.test('a grant of a lower priority number burns before the allowance, which expires',
  onLedger('2024-05-01T12:00:00Z', { allowance: daily }, async (t, { credits, at }) => {
    await credits.grant({ userId: 'ann', credits: 50, priority: 49 })
    await spend(credits, 15)
    await at('2024-05-02T00:00:00Z')
    t.strictSame(await credits.balance('ann'), balance(45))
  }))

t.test('the allowance burns before a grant that expires later, and after one that expires earlier',
  onLedger('2024-05-01T12:00:00Z', { allowance: { ...daily, every: 'week' } }, async (t, { credits, at }) => {
    await credits.grant({ userId: 'ann', credits: 7, expiresAt: '2024-05-03T00:00:00Z' })
    await credits.grant({ userId: 'ann', credits: 100, expiresAt: '2024-05-07T00:00:00Z' })
    await spend(credits, 16)
    await at('2024-05-03T00:00:00Z')
    t.strictSame(await credits.balance('ann'), balance(117, 16), 'the early grant was spent')
    await at('2024-05-06T00:00:00Z')
    t.strictSame(await credits.balance('ann'), balance(110), 'so was the allowance but for 1, which is gone')
    await at('2024-05-07T00:00:00Z')
    t.strictSame(await credits.balance('ann'), balance(10))
  }))

t.test('debt is carried over, and the next allowances pay it', onLedger('2024-05-01T12:00:00Z', { allowance: daily },
  async (t, { credits, at }) => {
    await credits.setOverdraft('ann', 100)
    await spend(credits, 35)
    t.strictSame(await credits.balance('ann'), balance(10, 35))
    await at('2024-05-02T00:00:00Z')
    t.strictSame(await credits.balance('ann'), balance(-15))
    await at('2024-05-03T00:00:00Z')
    t.strictSame(await credits.balance('ann'), balance(-5))
    await at('2024-05-04T00:00:00Z')
    t.strictSame(await credits.balance('ann'), balance(5))
    await at('2024-05-05T00:00:00Z')
    t.strictSame(await credits.balance('ann'), balance(10))
  }))

t.test('a hold that is open at the renewal keeps what it holds', onLedger('2024-05-01T12:00:00Z', { allowance: daily },
  async (t, { credits, at }) => {
    for (const userId of ['captured', 'captured in part', 'released', 'lapsed']) {
      const { id } = await credits.hold({ userId, credits: 4, operation: 'chat', ttl: 86_400_000 })
      await at('2024-05-02T00:00:00Z')
      t.strictSame(await credits.balance(userId), balance(14, 0, 4), 'the other 6 are gone')
      if (userId === 'captured') await credits.capture(id)
      if (userId === 'captured in part') await credits.capture(id, { credits: 1 })
      if (userId === 'released') await credits.release(id)
      await at('2024-05-01T12:00:00Z')
    }
    await at('2024-05-02T12:00:00Z')
    t.strictSame(await credits.balance('captured'), balance(14, 4))
    t.strictSame(await credits.balance('captured in part'), balance(11, 1), 'the rest of the old allowance is gone')
    t.strictSame(await credits.balance('released'), balance(10))
    t.strictSame(await credits.balance('lapsed'), balance(10))
  }))

t.test('what a hold keeps is not carried as well',
  onLedger('2024-05-01T12:00:00Z', { allowance: { ...daily, rollover: 'all' } }, async (t, { credits, at }) => {
    const { id } = await credits.hold({ userId: 'ann', credits: 4, operation: 'chat', ttl: 86_400_000 })
    await at('2024-05-02T00:00:00Z')
    t.strictSame(await credits.balance('ann'), balance(20, 0, 4))
    await credits.release(id)
    t.strictSame(await credits.balance('ann'), balance(16))
  }))

t.test('at one instant holds lapse, then grants expire, then the allowance renews',
  onLedger('2024-05-01T00:00:00Z', { allowance: daily }, async (t, { credits, at }) => {
    const expiresAt = '2024-05-02T00:00:00Z'
    await credits.grant({ userId: 'ann', credits: 50, expiresAt, priority: 60 })
    await credits.grant({ userId: 'ann', credits: 5, expiresAt, priority: 40 })
    await credits.hold({ userId: 'ann', credits: 30, operation: 'chat', ttl: 86_400_000 })
    await spend(credits, 8)
    await at(justBefore(expiresAt))
    t.strictSame(await credits.balance('ann'), balance(65, 8, 30))
    await at(expiresAt)
    t.strictSame(await credits.balance('ann'), balance(10))
    const { entries } = await credits.statement('ann')
    t.strictSame(entries.slice(-4).map(({ kind, at, amount, balance }) => [kind, at.toISOString(), amount, balance]), [
      ['lapse', '2024-05-02T00:00:00.000Z', 30, balance(65, 8)],
      ['expiry', '2024-05-02T00:00:00.000Z', 0, balance(65, 8)],
      ['expiry', '2024-05-02T00:00:00.000Z', -50, balance(15, 8)],
      ['renewal', '2024-05-02T00:00:00.000Z', 3, balance(10)]
    ])
  }))

t.test('several missed periods are one entry', onLedger('2024-05-01T12:00:00Z', { allowance: daily },
  async (t, { credits, at }) => {
    await spend(credits, 4)
    await at('2024-05-08T12:00:00Z')
    await spend(credits, 1)
    const { entries } = await credits.statement('ann')
    t.match(entries.slice(1), [{ seq: 1, kind: 'deduct' }, {
      seq: 2,
      kind: 'renewal',
      at: new Date('2024-05-08T00:00:00Z'),
      amount: 4,
      balance: balance(10),
      details: { periods: 7, expired: 6 + 6 * 10, allowance: daily }
    }, { seq: 3, kind: 'deduct' }])
    t.equal(entries.length, 4)
  }))

t.test('what ends between missed periods comes between their entries',
  onLedger('2024-05-01T12:00:00Z', { allowance: daily }, async (t, { credits, at }) => {
    await credits.grant({ userId: 'ann', credits: 5, expiresAt: '2024-05-04T06:00:00Z', priority: 60 })
    await credits.grant({ userId: 'ann', credits: 5, expiresAt: '2024-05-06T00:00:00Z', priority: 60 })
    await at('2024-05-08T12:00:00Z')
    const { entries } = await credits.statement('ann')
    t.strictSame(entries.slice(3).map(({ kind, at, details }) => [kind, at.toISOString(), details?.periods]), [
      ['renewal', '2024-05-04T00:00:00.000Z', 3],
      ['expiry', '2024-05-04T06:00:00.000Z', undefined],
      ['renewal', '2024-05-05T00:00:00.000Z', 1],
      ['expiry', '2024-05-06T00:00:00.000Z', undefined],
      ['renewal', '2024-05-08T00:00:00.000Z', 3]
    ])
  }))

for (const rollover of ['none', 'all', { max: 12 }] as const) {
  t.test(`an account idle for several periods is as if each had been touched: ${JSON.stringify(rollover)}`,
    onLedger('2024-05-01T12:00:00Z', { allowance: { ...daily, rollover } }, async (t, { credits, at }) => {
      const days = [2, 3, 4, 5, 6, 7, 8, 9].map(day => `2024-05-0${day}T12:00:00Z`)
      for (const userId of ['touched', 'idle']) {
        await credits.setOverdraft(userId, 100)
        await credits.grant({ userId, credits: 20, expiresAt: '2024-05-03T18:00:00Z', priority: 40 })
        await credits.grant({ userId, credits: 6, expiresAt: '2024-05-05T00:00:00Z' })
        await credits.grant({ userId, credits: 9 })
        await credits.hold({ userId, credits: 30, operation: 'chat', ttl: 86_400_000 })
        await spend(credits, 40, userId)
      }
      for (const day of days) {
        await at(day)
        await credits.balance('touched')
      }
      t.strictSame(await credits.balance('idle'), await credits.balance('touched'))

      const [touched, idle] = [await renewalsOf(credits, 'touched'), await renewalsOf(credits, 'idle')]
      t.strictSame(sums(idle), sums(touched))
      t.strictSame([touched.length, idle.length, sums(idle).periods], [8, 4, 8])

      for (const userId of ['touched', 'idle']) await spend(credits, 12, userId)
      await at('2024-05-20T12:00:00Z')
      t.strictSame(await credits.balance('idle'), await credits.balance('touched'), 'the same burns afterwards')
    }))
}

t.test('idle periods pay debt as touched ones do, and what is left over in the last of them expires',
  onLedger('2024-05-01T12:00:00Z', { allowance: daily }, async (t, { credits, at }) => {
    for (const userId of ['touched', 'idle']) {
      await credits.setOverdraft(userId, 100)
      await spend(credits, 47, userId)
    }
    for (const [day, available] of [[2, -27], [3, -17], [4, -7], [5, 3], [6, 10]] as const) {
      await at(`2024-05-0${day}T12:00:00Z`)
      t.strictSame(await credits.balance('touched'), balance(available))
    }
    t.strictSame(await credits.balance('idle'), balance(10))
    t.strictSame(sums(await renewalsOf(credits, 'idle')), sums(await renewalsOf(credits, 'touched')))
  }))

t.test('two renewals under one open hold, as of a day of 23 hours, are as if both had been touched',
  onLedger('2024-03-30T22:59:59Z', { allowance: daily, timeZone: 'Europe/Berlin' }, async (t, { credits, at }) => {
    for (const userId of ['touched', 'idle']) {
      await credits.grant({ userId, credits: 20 })
      await credits.hold({ userId, credits: 25, operation: 'chat', ttl: 86_400_000 })
    }
    await at('2024-03-30T23:00:00Z')
    t.strictSame(await credits.balance('touched'), balance(40, 0, 25), '10 of the hold are of the allowance that ended')
    await at('2024-03-31T22:30:00Z')
    t.strictSame(await credits.balance('touched'), balance(50, 0, 25), 'and 10 of the next')
    t.strictSame(await credits.balance('idle'), balance(50, 0, 25))
    t.strictSame((await renewalsOf(credits, 'idle')).map(({ details }) => details!.periods), [2])
    await at('2024-03-31T22:59:59Z')
    t.strictSame(await credits.balance('touched'), balance(30))
    t.strictSame(await credits.balance('idle'), balance(30))
  }))

t.test('ten idle years of daily periods are made up for within timeout',
  onLedger('2014-05-01T12:00:00Z', { allowance: { ...daily, rollover: 'all' } }, async (t, { credits, at }) => {
    await spend(credits, 10)
    await at('2024-05-01T12:00:00Z')
    const started = performance.now()
    t.strictSame(await credits.balance('ann'), balance(36_530))
    t.comment(`${Math.round(performance.now() - started)} ms`)
    t.equal((await renewalsOf(credits))[0]!.details!.periods, 3653)
  }))

t.test('an allowance never takes the total past 2^53 - 1, and nothing is rounded',
  onLedger('2024-05-01T12:00:00Z', { allowance: { credits: Number.MAX_SAFE_INTEGER, every: 'day', rollover: 'all' } },
    async (t, { credits, at }) => {
      await spend(credits, 2)
      await at('2024-05-02T12:00:00Z')
      t.strictSame(await credits.balance('ann'), balance(9007199254740991))
      await spend(credits, 1)
      await at('2024-05-09T12:00:00Z')
      t.strictSame(await credits.balance('ann'), balance(9007199254740991))
      await at('2024-05-10T12:00:00Z')
      t.strictSame((await renewalsOf(credits)).map(({ amount }) => amount), [2, 1, 0])
      t.strictSame((await credits.deduct({ userId: 'ann', credits: 9007199254740990, operation: 'chat' })).balance,
        balance(9007199254740991, 9007199254740990))
    }))

t.test('of an allowance only what fits under 2^53 - 1 is given beside a grant',
  onLedger('2024-05-01T12:00:00Z', { allowance: daily }, async (t, { credits, at }) => {
    await credits.grant({ userId: 'ann', credits: Number.MAX_SAFE_INTEGER - 10, priority: 1 })
    await spend(credits, 1)
    await at('2024-05-02T00:00:00Z')
    t.strictSame(await credits.balance('ann'), balance(9007199254740990))
    await credits.grant({ userId: 'ann', credits: 1 })
    await at('2024-05-03T00:00:00Z')
    t.strictSame(await credits.balance('ann'), balance(9007199254740991))
    await at('2024-05-04T00:00:00Z')
    t.strictSame(await credits.balance('ann'), balance(9007199254740991))
  }))

t.test('an allowance of 0 renews as well', onLedger('2024-05-01T12:00:00Z', { allowance: { credits: 0, every: 'day' } },
  async (t, { credits, at }) => {
    await credits.grant({ userId: 'ann', credits: 5 })
    await spend(credits, 2)
    await at('2024-05-02T12:00:00Z')
    t.strictSame(await credits.balance('ann'), balance(3))
  }))

t.test('another allowance of the host\'s begins with an account\'s next renewal',
  onLedger('2024-05-01T12:00:00Z', { allowance: daily }, async (t, { credits, at, open }) => {
    await spend(credits, 1)
    const changed = open({ allowance: { credits: 70, every: 'week' } })
    t.strictSame(await changed.balance('ann'), balance(10, 1))
    await at('2024-05-02T00:00:00Z')
    t.strictSame(await changed.balance('ann'), balance(70))
    await at('2024-05-05T23:59:59Z')
    t.strictSame(await changed.balance('ann'), balance(70))
    await at('2024-05-06T00:00:00Z')
    t.strictSame(await changed.balance('ann'), balance(70))
    t.strictSame((await renewalsOf(changed)).map(({ at, details }) => [at.toISOString(), details!.allowance]), [
      ['2024-05-02T00:00:00.000Z', { credits: 70, every: 'week' }],
      ['2024-05-06T00:00:00.000Z', { credits: 70, every: 'week' }]
    ])
  }))

t.test('a one-off allowance stays one where the host\'s option becomes one that renews',
  onLedger('2024-05-01T12:00:00Z', { allowance: 100 }, async (t, { credits, at, open }) => {
    await spend(credits, 1)
    const changed = open({ allowance: daily })
    await at('2024-06-01T12:00:00Z')
    t.strictSame(await changed.balance('ann'), balance(100, 1))
    t.strictSame(await changed.balance('new'), balance(10), 'new accounts get the new one')
  }))

t.test('an allowance goes on renewing where the host\'s option becomes a one-off one',
  onLedger('2024-05-01T12:00:00Z', { allowance: daily }, async (t, { credits, at, open }) => {
    await spend(credits, 1)
    const changed = open({ allowance: 100 })
    await at('2024-05-02T12:00:00Z')
    t.strictSame(await changed.balance('ann'), balance(10))
    t.strictSame(await changed.balance('new'), balance(100))
  }))

t.test('renewals count in the history as days do', onLedger('2024-05-01T12:00:00Z', { allowance: daily },
  async (t, { credits, at }) => {
    await spend(credits, 4)
    await at('2024-05-02T12:00:00Z')
    await spend(credits, 7)
    const { entries } = await credits.history('ann')
    t.strictSame(entries.map(({ date, used }) => [date, used]), [['2024-05-02', 7], ['2024-05-01', 4]])
  }))

const malformed: Array<[string, unknown]> = [
  ['no period', { credits: 10 }],
  ['no credits', { every: 'day' }],
  ['an unknown period', { credits: 10, every: 'hour' }],
  ['a period in another case', { credits: 10, every: 'Day' }],
  ['a fraction', { credits: 1.5, every: 'day' }],
  ['less than nothing', { credits: -1, every: 'day' }],
  ['more than JSON holds', { credits: 2 ** 53, every: 'day' }],
  ['credits as text', { credits: '10', every: 'day' }],
  ['an unknown rollover', { ...daily, rollover: 'some' }],
  ['a rollover of true', { ...daily, rollover: true }],
  ['a rollover of null', { ...daily, rollover: null }],
  ['a rollover without max', { ...daily, rollover: {} }],
  ['a rollover with a fraction', { ...daily, rollover: { max: 0.5 } }],
  ['a rollover below nothing', { ...daily, rollover: { max: -1 } }],
  ['a rollover with another field', { ...daily, rollover: { max: 1, min: 0 } }],
  ['an unknown anchor', { ...daily, anchor: 'year' }],
  ['an unknown field', { ...daily, timeZone: 'UTC' }],
  ['a list', [daily]],
  ['text', 'day'],
  ['null', null]
]

for (const [title, allowance] of malformed) {
  t.test(`the option allowance is refused with ${title}`, async t => {
    t.throws(() => createLedger(anyPool, { allowance: allowance as RecurringAllowance }),
      { code: 'FST_CREDITS_INVALID_OPTION', option: 'allowance', message: /^Option allowance must be a whole number / })
  })
}

t.test('every shape of the option allowance is taken', async t => {
  for (const every of ['day', 'week', 'month'] as const) {
    for (const rollover of [undefined, 'none', 'all', { max: 0 }, { max: Number.MAX_SAFE_INTEGER }] as const) {
      for (const anchor of [undefined, 'calendar', 'account'] as const) {
        createLedger(anyPool, { allowance: { credits: 0, every, rollover, anchor } as RecurringAllowance })
      }
    }
  }
  t.pass()
})

const anyPool = { on: () => {}, connect: () => { throw new Error('not needed') } }

function balance (total: number, used = 0, held = 0): Balance {
  return { available: total - used - held, total, used, held }
}

async function spend (credits: Credits, amount: number, userId = 'ann') {
  return await credits.deduct({ userId, credits: amount, operation: 'chat' })
}

async function renewalsOf (credits: Credits, userId = 'ann'): Promise<StatementEntry[]> {
  const { entries } = await credits.statement(userId)
  return entries.filter(({ kind }) => kind === 'renewal')
}

function sums (renewals: StatementEntry[]) {
  const sum = (value: (entry: StatementEntry) => number) => renewals.reduce((total, entry) => total + value(entry), 0)
  return {
    amount: sum(({ amount }) => amount),
    expired: sum(({ details }) => details!.expired),
    periods: sum(({ details }) => details!.periods)
  }
}
