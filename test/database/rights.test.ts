// A gateway's role with the fewest rights: it only reads and calls functions; the functions write for it.
// needs a real server
import t from 'tap'
import pg from 'pg'
import { createLedger } from '../../src/index.js'
import { inSchema } from '../../src/ledger/database/schema.js'
// @ts-expect-error: no types
import { withoutPsql } from '../../src/sql/sources.js'
import { createDatabase, createPool, pglite } from '../helper/database.js'

t.test('a role with the rights of rights.sql uses the ledger, and writes nothing itself', { skip: pglite }, async t => {
  const connectionString = await createDatabase(t)
  const owner = createPool(t, connectionString)
  await createLedger(owner, { timeZone: 'Europe/Berlin' }).migrate()
  const role = `gateway ${new URL(connectionString).pathname.slice(1)}`
  await owner.query(`create role "${role}" login password 'gateway'`)
  t.teardown(() => dropRole(connectionString, role))
  await owner.query(`grant insert, update on ai_credits to "${role}"`) // the script revokes this
  const script = inSchema(withoutPsql('rights.sql'), 'public').replaceAll(":'role'", `'${role}'`)
  await owner.query(script)

  const url = new URL(connectionString)
  url.username = role
  url.password = 'gateway'
  const pool = createPool(t, url.href)
  const ledger = createLedger(pool, { timeZone: 'Europe/Berlin' })
  await ledger.migrate() // there is nothing to do
  await Promise.all(['ann', 'bob'].map(userId => ledger.deduct({ userId, credits: 5, operation: 'chat', idempotencyKey: 'k' })))
  t.match(await ledger.canAfford({ userId: 'ann', credits: 5, operation: 'chat' }), { affordable: true })
  const { id } = await ledger.grant({ userId: 'ann', credits: 10 })
  await ledger.revoke(id)
  const holds = await Promise.all([1, 2].map(credits => ledger.hold({ userId: 'ann', credits, operation: 'chat' })))
  await Promise.all([ledger.capture(holds[0]!.id), ledger.release(holds[1]!.id)])
  await ledger.refund({ userId: 'ann', deductKey: 'k' })
  await ledger.setAllowance('ann', { credits: 10, every: 'month' })
  await ledger.setOverdraft('ann', 3)
  t.equal((await ledger.history('ann')).entries.length, 1)
  t.ok((await ledger.statement('ann')).entries.length > 6)
  await ledger.prune({ before: new Date(Date.now() - 1) })
  t.match(await ledger.reconcile(), { ok: true, accounts: 2 })

  t.equal((await pool.query('select from ai_credits')).rowCount, 2, 'it reads')
  for (const statement of [
    "insert into ai_credits values ('mallory', 1000000)",
    'update ai_credits set total_credits = 1000000',
    'delete from ai_credit_usage',
    'update ai_credit_grants set credits_left = 5',
    "update ai_credit_settings set value = 'UTC'",
    'delete from ai_credit_functions',
    "select nextval('ai_credit_usage_id_seq')",
    'select ai_credit_save(null)',
    "select ai_credit_open_grant(null, 'grant', 5, 1, 'infinity')",
    'create or replace view ai_credit_entries as select 1'
  ]) await t.rejects(pool.query(statement), { code: '42501' }, statement)
})

t.test('nobody else may call a function', { skip: pglite }, async t => {
  const connectionString = await createDatabase(t)
  const pool = createPool(t, connectionString)
  await createLedger(pool).migrate()
  const { rows } = await pool.query(`
    select proname from pg_proc where proname like 'ai\\_credit\\_%' and has_function_privilege('public', oid, 'execute')`)
  t.strictSame(rows, [])
})

async function dropRole (connectionString: string, role: string) {
  const client = new pg.Client({ connectionString })
  await client.connect()
  await client.query(`drop owned by "${role}"; drop role "${role}"`)
  await client.end()
}
