// needs Citus: npm run test:citus
import { randomUUID } from 'node:crypto'
import t from 'tap'
import { createLedger } from '../../src/index.js'
import { citus } from '../helper/citus.js'
import { createLedgerDatabase, createPool } from '../helper/database.js'
import { startPgbouncer } from '../helper/pgbouncer.js'

const skip = citus === undefined && 'npm run test:citus runs it on a cluster'
const all = <T>(count: number, call: (index: number) => Promise<T>) => Promise.all(Array.from({ length: count }, (_, i) => call(i)))

t.test('four gateways charge the same accounts through PgBouncer in transaction mode', { skip }, async t => {
  const bouncer = await startPgbouncer(await createLedgerDatabase(t))
  if (bouncer === undefined) return t.pass('PgBouncer', { skip: 'it is not installed' })
  const { connectionString, stop } = bouncer
  t.teardown(stop)
  const ledgers = await all(4, async () => createLedger(createPool(t, connectionString), { allowance: 10_000, prepare: false }))
  const keys = Array.from({ length: 100 }, () => randomUUID())
  await all(2000, async i => {
    const ledger = ledgers[i % 4]!
    const charge = { userId: `user ${Math.floor(i / 4) % 5}`, credits: 2, operation: 'chat' }
    if (i < 400) return await ledger.deduct({ ...charge, userId: 'keyed', idempotencyKey: keys[i % 100]! })
    if (i % 10 < 7) return await ledger.deduct(charge)
    const { id } = await ledger.hold(charge)
    await (i % 10 === 9 ? ledger.release(id) : ledgers[(i + 1) % 4]!.capture(id))
  })
  t.match(await ledgers[0]!.balance('keyed'), { used: 200, held: 0 }, 'each key was charged once')
  const balances = await all(5, i => ledgers[i % 4]!.balance(`user ${i}`))
  t.equal(balances.reduce((sum, { used }) => sum + used, 0), 1600 * 0.9 * 2)
  t.ok(balances.every(({ held }) => held === 0))
  t.match(await ledgers[3]!.reconcile(), { ok: true, accounts: 6 })
  await Promise.all(ledgers.map(ledger => ledger.close()))
})
