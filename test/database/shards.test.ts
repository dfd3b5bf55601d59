// not on Citus: imitates its catalogs
// On which node an account lives. The catalogs of Citus are tables here, made like those of Citus.
import { setTimeout as sleep } from 'node:timers/promises'
import fc from 'fast-check'
import t, { type Test } from 'tap'
import type pg from 'pg'
import { createLedger } from '../../src/index.js'
import { Database } from '../../src/ledger/database/database.js'
import { hashText } from '../../src/ledger/database/hash-text.js'
import { isDistributed, readShards, Shards, type ShardMap } from '../../src/ledger/database/shards.js'
import { createDatabase, createLedgerDatabase, createPool, pglite } from '../helper/database.js'

const ANY = fc.string({ unit: 'binary', minLength: 0, maxLength: 300 })
const ASCII = fc.string({ unit: 'binary-ascii', minLength: 0, maxLength: 300 })
const GRAPHEMES = fc.string({ unit: 'grapheme', minLength: 0, maxLength: 300 })
const WORDS = fc.array(fc.constantFrom('ann', 'شركة', 'חברה', '🧑‍🚀', '👩‍👩‍👧', 'ﬁ', 'é', 'é', '企業', ' '), { maxLength: 60 }).map(words => words.join(''))

t.test('the hash of a text is that of PostgreSQL', async t => {
  const pool = createPool(t, await createDatabase(t))
  const texts = [
    ...Array.from({ length: 41 }, (_, length) => 'abcdefghij0123456789'.repeat(3).slice(0, length)),
    ...Array.from({ length: 41 }, (_, length) => '\u{7f}'.repeat(length)),
    ...Array.from({ length: 41 }, (_, length) => '\u{10ffff}'.repeat(length)),
    ...fc.sample(fc.oneof(ANY, ASCII, GRAPHEMES, WORDS), { numRuns: 5000, seed: 7 })
  ].map(text => text.replaceAll('\0', '0'))
  const { rows } = await pool.query(
    'select hashtext(text)::text as hash from unnest($1::text[]) with ordinality as asked(text, place) order by place', [texts])
  t.equal(new Set(texts.map(text => Buffer.byteLength(text) % 12)).size, 12)
  const wrong = texts.filter((text, index) => hashText(text) !== Number(rows[index].hash))
  t.strictSame(wrong, [])
  t.equal(hashText('ann'), Number((await pool.query("select hashtext('ann')::text as hash")).rows[0].hash), 'after long ones')
})

t.test('an account is on the node of the range that its hash falls into', t => {
  const map = { firstHashes: [-2147483648, -1073741824, 0, 1073741824], nodes: [1, 2, 1, 3] }
  const shards = new Shards(map, async () => map)
  for (let i = 0; i < 1000; i++) {
    const userId = `user ${i}`
    t.equal(shards.nodeOf(userId), map.nodes[Math.floor((hashText(userId) + 2147483648) / 1073741824)])
  }
  const at = hashText('ann')
  t.equal(new Shards({ firstHashes: [-2147483648, at], nodes: [4, 5] }, async () => map).nodeOf('ann'), 5, 'the first hash of a range')
  t.equal(new Shards({ firstHashes: [-2147483648, at + 1], nodes: [4, 5] }, async () => map).nodeOf('ann'), 4, 'the last one')
  t.equal(new Shards({ firstHashes: [], nodes: [] }, async () => map).nodeOf('ann'), 0, 'none is known')
  t.end()
})

t.test('the map is read anew when it is used and no longer young, one at a time, and stays if that fails', async t => {
  const readings: { resolve: (map: ShardMap) => void, reject: (error: Error) => void }[] = []
  const on = (node: number) => ({ firstHashes: [-2147483648], nodes: [node] })
  const shards = new Shards(on(1), () => new Promise((resolve, reject) => readings.push({ resolve, reject })), 50)
  t.equal(shards.nodeOf('ann'), 1)
  t.equal(readings.length, 0, 'it is young')
  await sleep(60)
  for (let i = 0; i < 3; i++) t.equal(shards.nodeOf('ann'), 1, 'nobody waits for it')
  t.equal(readings.length, 1)
  await sleep(60)
  t.equal(shards.nodeOf('ann'), 1)
  t.equal(readings.length, 1, 'one at a time')
  readings[0]!.resolve(on(2))
  await new Promise(resolve => setImmediate(resolve))
  t.equal(shards.nodeOf('ann'), 2)
  await sleep(60)
  t.equal(shards.nodeOf('ann'), 2)
  readings[1]!.reject(new Error('the server is gone'))
  await new Promise(resolve => setImmediate(resolve))
  t.equal(shards.nodeOf('ann'), 2)
  t.equal(readings.length, 2, 'not at once again')
  await sleep(60)
  t.equal(shards.nodeOf('ann'), 2)
  t.equal(readings.length, 3)
})

