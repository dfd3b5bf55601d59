// Tables of the host that refer to accounts by a foreign key. For each such row PostgreSQL locks the account against deletion.
// not on Citus: a table of the host cannot refer to distributed accounts
// needs a real server
import t, { type Test } from 'tap'
import { createLedger } from '../../src/index.js'
import { createLedgerDatabase, createPool, pglite } from '../helper/database.js'

const skip = pglite

t.test('transactions that insert what refers to the account, and charge it last, never wait in a circle', { skip }, async t => {
  const { ledger, pool } = await open(t)
  const runs = await Promise.allSettled(Array.from({ length: 60 }, async (_, index) => {
    const client = await pool.connect()
    try {
      await client.query('begin')
      await client.query("insert into jobs (user_id) values ('ann')")
      if (index % 2) await ledger.deduct({ userId: 'ann', credits: 1, operation: 'job', client })
      else await ledger.hold({ userId: 'ann', credits: 1, operation: 'job', client })
      await client.query('commit')
    } catch (error) {
      await client.query('rollback')
      throw error
    } finally {
      client.release()
    }
  }))
  t.strictSame(runs.flatMap(run => run.status === 'rejected' ? [String(run.reason)] : []), [])
  t.match(await ledger.balance('ann'), { used: 30, held: 30 })
  t.strictSame((await pool.query('select count(*)::integer from jobs')).rows, [{ count: 60 }])
})

t.test('a transaction that only inserts what refers to the account holds up no call', { skip }, async t => {
  const { ledger, pool } = await open(t)
  const client = await pool.connect()
  await client.query('begin')
  await client.query("insert into jobs (user_id) values ('ann')")
  const call = { userId: 'ann', credits: 1, operation: 'job' }
  await Promise.all(Array.from({ length: 20 }, () => ledger.deduct(call)))
  await ledger.grant({ userId: 'ann', credits: 5 })
  const { id } = await ledger.hold(call)
  await ledger.capture(id)
  await ledger.refund({ usageId: (await ledger.deduct(call)).id })
  await ledger.setOverdraft('ann', 1)
  await ledger.prune({ before: new Date(Date.now() - 1) })
  t.match(await ledger.balance('ann'), { used: 21 }, 'while the transaction is open')
  await client.query('commit')
  client.release()
})

t.test('a call under way holds up no insert of what refers to the account', { skip }, async t => {
  const { ledger, pool } = await open(t)
  const client = await pool.connect()
  await client.query('begin')
  await ledger.deduct({ userId: 'ann', credits: 1, operation: 'job', client })
  await pool.query("insert into jobs (user_id) values ('ann')")
  t.pass('while the transaction is open')
  await client.query('rollback')
  client.release()
})

async function open (t: Test) {
  const pool = createPool(t, await createLedgerDatabase(t), { max: 10 })
  const ledger = createLedger(pool)
  await ledger.migrate()
  await ledger.balance('ann')
  await pool.query('create table jobs (id serial primary key, user_id varchar not null references ai_credits)')
  return { ledger, pool }
}
