// needs Citus: npm run test:citus
import pg from 'pg'
import t, { type Test } from 'tap'
import { citusScripts, ledgerScripts } from '../../bench/ledger-scripts.js'
import { createLedger, type Ledger } from '../../src/index.js'
import { hashText } from '../../src/ledger/database/hash-text.js'
import { readShards } from '../../src/ledger/database/shards.js'
import { citus } from '../helper/citus.js'
import { createDatabase, createLedgerDatabase, createPool } from '../helper/database.js'

const skip = citus === undefined && 'npm run test:citus runs it on a cluster'
const charge = (userId: string, credits = 1) => ({ userId, credits, operation: 'chat' })
const all = <T>(count: number, call: (index: number) => Promise<T>) => Promise.all(Array.from({ length: count }, (_, i) => call(i)))

async function open (t: Test, connectionString: string) {
  const pool = createPool(t, connectionString)
  const ledger = createLedger(pool, { allowance: 1000 })
  t.teardown(() => ledger.close())
  return { pool, ledger }
}

async function run (pool: pg.Pool, scripts: string[]) {
  const client = await pool.connect()
  try {
    for (const script of scripts) await client.query(script)
  } finally {
    client.release(true)
  }
}

// Calls of every kind; what an account has made is found by a second ledger, which does not remember it.
async function live (ledger: Ledger, other: Ledger, userId: string) {
  const paid = await ledger.deduct({ ...charge(userId, 10), idempotencyKey: 'paid' })
  const held = await ledger.hold(charge(userId, 20))
  await other.extend(held.id, { ttl: 60_000 })
  await other.capture(held.id, { credits: 5, final: false })
  await other.capture(held.id)
  await other.release((await ledger.hold(charge(userId, 7))).id)
  await other.revoke((await ledger.grant({ userId, credits: 50 })).id)
  await other.refund({ usageId: paid.id, credits: 3 })
  await ledger.setBudget(userId, 'team', { month: 100 })
  await ledger.setBudget(userId, 'key:*', { within: 'team', day: 50 })
  await ledger.deduct({ ...charge(userId), budget: 'key:1' })
  await ledger.canAfford({ ...charge(userId), budget: 'key:1' })
  await ledger.budgets(userId)
  await ledger.setOverdraft(userId, 5)
  await ledger.setAllowance(userId, { credits: 100, every: 'month' })
  await ledger.history(userId)
  await ledger.statement(userId)
  await ledger.balance(userId)
  await ledger.removeBudget(userId, 'key:1')
}

