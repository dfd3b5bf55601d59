// not on Citus: calls functions as the library does not
// What holds of the ledger's SQL functions as such: what they hand each other, and that a rule written twice is one rule.
import type pg from 'pg'
import t, { type Test } from 'tap'
import { createLedger } from '../../src/index.js'
import { VERDICTS } from '../../src/ledger/posting/wire.js'
import { createLedgerDatabase, createPool, pglite } from '../helper/database.js'

const options = { allowance: 1000, prepare: !pglite }
const terms = ['{"credits": 1000}', null]
const plain = { userId: 'ann', credits: 7, operation: 'chat' }

async function open (t: Test) {
  const pool = createPool(t, await createLedgerDatabase(t))
  const credits = createLedger(pool, options)
  await credits.migrate()
  return { pool, credits }
}

t.test('a verdict has the same number on both sides of a shared statement', async t => {
  const { pool } = await open(t)
  const { rows } = await pool.query('select verdict, ai_credit_number(verdict)::integer as number from unnest($1::text[]) verdict', [VERDICTS])
  t.strictSame(rows, VERDICTS.map((verdict, number) => ({ verdict, number })))
  t.strictSame((await pool.query("select ai_credit_number('past') as number")).rows, [{ number: null }], 'one that no shared statement has')
})

t.test('what PostgreSQL expects of a table or a query decides nothing in a function that a library calls', async t => {
  const { pool } = await open(t)
  const { rows } = await pool.query(`
    select proname as name from pg_proc
    where prosecdef and pronamespace = 'public'::regnamespace
      and not coalesce(proconfig @> '{enable_seqscan=off,jit=off}', false)`)
  t.strictSame(rows, [])
})

t.test('no function takes or returns the row of a table', async t => {
  const { pool } = await open(t)
  const { rows } = await pool.query(`
    select distinct proname as name, format_type(type.oid, null) as type
    from pg_proc, unnest(coalesce(proallargtypes, proargtypes::oid[]) || prorettype) used (oid)
      join pg_type given on given.oid = used.oid
      join pg_type type on type.oid = case given.typcategory when 'A' then given.typelem else given.oid end
      join pg_class on pg_class.oid = type.typrelid
    where proname like 'ai\\_credit\\_%' and relkind <> 'c'`)
  t.strictSame(rows, [])
})

t.test('a further column of any table changes nothing, in sessions that were there before too', async t => {
  const { pool, credits } = await open(t)
  const useEverything = async (round: number) => {
    const call = { ...plain, idempotencyKey: `${round}` }
    await credits.deduct(call)
    await credits.deduct(call)
    const holds = await Promise.all([1, 2, 3].map(credits_ => credits.hold({ ...plain, credits: credits_ })))
    await Promise.all([credits.capture(holds[0]!.id), credits.release(holds[1]!.id), credits.deduct(plain), credits.deduct(plain)])
    await credits.capture(holds[2]!.id, { credits: 1, final: false })
    await credits.release(holds[2]!.id)
    await credits.refund({ userId: 'ann', deductKey: `${round}`, credits: 1 })
    await credits.revoke((await credits.grant({ userId: 'ann', credits: 5 })).id)
    await credits.setAllowance('ann', { credits: 10, every: 'day' })
    await credits.grant({ userId: 'ann', credits: 5, expiresAt: new Date(Date.now() + 60_000) })
    await credits.hold(plain)
    for (const [table, ago] of [['holds', 1], ['grants', 2]]) { // grants expire while credits are held
      await pool.query(`update ai_credit_${table} set expires_at = now() - $1 * interval '1 second' where expires_at < now() + interval '1 hour'`, [ago])
    }
    await pool.query("update ai_credits set due_at = now() - interval '1 second'")
    t.match(await credits.balance('ann'), { held: 0 })
    t.ok((await credits.statement('ann')).entries.length > 0)
    t.match(await credits.reconcile(), { ok: true, accounts: 1 })
  }
  await useEverything(1)
  const { rows } = await pool.query("select oid::regclass::text as name from pg_class where relkind = 'r' and relname like 'ai\\_credit%'")
  t.equal(rows.length, 12)
  for (const { name } of rows) await pool.query(`alter table ${name} add column further text not null default 'x'`)
  await useEverything(2)
})

