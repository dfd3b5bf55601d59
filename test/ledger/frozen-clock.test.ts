// needs a real server
// (PGlite would be frozen with its clients.)
import { mock } from 'node:test'
import t from 'tap'
import { createLedger } from '../../src/index.js'
import { createLedgerDatabase, createPool } from '../helper/database.js'

t.test('a host that freezes the clock in its tests is answered', async t => {
  const pool = createPool(t, await createLedgerDatabase(t))
  const ledger = createLedger(pool)
  await ledger.migrate()
  const told: string[] = []
  ledger.on('deducted', ({ operation }) => { told.push(operation) })
  const charge = { userId: 'ann', credits: 1, operation: 'chat' }

  const { now } = performance
  mock.timers.enable({ apis: ['setTimeout', 'setInterval', 'setImmediate', 'Date'] })
  performance.now = () => 0
  try {
    const { id } = await ledger.hold(charge)
    await ledger.capture(id, { userId: 'ann' })
    const used = (await Promise.all(Array.from({ length: 20 }, () => ledger.deduct(charge)))).map(({ balance }) => balance.used)
    t.equal(used.at(-1), 21)
    await ledger.grant({ userId: 'ann', credits: 1 })
    t.match(await ledger.balance('ann'), { total: 10_001, used: 21 })
    await ledger.close()
  } finally {
    performance.now = now
    mock.timers.reset()
  }
  t.equal(told.length, 21)
})