t.test('without Citus, all accounts are on one node, and the start asks once', async t => {
  const opened = await open(t, await withLedger(t))
  const { database } = opened
  await database.start()
  t.equal(database.distributed, false)
  t.equal(database.nodeOf('ann'), 0)
  t.equal(opened.statements.filter(text => text.includes('pg_dist_')).length, 1)
})

t.test('with Citus, the tables may be on one server nevertheless', { skip: pglite }, async t => {
  const pool = await withLedger(t)
  await createCatalogs(pool)
  const { database } = await open(t, pool)
  await database.start()
  t.equal(database.distributed, false)
  await pool.query("insert into pg_dist_partition values ('ai_credits', 'n')")
  t.equal(await isDistributed(pool, 'public'), false, 'a reference table')
})

t.test('with Citus, the nodes of accounts are known from the start on', { skip: pglite }, async t => {
  const pool = await withLedger(t)
  await createCatalogs(pool)
  await distribute(pool)
  const { database } = await open(t, pool)
  t.equal(database.distributed, undefined, 'before the start')
  t.equal(database.nodeOf('ann'), 0)
  await database.start()
  t.equal(database.distributed, true)
  const users = Array.from({ length: 100 }, (_, i) => `user ${i}`)
  t.strictSame(users.map(userId => database.nodeOf(userId)), users.map(userId => hashText(userId) < 0 ? 7 : 9))
  t.strictSame(await readShards(pool, 'public'), { firstHashes: [-2147483648, 0], nodes: [7, 9] })
  t.strictSame(await readShards(pool, 'another'), { firstHashes: [], nodes: [] })
})

t.test('with Citus, the start asks for the functions that citus.sql makes', { skip: pglite }, async t => {
  const pool = await withLedger(t)
  await createCatalogs(pool)
  await distribute(pool)
  await pool.query("update ai_credit_settings set value = 'of an older version' where name = 'citus'")
  const { database } = await open(t, pool)
  await t.rejects(database.start(), { code: 'FST_CREDITS_CITUS_FUNCTIONS', message: /-f tables\.sql -f citus\.sql/ })
})

