import type pg from 'pg'
import t, { type Test } from 'tap'
import { createDatabase, createPool, pglite } from '../helper/database.js'

// By its URL, as the examples are JavaScript and have no types.
const { inTransaction } =
  await import(String(new URL('../../examples/deduct-from-a-plugin/transaction.js', import.meta.url)))

async function setUp (t: Test) {
  const pool = createPool(t, await createDatabase(t), { max: 1 })
  await pool.query('create table notes (note text not null)')
  const transact = (work: (client: pg.PoolClient) => Promise<unknown>): Promise<unknown> => inTransaction(pool, work)
  const notes = async () => (await pool.query('select note from notes')).rows.map(({ note }) => note)
  return { transact, notes }
}

t.test('what the work does is committed, and its answer passed on', async t => {
  const { transact, notes } = await setUp(t)
  t.equal(await transact(async client => {
    await client.query("insert into notes values ('kept')")
    return 'done'
  }), 'done')
  t.strictSame(await notes(), ['kept'])
})

t.test('work that fails is rolled back, and its error passed on', async t => {
  const { transact, notes } = await setUp(t)
  await t.rejects(transact(async client => {
    await client.query("insert into notes values ('gone')")
    throw new Error('No such model')
  }), { message: 'No such model' })
  t.strictSame(await notes(), [])
})

t.test('a query error that the work swallows is still an error', async t => {
  const { transact, notes } = await setUp(t)
  await t.rejects(transact(async client => {
    await client.query("insert into notes values ('gone')")
    await client.query('insert into notes values (null)').catch(() => {})
  }), { message: 'The transaction was rolled back' })
  t.strictSame(await notes(), [])
})

t.test('a connection that breaks is an error and not the end of the process', { skip: pglite }, async t => {
  const { transact, notes } = await setUp(t)
  await t.rejects(transact(async client => {
    await client.query("insert into notes values ('gone')")
    await client.query('select pg_terminate_backend(pg_backend_pid())').catch(() => {})
    await new Promise(resolve => setTimeout(resolve, 100))
  }))
  t.strictSame(await notes(), [])
})
