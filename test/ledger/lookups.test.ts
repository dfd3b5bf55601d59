// not on Citus: counts what one server reads
// needs a real server
import type pg from 'pg'
import t from 'tap'
import { createLedger, type Ledger, type Queryable } from '../../src/index.js'
import { createLedgerDatabase, createPool } from '../helper/database.js'
import { readsOf } from '../helper/reads.js'

// A session keeps its plans until a table is analyzed. Where two indexes look equally good at some number of rows, it keeps the
// worse one for a long time if it plans just then.
const PLANNED_AT = [0, 50, 100, 150, 200, 250, 300, 400]
const MORE = 20_000
// Index entries that a call reads in all of these sessions together. It is far less, but what has changed leaves dead entries, which
// are read until no older transaction runs on the server, not even in another database.
const ENOUGH = 15_000

const allowance = '{"credits": 1000000}'

/** What a session calls once, and again when its account has more. */
interface Session { ledger: Ledger, client: Queryable, userId: string, key: (name: string) => string }

const calls: Record<string, (session: Session, name: string) => Promise<unknown>> = {
  'a deduct': async (session, name) => await deduct(session, `deduct ${name}`),
  'a deduct of a shared statement': async (session, name) => await share(session, 'deduct', `shared ${name}`),
  'a hold': async (session, name) => await hold(session, `hold ${name}`),
  'a hold of a shared statement': async (session, name) => await share(session, 'hold', `shared ${name}`, 900_000),
  'a capture': async (session, name) => {
    const { ledger, client, key } = session
    const { id } = await hold(session, `captured ${name}`)
    await ledger.capture(id, { idempotencyKey: key(name), client })
  },
  'a hold that lives longer': async (session, name) => {
    const { ledger, client } = session
    const { id } = await hold(session, `extended ${name}`)
    await ledger.extend(id, { ttl: 1_000_000, client })
    await ledger.release(id, { client })
  },
  'a grant': async ({ ledger, client, userId, key }, name) => {
    const { id } = await ledger.grant({ userId, credits: 1, idempotencyKey: key(`grant ${name}`), client })
    await ledger.revoke(id, { client })
  },
  'a grant that ends while credits are held': async (session, name) => {
    const { ledger, client, userId } = session
    const held = await hold(session, `beside ${name}`)
    const { id } = await ledger.grant({ userId, credits: 1, client })
    await ledger.revoke(id, { client })
    await ledger.release(held.id, { client })
  },
  'a refund': async (session, name) => {
    const { ledger, client, key } = session
    const { id } = await deduct(session, `refunded ${name}`, 1)
    await ledger.refund({ usageId: id, idempotencyKey: key(`refund ${name}`), client })
  },
  'a refund by the key of its deduct': async (session, name) => {
    const { ledger, client, userId, key } = session
    await deduct(session, `named ${name}`, 1)
    await ledger.refund({ userId, deductKey: key(`named ${name}`), client })
  },
  'a grant that expires': async (session, name) => {
    const { ledger, client, userId } = session
    const { id } = await ledger.grant({ userId, credits: 1, client })
    await ended(session, 'grants', id)
    await deduct(session, `after expiry ${name}`)
  },
  'a hold that lapses': async (session, name) => {
    const { id } = await hold(session, `lapsing ${name}`)
    await ended(session, 'holds', id)
    await deduct(session, `after lapse ${name}`)
  },
  'a grant that expires and a hold that lapses': async (session, name) => {
    const { ledger, client, userId } = session
    const held = await hold(session, `lapsing too ${name}`)
    await ended(session, 'grants', (await ledger.grant({ userId, credits: 1, client })).id)
    await ended(session, 'holds', held.id)
    await deduct(session, `after both ${name}`)
  },
  // Of some of the postings that the sessions have made first.
  pruning: async ({ client, userId }) =>
    await client.query('select ai_credit_prune(7, $1::varchar, array[$1::varchar], now(), 40, 1000)', [userId]),
  'a page of the statement': async ({ ledger, client, userId }) => await ledger.statement(userId, { limit: 10, client })
}