t.test('a call that goes alone writes what it writes in a shared statement', async t => {
  const { pool } = await open(t)
  const metadata = '{"words": 3}'
  const hold = async (userId: string) => (await pool.query(
    "select id from ai_credit_hold(7, $1, 10, 'chat', $2, 60000, null, null, $3, null)", [userId, metadata, terms[0]])).rows[0].id
  for (const userId of ['alone', 'shared']) await pool.query('select ai_credit_balance(7, $1, $2, 1000)', [userId, terms[0]])

  const alone = await hold('alone')
  for (const key of [null, 'k']) {
    await pool.query('select ai_credit_deduct(7, \'alone\', 5, \'chat\', $1, $2, \'v1\', \'{"tokens": 2}\', null, $3, null)', [metadata, key, terms[0]])
  }
  await pool.query('select ai_credit_capture(7, $1, null, 12, \'{"more": 1}\', true, \'partial\', \'k\', null, null, null, $2, null)', [alone, terms[0]])

  const shared = await hold('shared')
  await pool.query("select ai_credit_execute(7, 'shared', '{shared}', $1, $2, false, null)", [`[
    [1, "priced", null, 5, "chat", ${metadata}, null, "v1", {"tokens": 2}], [1, "priced", "k", 5, "chat", ${metadata}, null, "v1", {"tokens": 2}],
    [1, "capture", "k", 12, null, {"more": 1}, ${shared}, true, "partial"]]`, terms[0]])

  const written = async (userId: string) => {
    const [accounts, records, days, holds] = await Promise.all(['ai_credits', 'ai_credit_usage', 'ai_credit_daily_usage', 'ai_credit_holds'].map(
      async table => await contentOf(pool, table, userId)))
    return { accounts, records, days, holds }
  }
  for (let statements = 0; statements < 4; statements++) { // until it has written daily usage, too
    for (const userId of ['alone', 'shared']) {
      await pool.query('select ai_credit_execute(7, $1::varchar, array[$1::varchar], $2, $3, false, null)',
        [userId, `[${Array.from({ length: 16 }, () => '[1, "deduct", null, 1, "chat", {}]')}]`, terms[0]])
    }
  }
  const { records, days } = await written('alone')
  t.equal(records!.length, 67)
  t.equal(days!.length, 3)
  t.strictSame(await written('shared'), await written('alone'))
})

// The rows of an account without what no two accounts share.
async function contentOf (pool: pg.Pool, table: string, userId: string) {
  const order = table === 'ai_credit_daily_usage' ? 'metadata_hash' : table === 'ai_credits' ? 'user_id' : 'seq'
  const { rows } = await pool.query(`
    select to_jsonb(r) - '{user_id,id,hold_id,created_at,updated_at,expires_at,due_at}'::text[] as row from ${table} r where user_id = $1 order by ${order}`, [userId])
  return rows.map(({ row }) => row)
}

// Hashes are kept for as long as keys are, so what PostgreSQL writes for jsonb must be the same for ever: of each of these the
// SHA-256, made without PostgreSQL.
const hashes = {
  '{}': '44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a',
  '[]': '4f53cda18c2baa0c0354bb5f9a3ecbe5ed12ab4d8e11ba873c2f11161202b945',
  '""': '12ae32cb1ec02d01eda3581b127c1fee3b0dc53572ed6baf239721a03d82e126',
  null: '74234e98afe7498fb5daf1f36ac2d78acc339464f950703b8c019892f982b90b',
  '{"b": {"d": [1, {"z": null, "a": true}], "c": "x"}, "a": 1, "aa": 2}': '67b3c6e46c070ffdae0a082d9bada659170fb2c3f7dbf8cb7938499fa88ec0f6',
  '"Grüße \\u00e4 \\ud83d\\ude00 \\u2028 \\"\\\\ \\n \\u0001"': '708ec6f2f1bacdb60b4e50ec81e0e1de669a2f8fbc3c3d29d90651b3bc64a63b',
  '[1, 1.0, 1e3, 1.50, -0, 0.1, 1e-7, 9007199254740993, 12345678901234567890.123]': '7087ba4de48fcc705eebfe42d344d8e7f8030bc6a56eb0f51555b569f7ca5f66',
  1: '6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b',
  '1.0': 'd0ff5974b6aa52cf562bea5921840c032a860a91a3512f7fe8f768f6bbe005f6',
  '1e3': '40510175845988f13f6162ed8526f0b09f73384467fa855e1e79b44a56562a58'
}