t.test('every call on an account is sent to where the account lives', { skip }, async t => {
  const { pool, ledger } = await open(t, await createLedgerDatabase(t))
  const sent = new Map<string, { text: string, values: unknown[] }>()
  pool.on('connect', client => {
    const query = client.query.bind(client) as any
    client.query = ((...args: any[]) => {
      const name = /(ai_credit_\w+)\(\d+, /.exec(args[0]?.text ?? '')?.[1]
      if (name !== undefined) sent.set(name, args[0])
      return query(...args)
    }) as typeof client.query
  })
  await live(ledger, createLedger(pool), 'ann')
  await all(40, i => ledger.deduct(charge(`user ${i % 4}`)))
  await ledger.reconcile()
  await ledger.prune({ before: new Date(0) })
  const onCoordinator: string[] = []
  for (const [name, { text, values }] of sent) {
    const { rows } = await pool.query(`explain (costs off) ${text}`, values)
    if (!rows.some(row => row['QUERY PLAN'].includes('Custom Scan (Citus Adaptive)'))) onCoordinator.push(name)
  }
  t.strictSame(onCoordinator.sort(), ['ai_credit_accounts', 'ai_credit_owners'], 'those that are about no account that is known')
  t.ok(sent.size >= 20, `${sent.size} functions`)
  const { rows } = await pool.query(`
    select proname from pg_proc left join pg_dist_object on classid = 'pg_proc'::regclass and objid = pg_proc.oid
    where proname like 'ai\\_credit\\_%' and prosecdef and 'p_user_id' = any(proargnames) and distribution_argument_index is null`)
  t.strictSame(rows, [], 'every function that takes an account is delegated')
})

t.test('accounts live where the library looks for them', { skip }, async t => {
  const { pool } = await open(t, await createLedgerDatabase(t))
  const { firstHashes } = await readShards(pool, 'public')
  const users = Array.from({ length: 200 }, (_, i) => `user ${i} 🙂`.slice(0, i))
  const { rows } = await pool.query(`
    select shardminvalue::integer as first from unnest($1::text[]) with ordinality as given (user_id, place)
      join pg_dist_shard on shardid = get_shard_id_for_distribution_column('ai_credits', user_id) order by place`, [users])
  t.strictSame(rows.map(({ first }) => first), users.map(user => firstHashes.findLast(first => first <= hashText(user))))
})

t.test('a statement that went to another node than its accounts is right', { skip }, async t => {
  const { pool, ledger } = await open(t, await createLedgerDatabase(t))
  const users = Array.from({ length: 30 }, (_, i) => `user ${i}`)
  await all(30, i => ledger.setBudget(users[i], 'key:*', { day: 100 }))
  const calls = users.map((_, i) => [i + 1, 'deduct', `key ${i}`, 5, 'chat', {}, null, null, null, null, 'key:1'])
  for (const node of users.slice(0, 5)) {
    const { rows: [row] } = await pool.query(
      "select * from ai_credit_execute(7, $1::varchar, $2::varchar[], $3, '{\"credits\": 1000}', false, null, true)",
      [node, users, JSON.stringify(calls)])
    t.match(row.answers, /^\{[12],/)
  }
  const balances = await all(30, i => ledger.balance(users[i]))
  t.ok(balances.every(({ used }) => used === 5), 'the first charges, the others are replays')
  t.match(await ledger.reconcile(), { ok: true, accounts: 30 })
})

t.test('while shards move, charges go on, and nothing is lost or charged twice', { skip, timeout: 300_000 }, async t => {
  const { pool, ledger } = await open(t, await createLedgerDatabase(t))
  const users = Array.from({ length: 40 }, (_, i) => `user ${i}`)
  const shards = { moving: true }
  const acknowledged = new Map<string, number>()
  const callers = all(16, async caller => {
    for (let i = 0; shards.moving; i++) {
      const call = { ...charge(users[(caller * 7 + i) % users.length]!), idempotencyKey: `${caller} ${i}` }
      for (let done = false; !done && shards.moving;) {
        try {
          const { replayed } = await ledger.deduct(call)
          if (!replayed || !acknowledged.has(`${call.userId} ${call.idempotencyKey}`)) {
            acknowledged.set(`${call.userId} ${call.idempotencyKey}`, 1)
          }
          done = true
        } catch (error: any) {
          if (error.statusCode !== 503) throw error
        }
      }
    }
  })
  const { rows: nodes } = await pool.query("select nodename, nodeport, groupid from pg_dist_node where groupid > 0 and noderole = 'primary' order by 1, 2")
  const { rows: some } = await pool.query(`
    select shardid, groupid from pg_dist_shard join pg_dist_placement using (shardid) where logicalrelid = 'ai_credits'::regclass
    order by shardid limit 4`)
  for (const { shardid, groupid } of some) {
    const [from, to] = [nodes.find(node => node.groupid === groupid), nodes.find(node => node.groupid !== groupid)]
    await pool.query("select citus_move_shard_placement($1, $2, $3, $4, $5, 'block_writes')",
      [shardid, from.nodename, from.nodeport, to.nodename, to.nodeport])
  }
  shards.moving = false
  await callers
  const { rows: [{ records }] } = await pool.query('select count(*)::integer as records from ai_credit_usage')
  t.ok(acknowledged.size > 0 && records >= acknowledged.size, `${records} records of ${acknowledged.size} acknowledged charges`)
  t.match(await ledger.reconcile(), { ok: true })
})

t.test('tables with data are distributed as they are, and again without effect', { skip }, async t => {
  const { pool, ledger } = await open(t, await createDatabase(t))
  await ledger.migrate()
  await live(ledger, createLedger(pool), 'ann')
  await all(100, i => ledger.deduct({ ...charge(`user ${i % 10}`), idempotencyKey: `key ${i}` }))
  const before = await ledger.statement('ann')
  await run(pool, citusScripts.slice(-2))
  await run(pool, citusScripts.slice(-2))
  const after = await open(t, pool.options.connectionString!)
  t.strictSame(await after.ledger.statement('ann'), before)
  const again = await all(100, i => after.ledger.deduct({ ...charge(`user ${i % 10}`), idempotencyKey: `key ${i}` }))
  t.ok(again.every(({ replayed }) => replayed))
  await live(after.ledger, createLedger(pool), 'bob')
  t.match(await after.ledger.reconcile(), { ok: true, accounts: 12 })
})

t.test('what cannot be distributed is refused, and says so', { skip }, async t => {
  const { pool, ledger } = await open(t, await createDatabase(t))
  const distribute = citusScripts.at(-2)!
  await t.rejects(run(pool, [distribute]), { message: 'There are no credits tables in the schema public' })
  await ledger.migrate()
  await run(pool, ["delete from ai_credit_settings where name = 'time_zone'"])
  await t.rejects(run(pool, [distribute.replaceAll("'UTC'", "''")]), { message: 'The time zone of the ledger is not known yet' })
  await t.rejects(run(pool, [distribute.replaceAll("'UTC'", "'Nowhere'")]), { message: /time zone "Nowhere" not recognized/ })
  await run(pool, ["insert into ai_credit_settings (name, value) values ('unsummed_to', '5')"])
  await t.rejects(run(pool, [distribute]), { message: /^Adopted records are not yet summed up by day/ })
  await run(pool, ["delete from ai_credit_settings where name = 'unsummed_to'"])
  await run(pool, citusScripts.slice(-2))
  await t.rejects(run(pool, ledgerScripts.slice(-1)), { message: 'The tables are distributed by Citus' })
})

t.test('a start with the functions of another version is refused, and migrate replaces them', { skip }, async t => {
  const { pool, ledger } = await open(t, await createLedgerDatabase(t))
  await ledger.deduct(charge('ann'))
  await pool.query("update ai_credit_settings set value = 'another' where name = 'citus'")
  const later = createLedger(pool, { allowance: 1000 })
  await t.rejects(later.deduct(charge('ann')), { code: 'FST_CREDITS_CITUS_FUNCTIONS' })
  await later.migrate()
  t.equal((await later.deduct(charge('ann'))).balance.used, 2)
})

t.test('a charge in a transaction of the host is committed or rolled back with it', { skip }, async t => {
  const { pool, ledger } = await open(t, await createLedgerDatabase(t))
  for (const end of ['rollback', 'commit']) {
    const client = await pool.connect()
    await client.query('begin')
    await ledger.deduct({ ...charge('ann', 10), client })
    const { id } = await ledger.hold({ ...charge('ann', 20), client })
    await createLedger(pool).capture(id, { client })
    await client.query(end)
    client.release()
    t.match(await ledger.balance('ann'), end === 'commit' ? { used: 30, held: 0 } : { used: 0, held: 0 })
  }
  t.match(await ledger.reconcile(), { ok: true })
})
