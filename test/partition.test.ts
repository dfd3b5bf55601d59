import { readFile } from 'node:fs/promises'
import t, { type Test } from 'tap'
import { onLedger, type ClockedLedger } from './helper/clocked-ledger.js'
import { partitionScript } from './helper/templates.js'

const charge = { userId: 'ann', credits: 7, operation: 'chat' }

const month = (number: number, day = 10) => new Date(Date.UTC(2030, number - 1, day)).toISOString()

function partitionTest (name: string, body: (t: Test, ledger: ClockedLedger & { partition: () => Promise<void> }) => Promise<void>) {
  t.test(name, onLedger(month(1), { allowance: 10_000 }, async (t, ledger) => {
    const script = await readFile(partitionScript, 'utf8')
    await body(t, { ...ledger, async partition () { await ledger.pool.query(script) } })
  }))
}

partitionTest('what was there is answered as before, in sessions that were there before too', async (t, { credits, pool, partition }) => {
  const keyed = { ...charge, idempotencyKey: 'k' }
  const first = await credits.deduct(keyed)
  const { id } = await credits.hold({ ...charge, credits: 50 })
  const capture = await credits.capture(id, { credits: 10, final: false, idempotencyKey: 'part' })
  await credits.refund({ usageId: first.id, credits: 2 })
  await Promise.all(Array.from({ length: 50 }, () => credits.deduct(charge)))
  const statement = await credits.statement('ann')
  await partition()

  t.strictSame(await credits.statement('ann'), statement)
  t.match(await credits.reconcile(), { ok: true, accounts: 1 })
  t.strictSame(await credits.deduct(keyed), { ...first, replayed: true })
  await t.rejects(credits.deduct({ ...keyed, credits: 8 }), { code: 'FST_CREDITS_IDEMPOTENCY_CONFLICT' })
  t.strictSame(await credits.capture(id, { credits: 10, final: false, idempotencyKey: 'part' }), { ...capture, replayed: true })
  await t.rejects(credits.refund({ usageId: first.id, credits: 6 }), { code: 'FST_CREDITS_REFUND_EXCEEDS' })
  t.match(await Promise.all(Array.from({ length: 50 }, (_, i) => credits.deduct({ ...charge, idempotencyKey: `${i % 25}` }))), [])
  t.strictSame((await pool.query("select count(*)::int from ai_credit_usage where kind = 'deduct'")).rows, [{ count: 76 }])
  await credits.migrate()
})

partitionTest('a second run changes nothing', async (t, { credits, partition, pool }) => {
  await partition()
  await credits.deduct(charge)
  const partitions = async () => (await pool.query("select inhrelid::regclass::text as name from pg_inherits where inhparent = 'ai_credit_usage'::regclass order by 1")).rows
  const before = await partitions()
  t.equal(before.length, 5)
  await partition()
  t.strictSame(await partitions(), before)
})

partitionTest('keys, refunds, holds and statements reach over months', async (t, { credits, pool, at, partition }) => {
  await partition()
  const keyed = { ...charge, idempotencyKey: 'k' }
  const first = await credits.deduct(keyed)
  await at(month(2))
  const hold = await credits.hold({ ...charge, credits: 40, ttl: 86_400_000 })
  const { id } = await credits.capture(hold.id, { credits: 10, final: false, idempotencyKey: 'part' })
  await at(month(5))
  t.strictSame(await credits.deduct(keyed), { ...first, replayed: true })
  await Promise.all(Array.from({ length: 20 }, (_, i) => credits.deduct({ ...keyed, idempotencyKey: `k${i % 2 ? '' : i}` })))
  await credits.refund({ usageId: id })
  await credits.refund({ userId: 'ann', deductKey: 'k' })
  t.strictSame((await credits.statement('ann')).entries.map(({ seq }) => seq), Array.from({ length: 17 }, (_, seq) => seq))
  const { rows } = await pool.query('select tableoid::regclass::text as name, count(*)::int from ai_credit_usage group by 1 order by 1 desc')
  t.strictSame(rows, [
    { name: 'ai_credit_usage_default', count: 12 },
    { name: 'ai_credit_usage_before', count: 1 },
    { name: 'ai_credit_usage_2030_02', count: 1 }
  ])
})

partitionTest('partitions that were pruned can be dropped', async (t, { credits, pool, at, partition }) => {
  await partition()
  for (const metadata of [{}, { words: 3 }]) await credits.deduct({ ...charge, metadata })
  const { id: usageId } = await credits.deduct(charge)
  const drop = async () => (await pool.query('select ai_credit_usage_drop_partitions() as name')).rows
  t.strictSame(await drop(), [], 'not this month')
  await at(month(2))
  await credits.refund({ usageId, credits: 2 })
  const history = await credits.history('ann', { days: 90 })
  t.match(await credits.prune({ before: month(2, 1) }), { records: 2 })
  t.match(await credits.reconcile(), { ok: true })
  t.strictSame(await drop(), [], 'a record of it was refunded since')
  await at(month(3))
  await pool.query('select ai_credit_usage_add_partitions(3)')
  t.match(await credits.prune({ before: month(3, 1) }), { records: 2 })
  t.strictSame(await drop(), [{ name: 'ai_credit_usage_before' }, { name: 'ai_credit_usage_2030_02' }])
  t.strictSame(await credits.history('ann', { days: 90 }), history)
  t.match(await credits.deduct(charge), { replayed: false })
})