t.test('content has the hash that it had in every version of PostgreSQL', async t => {
  const { pool } = await open(t)
  for (const [json, hash] of Object.entries(hashes)) {
    const { rows: [row] } = await pool.query("select encode(ai_credit_hash($1::jsonb), 'hex') as hash", [json])
    t.equal(row.hash, hash, json)
  }
})

t.test('an account says what time has done to it once, to the statement that did it', async t => {
  const { pool } = await open(t)
  const call = async (text: string, ...values: unknown[]) => (await pool.query(`select * from ${text}`, values)).rows[0]
  const neglected = async (userId: string, holds: number) => {
    await call('ai_credit_balance(7, $1, $2, 1000)', userId, terms[0])
    await pool.query(`
      insert into ai_credit_holds (user_id, seq, credits, credits_left, operation, metadata, ttl, created_at, expires_at,
        total_after, used_after, held_after)
      select user_id, seq + i, 1, 1, 'chat', '{}', 1000, updated_at, updated_at - interval '1 hour', 0, 0, 0
      from ai_credits, generate_series(1, $2::integer) i where user_id = $1`, [userId, holds])
    await pool.query(`update ai_credits set held_credits = $2, seq = seq + $2, due_at = updated_at - interval '1 hour'
      where user_id = $1`, [userId, holds])
  }
  await neglected('ann', 1)
  await neglected('bob', 2)
  const { answers, settled } = await call(
    "ai_credit_execute(7, 'ann', '{ann,bob,new}', '[[1, \"deduct\", null, 1, \"chat\", {}], [2, \"deduct\", null, 1, \"chat\", {}]]', $1, false, null)", terms[0])
  t.match(answers, /^\{1,\d+,1000,1,0,1,\d+,1000,1,0\}$/)
  t.strictSame(JSON.parse(`[${settled}]`), [['ann', 1000, 0, 1, 1, 2], ['bob', 1000, 0, 2, 2, 4]])

  await neglected('eve', 150)
  const client = await pool.connect()
  await client.query('begin')
  const deduct = async () => (await client.query("select * from ai_credit_deduct(7, 'eve', 1, 'chat', '{}', null, null, null, null, $1, null)", [terms[0]])).rows[0]
  t.match(await deduct(), { verdict: 'settling', settled: '["eve", 1000, 0, 150, 150, 250]' }, 'what was done stays done, and is told')
  t.match(await deduct(), { verdict: 'accepted', settled: '["eve", 1000, 0, 50, 250, 300]' })
  t.match(await deduct(), { verdict: 'accepted', settled: null }, 'also in one transaction')
  await client.query('commit')
  client.release()
})

for (const [table, column] of [
  ['ai_credit_usage', 'kind'], ['ai_credit_grants', 'kind'], ['ai_credit_grants', 'state'], ['ai_credit_holds', 'state'], ['ai_credit_events', 'kind']
]) {
  t.test(`${table} takes no ${column} that there is not`, async t => {
    const { pool, credits } = await open(t)
    await credits.deduct(plain)
    await credits.release((await credits.hold(plain)).id)
    await credits.grant({ userId: 'ann', credits: 1 })
    await t.rejects(pool.query(`update ${table} set ${column} = 'other'`), { code: '23514', constraint: `${table}_${column}` })
  })
}