for (const [what, kind, userId, length] of [
  ['short keys of deducts', 'deduct', 'a', 0],
  ['long keys of deducts', 'deduct', 'a', 255],
  ['long keys of deducts, and a long account', 'deduct', 'a'.repeat(255), 255],
  ['long keys of captures', 'capture', 'a', 255]
] as const) {
  t.test(`what a call reads does not depend on when its session planned: ${what}`, async t => {
    const pool = createPool(t, await createLedgerDatabase(t), { max: PLANNED_AT.length, options: '-c plan_cache_mode=force_generic_plan' })
    const ledger = createLedger(pool, { allowance: 1_000_000 })
    await ledger.migrate()
    await ledger.balance(userId)
    await withoutAutovacuum(pool)
    const key = (name: string) => name.padEnd(length, '.')
    // A session is at its place again in each round: all are taken, and given back in the order in which the pool hands them out.
    const inSessions = async (work: (session: Session, place: number) => Promise<unknown>) => {
      const clients = await Promise.all(PLANNED_AT.map(() => pool.connect()))
      clients.sort((a, b) => processOf(a) - processOf(b))
      for (const [place, client] of clients.entries()) await work({ ledger, client, userId, key }, place)
      for (const client of clients) client.release()
    }
    await readsOf(pool, () => inSessions(async (session, place) => {
      await fill(session, kind, PLANNED_AT[place]! - (PLANNED_AT[place - 1] ?? 0))
      for (const call of Object.values(calls)) await call(session, `first ${place}`)
      if (place === PLANNED_AT.length - 1) await fill(session, kind, MORE)
    }))
    for (const [name, call] of Object.entries(calls)) {
      const { entries, scans } = await readsOf(pool, () => inSessions((session, place) => call(session, `again ${place}`)))
      t.ok(entries < ENOUGH, `${name}: ${entries} index entries`)
      t.equal(scans, 0, `${name}: no table read as a whole`)
    }
  })
}

// Of no credits where these do not matter, as each change of a grant leaves dead entries. A ledger takes no such call.
async function deduct ({ client, userId, key }: Session, name: string, credits = 0): Promise<{ id: string }> {
  const { rows: [record] } = await client.query("select id::text from ai_credit_deduct(7, $1, $2, 'chat', '{}', $3, null, null, null, $4, 1000)",
    [userId, credits, key(name), allowance])
  return record
}

async function hold ({ ledger, client, userId, key }: Session, name: string) {
  return await ledger.hold({ userId, credits: 1, operation: 'chat', idempotencyKey: key(name), client })
}

async function share ({ client, userId, key }: Session, kind: string, name: string, ttl: number | null = null) {
  const calls = JSON.stringify([[1, kind, key(name), 0, 'chat', {}, ttl]])
  await client.query('select ai_credit_execute(7, $1::varchar, array[$1::varchar], $2, $3, false, null)', [userId, calls, allowance])
}

// Its time has come.
async function ended ({ client, userId }: Session, table: string, id: string) {
  await client.query(`update ai_credit_${table} set expires_at = now() - interval '1 second' where id = $1`, [id])
  await client.query("update ai_credits set due_at = '-infinity' where user_id = $1", [userId])
}

// Adds deducts or captures, holds that are closed, and grants that have expired, all with keys. Calls would take longer.
async function fill ({ client, userId, key }: Session, kind: 'deduct' | 'capture', count: number) {
  if (count === 0) return
  await client.query(`
    with added as (
      select user_id, seq + i as seq, rpad('filled ' || seq + i, greatest($2, length('filled ' || seq + i)), '.') as key
      from ai_credits, generate_series(1, $3::int) i where user_id = $1
    ), records as (
      insert into ai_credit_usage (user_id, seq, kind, credits_used, operation, metadata, created_at, total_after, used_after, held_after,
        idempotency_key, request_hash, hold_id, amount, uncollected)
      select user_id, seq, $4::text, 0, 'chat', '{}', now(), 0, 0, 0, key, '', case $4::text when 'capture' then -seq end, 0, 0 from added
    ), holds as (
      insert into ai_credit_holds (user_id, seq, state, credits, credits_left, operation, metadata, ttl, created_at, expires_at,
        total_after, used_after, held_after, idempotency_key, request_hash, closing_seq)
      select user_id, seq, 'released', 1, 0, 'chat', '{}', 1, now(), now(), 0, 0, 0, key, '', seq from added
    ), grants as (
      insert into ai_credit_grants (user_id, kind, state, credits, credits_left, priority, created_at, seq, total_after, used_after, held_after,
        idempotency_key)
      select user_id, 'grant', 'expired', 1, 0, 50, now(), seq, 0, 0, 0, key from added
    )
    update ai_credits set seq = seq + $3, summed_seq = seq + $3 where user_id = $1`, [userId, key('').length, count, kind])
}

// Prevents autovacuum, because it would make the sessions plan again.
async function withoutAutovacuum (pool: pg.Pool): Promise<void> {
  const { rows } = await pool.query("select relname from pg_class where relkind = 'r' and relname like 'ai_credit%'")
  for (const { relname } of rows) await pool.query(`alter table ${relname} set (autovacuum_enabled = off)`)
}

function processOf (client: pg.PoolClient): number {
  return (client as unknown as { processID: number }).processID
}
