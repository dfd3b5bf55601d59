// needs a real server
import type pg from 'pg'
import t, { type Test } from 'tap'
import { createLedger, type Ledger } from '../../src/index.js'
import { citus } from '../helper/citus.js'
import { createLedgerDatabase, createPool } from '../helper/database.js'

const charge = (userId: string) => ({ userId, credits: 1, operation: 'chat' })
const all = <T>(count: number, call: (index: number) => T) => Promise.all(Array.from({ length: count }, (_, i) => call(i)))

for (const isolation of citus ? ['read committed'] : ['read committed', 'serializable']) {
  for (const reset of ['discard all', 'deallocate all']) {
    t.test(`a pool that resets its sessions (${reset}) when they come back (${isolation})`, async t => {
      const { pool, ledger, failures } = await open(t, isolation)
      pool.on('release', (_error, client) => { client.query(reset).catch(() => {}) })
      await useEverything(t, ledger)
      t.ok(failures.length > 0 && failures.every(code => code === '26000'), failures.join())
      t.ok(failures.length <= pool.totalCount, 'once for each connection')
    })
  }

  t.test(`a tracer that writes another comment into each text (${isolation})`, async t => {
    const { pool, ledger, failures } = await open(t, isolation)
    let count = 0
    rewrite(pool, text => `${text} /* trace ${count++} */`)
    await useEverything(t, ledger)
    t.ok(failures.length > 0 && failures.every(code => code === undefined), 'pg refuses them, not PostgreSQL')
    t.ok(failures.length <= pool.totalCount, 'once for each connection')
  })
}

t.test('functions that were replaced while their statements were prepared', async t => {
  const { pool, ledger, failures } = await open(t)
  await ledger.balance('ann')
  await pool.query(`do $do$
    declare definition text := pg_get_functiondef('ai_credit_balance'::regproc);
    begin
      drop function ai_credit_balance;
      execute replace(definition, 'OUT held bigint', 'OUT held bigint, OUT later integer');
    end $do$`)
  t.match(await ledger.balance('ann'), { available: 10_000 })
  t.strictSame(failures, ['0A000'])
})

async function useEverything (t: Test, ledger: Ledger) {
  for (let round = 1; round <= 5; round++) {
    await all(20, i => ledger.deduct(charge(`user ${i % 4}`)))
    await ledger.deduct(charge('ann'))
    const { id } = await ledger.hold(charge('ann'))
    await ledger.capture(id)
    await ledger.grant({ userId: 'ann', credits: 2 })
    t.match(await ledger.balance('ann'), { available: 10_000, used: 2 * round })
    t.match(await ledger.balance('user 1'), { used: 5 * round }, 'each was charged once')
  }
  t.match(await ledger.reconcile(), { ok: true, accounts: 5 })
}

/** A ledger whose tables are there, and the codes of its queries that failed. */
async function open (t: Test, isolation = 'read committed') {
  const connectionString = await createLedgerDatabase(t)
  const observer = createPool(t, connectionString)
  await createLedger(observer).migrate()
  const { rows: [{ name }] } = await observer.query('select current_database() as name')
  await observer.query(`alter database ${name} set default_transaction_isolation to '${isolation}'`)
  const pool = createPool(t, connectionString, { max: 3 })
  const failures: (string | undefined)[] = []
  pool.on('connect', client => {
    const query = client.query.bind(client) as (...args: unknown[]) => Promise<unknown>
    client.query = (async (...args: unknown[]) => {
      try {
        return await query(...args)
      } catch (error) {
        failures.push((error as { code?: string }).code)
        throw error
      }
    }) as typeof client.query
  })
  return { pool, ledger: createLedger(pool), failures }
}

function rewrite (pool: pg.Pool, change: (text: string) => string) {
  pool.on('connect', client => {
    const query = client.query.bind(client) as (config: pg.QueryConfig) => Promise<unknown>
    client.query = (async (config: pg.QueryConfig) => await query({ ...config, text: change(config.text) })) as typeof client.query
  })
}