t.test('with Citus, what is known by its id alone is looked up before, so that it can be sent to its account', { skip: pglite }, async t => {
  const own = await withLedger(t)
  const maker = createLedger(own)
  const [held, extended] = [await maker.hold(charge), await maker.hold(charge)]
  const [given, givenToo] = [await maker.grant({ userId: 'ann', credits: 5 }), await maker.grant({ userId: 'ann', credits: 5 })]
  const paid = await maker.deduct(charge)
  await createCatalogs(own)
  await distribute(own)
  const { pool, queries } = watched(t, own)
  const sent = () => queries.filter(({ text }) => /ai_credit_(capture|extend|revoke|refund)\(/.test(text))
  const ledger = createLedger(pool)
  t.match(await ledger.capture(held.id), { userId: 'ann', credits: 1 })
  t.match(await ledger.extend(extended.id, { ttl: 1000 }), { userId: 'ann' })
  t.match(await ledger.revoke(given.id), { userId: 'ann', credits: 2 })
  t.match(await ledger.refund({ usageId: paid.id }), { userId: 'ann', credits: 1 })
  const client = await pool.connect()
  t.match(await createLedger(pool).revoke(givenToo.id, { client }), { userId: 'ann', credits: 5 }, 'on a client of the host, as the first call')
  client.release()
  t.equal(sent().length, 4, 'and one by the client, whose queries are texts')
  t.ok(sent().every(({ values }) => values!.includes('ann')))
  await t.rejects(ledger.revoke('999999'), { code: 'FST_CREDITS_NOT_FOUND' })
  t.equal(sent().length, 4, 'nothing is sent for what there is not')
  const other = Array.from({ length: 20 }, (_, i) => `user ${i}`).find(userId => (hashText(userId) < 0) !== (hashText('ann') < 0))!
  await ledger.deduct({ ...charge, userId: other })
  const progress: number[] = []
  t.match(await ledger.reconcile(undefined, { onProgress: ({ accounts }) => progress.push(accounts) }), { ok: true, accounts: 2 })
  t.strictSame(progress, [1, 2], 'the accounts of each node by themselves')
})

t.test('with Citus, migrate leaves its functions alone, and otherwise runs citus.sql', { skip: pglite }, async t => {
  const pool = await withLedger(t)
  await createCatalogs(pool)
  await distribute(pool)
  const ledger = createLedger(pool)
  await ledger.migrate()
  await pool.query("insert into ai_credit_functions (number, oldest_caller, content) values (1000, 7, 'newer ones')")
  await pool.query("update ai_credit_settings set value = 'newer ones' where name = 'citus'")
  await createLedger(pool).migrate()
  t.equal((await createLedger(pool).deduct(charge)).balance.used, 1, 'newer ones that serve this version are fine')
  await pool.query("delete from ai_credit_functions where number = 1000; delete from ai_credit_settings where name = 'citus'")
  await t.rejects(ledger.migrate(), { message: 'This database does not have the extension citus' }, 'these catalogs are an imitation')
})

t.test('with Citus, a stricter isolation level is refused at start, and named', { skip: pglite }, async t => {
  const pool = await withLedger(t)
  await createCatalogs(pool)
  await distribute(pool)
  const strict = createPool(t, pool.options.connectionString!, { options: '-c default_transaction_isolation=serializable' })
  const refused = { code: 'FST_CREDITS_ISOLATION', isolation: 'serializable', message: /must be 'read committed', and it is 'serializable'/ }
  const { database } = await open(t, strict)
  await t.rejects(database.start(), refused)
  await t.rejects(createLedger(strict).balance('ann'), refused)
  await createLedger(pool).balance('ann')
})

t.test('reading anew goes through the pool', { skip: pglite }, async t => {
  const pool = await withLedger(t)
  await createCatalogs(pool)
  await distribute(pool)
  const { database } = await open(t, pool)
  const age = () => Reflect.set(Reflect.get(database, 'shards'), 'readAt', -Infinity)
  await database.start()
  await pool.query('update pg_dist_placement set groupid = 4 where shardid in (1, 2)')
  const user = Array.from({ length: 100 }, (_, i) => `user ${i}`).find(userId => hashText(userId) < 0)!
  t.equal(database.nodeOf(user), 7)
  age()
  t.equal(database.nodeOf(user), 7, 'nobody waits for it')
  while (database.nodeOf(user) === 7) await sleep(5)
  t.equal(database.nodeOf(user), 4)
  await database.close()
  age()
  t.equal(database.nodeOf(user), 4, 'a reading that is refused fails nobody')
})

const charge = { userId: 'ann', credits: 1, operation: 'chat' }

const options = { timeout: 5000, maxQueue: 100, prepare: true, timeZone: 'UTC', schema: undefined }

async function withLedger (t: Test) {
  const pool = createPool(t, await createLedgerDatabase(t))
  await createLedger(pool).migrate()
  return pool
}

/** A database on a pool of its own, and the statements that it sends. */
async function open (t: Test, of: pg.Pool) {
  const { pool, queries } = watched(t, of)
  return { database: new Database(pool, options, () => {}), get statements () { return queries.map(({ text }) => text) } }
}

/** Another pool on a database, and the queries that it sends. */
function watched (t: Test, { options: { connectionString, options: settings } }: pg.Pool) {
  const queries: pg.QueryConfig[] = []
  const pool = createPool(t, connectionString!, settings === undefined ? {} : { options: settings })
  pool.on('connect', client => {
    const query = client.query
    client.query = ((...args: [pg.QueryConfig]) => {
      queries.push(args[0])
      return Reflect.apply(query, client, args)
    }) as typeof query
  })
  return { pool, queries }
}

async function createCatalogs (pool: pg.Pool) {
  await pool.query(`
    set allow_system_table_mods = on;
    create table pg_catalog.pg_dist_partition (logicalrelid regclass not null, partmethod "char" not null);
    create table pg_catalog.pg_dist_shard (logicalrelid regclass not null, shardid bigint not null, shardminvalue text, shardmaxvalue text);
    create table pg_catalog.pg_dist_placement (placementid bigint not null, shardid bigint not null, shardstate integer not null, groupid integer not null)`)
}

async function distribute (pool: pg.Pool) {
  await pool.query(`
    insert into pg_dist_partition values ('ai_credits', 'h'), ('ai_credit_usage', 'h');
    insert into pg_dist_shard values
      ('ai_credits', 2, '0', '2147483647'), ('ai_credits', 1, '-2147483648', '-1'), ('ai_credit_usage', 3, '-2147483648', '2147483647');
    insert into pg_dist_placement values (1, 1, 1, 7), (2, 2, 1, 9), (3, 3, 1, 11), (4, 1, 4, 12), (5, 1, 1, 13)`)
  await pool.query("insert into ai_credit_settings select 'citus', content from ai_credit_functions") // as citus.sql does
}
