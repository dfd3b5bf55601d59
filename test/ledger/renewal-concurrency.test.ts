// needs a real server
import t from 'tap'
import { createLedger, type LedgerOptions } from '../../src/index.js'
import { onLedger } from '../helper/clocked-ledger.js'
import { createPool } from '../helper/database.js'

const options: LedgerOptions = { allowance: { credits: 1000, every: 'day', rollover: { max: 100 } }, timeout: 60_000 }

for (const [title, created, boundary, periods] of [
  ['at the boundary', '2024-05-01T12:00:00Z', '2024-05-02T00:00:00Z', 1],
  ['after a year', '2023-05-01T12:00:00Z', '2024-05-01T00:00:00Z', 366],
  ['as daylight saving begins at midnight', '2024-09-07T12:00:00Z', '2024-09-08T04:00:00Z', 1]
] as const) {
  const timeZone = title.startsWith('as') ? 'America/Santiago' : 'UTC'
  t.test(`a thousand concurrent first touches ${title} renew once`, onLedger(created, { ...options, timeZone },
    async (t, { credits, at, connectionString }) => {
      const ledgers = Array.from({ length: 5 }, () =>
        createLedger(createPool(t, connectionString, { max: 10 }), { ...options, timeZone }))
      await credits.deduct({ userId: 'ann', credits: 950, operation: 'chat' })
      await at(boundary)
      const answers = await Promise.all(Array.from({ length: 1000 }, async (_, index) => {
        const ledger = ledgers[index % ledgers.length]!
        const call = { userId: 'ann', credits: 1, operation: 'chat' }
        if (index % 4 === 0) return await ledger.balance('ann')
        return (await (index % 4 === 1 ? ledger.hold(call) : ledger.deduct(call))).balance
      }))

      const total = periods === 1 ? 1050 : 1100
      t.strictSame(new Set(answers.map(balance => balance.total)), new Set([total]), 'all were answered the new period')
      t.strictSame(await credits.balance('ann'), { available: total - 750, total, used: 500, held: 250 })
      const { entries } = await credits.statement('ann', { limit: 10_000 })
      t.match(entries[2], { seq: 2, kind: 'renewal', at: new Date(boundary), details: { periods } })
      t.equal(entries.filter(({ kind }) => kind === 'renewal').length, 1)
      t.strictSame(entries.map(({ seq }) => seq), Array.from({ length: 753 }, (_, seq) => seq))
    }))
}

t.test('five hundred accounts, each touched by two ledgers at once, renew once each', onLedger('2024-05-01T12:00:00Z', options,
  async (t, { credits, at, connectionString, pool }) => {
    const users = Array.from({ length: 500 }, (_, index) => `user ${index}`)
    await Promise.all(users.map(userId => credits.deduct({ userId, credits: 1, operation: 'chat' })))
    await at('2024-05-02T00:00:00Z')
    const ledgers = [1, 2].map(() => createLedger(createPool(t, connectionString, { max: 10 }), options))
    const answers = await Promise.all(users.flatMap(userId => ledgers.map(ledger => ledger.balance(userId))))
    t.strictSame(answers, answers.map(() => ({ available: 1100, total: 1100, used: 0, held: 0 })))
    const { rows } = await pool.query(`
      select count(*)::integer, count(distinct user_id)::integer as users from ai_credit_events`)
    t.strictSame(rows, [{ count: 500, users: 500 }])
  }))
