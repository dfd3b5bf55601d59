import t from 'tap'
import { buildGateway, getBalance, postDeduct } from '../helper/app.js'
import { citus } from '../helper/citus.js'
import { createDatabase } from '../helper/database.js'

const day = (daysAgo: number) => new Date(Date.now() - daysAgo * 86_400_000).toISOString().slice(0, 10)

t.test('the default user starts with the sample data, others as usual', async t => {
  const app = await buildGateway(t, { sampleData: true, defaultUser: 'demo' })
  t.strictSame((await app.inject('/api/credits')).json(), {
    credits: {
      available: 8500,
      total: 10000,
      used: 1500,
      usage_history: [
        { date: day(0), used: 500, operation: 'video_generation', duration: 30, quality: 'hd' },
        { date: day(0), used: 400, operation: 'video_generation', duration: 60, quality: '4k' },
        { date: day(0), used: 100, operation: 'text_analysis', words: 500 },
        { date: day(1), used: 300, operation: 'video_analysis', clips_analyzed: 5 },
        { date: day(1), used: 200, operation: 'script_generation', variants: 3 }
      ]
    }
  })
  t.strictSame(await getBalance(app, 'ann'), { available: 10000, total: 10000, used: 0 })
})

t.test('it is written once, and charges go on from it', async t => {
  const connectionString = await createDatabase(t)
  const first = await buildGateway(t, { sampleData: true }, { connectionString })
  await postDeduct(first, { credits: 100, operation: 'chat' })
  await first.close()
  const second = await buildGateway(t, { sampleData: true }, { connectionString })
  t.strictSame(await getBalance(second), { available: 8400, total: 10000, used: 1600 })
  const { rows } = await second.pg.query('select seq, used_after from ai_credit_usage order by seq')
  t.strictSame(rows.map(({ seq, used_after: used }) => [Number(seq), Number(used)]),
    [[1, 300], [2, 500], [3, 1000], [4, 1400], [5, 1500], [6, 1600]])
})

t.test('an account that is already there is left as it is', async t => {
  const connectionString = await createDatabase(t)
  const first = await buildGateway(t, {}, { connectionString })
  await postDeduct(first, { credits: 7, operation: 'chat' })
  const second = await buildGateway(t, { sampleData: true }, { connectionString })
  t.strictSame(await getBalance(second), { available: 9993, total: 10000, used: 7 })
})

t.test('yesterday is a day of timeZone', { skip: citus !== undefined }, async t => {
  const app = await buildGateway(t, { sampleData: true, timeZone: 'Pacific/Kiritimati' })
  const { entries } = await app.credits.history()
  const local = (daysAgo: number) =>
    new Date(Date.now() + 14 * 3_600_000 - daysAgo * 86_400_000).toISOString().slice(0, 10)
  t.strictSame(entries.map(({ date }) => date), [local(0), local(0), local(0), local(1), local(1)])
})
