// not on Citus: there each node has numbers of its own
// Ids beyond 2^53, which a JavaScript number cannot hold: two that follow each other would become one. On Citus, the ids of a node
// begin at a multiple of 2^48.
import t, { type Test } from 'tap'
import type pg from 'pg'
import { createLedger, type Credits } from '../../src/index.js'
import { rowId } from '../../src/ledger/input/check.js'
import { readResults } from '../../src/ledger/posting/wire.js'
import { buildGateway } from '../helper/app.js'
import { createLedgerDatabase, createPool, pglite } from '../helper/database.js'
import { hear } from '../helper/hear.js'

const first = { usage: 9007199254740993n, holds: 9007199254750001n, grants: 9007199254760003n }
const last = { usage: 9223372036854770001n, holds: 9223372036854760001n, grants: 9223372036854750001n }
const ann = { userId: 'ann', operation: 'chat', credits: 2 }
const management = { authorize: () => true }

for (const [name, ids] of Object.entries({ 'just above 2^53': first, 'of 19 digits': last })) {
  t.test(`ids ${name}: calls alone`, async t => {
    const { ledger, pool } = await open(t, ids)
    await useAll(t, ledger, pool, 1)
  })

  t.test(`ids ${name}: calls that share statements`, async t => {
    const { ledger, pool } = await open(t, ids)
    await ledger.balance('ann')
    await useAll(t, ledger, pool, 12)
  })

  t.test(`ids ${name}: calls of a process that did not make the holds`, async t => {
    const { ledger, pool } = await open(t, ids)
    const holds = await Promise.all(Array.from({ length: 20 }, () => ledger.hold(ann)))
    const other = createLedger(pool, { prepare: !pglite })
    const captures = await Promise.all(holds.map(({ id }) => other.capture(id)))
    t.strictSame(captures.map(({ holdId }) => holdId), holds.map(({ id }) => id))
    t.strictSame(captures.map(({ id }) => id).sort(), await idsOf(pool, 'ai_credit_usage'))
    t.match(await ledger.reconcile(), { ok: true })
  })

  t.test(`ids ${name}: the routes`, async t => {
    const app = await buildGateway(t, { management, allowance: 1000 })
    await setIds(app.pg.pool, ids)
    const post = async (path: string, body: object, headers = {}) => {
      const reply = await app.inject({ method: 'POST', url: `/api/credits${path}`, body, headers })
      t.equal(reply.statusCode, 200, `${path} ${reply.body}`)
      return reply.json()
    }
    const charge = { user_id: 'ann', credits: 2, operation: 'chat' }
    const key = { 'idempotency-key': 'once' }
    const holds = [await post('/holds', charge, key), await post('/holds', charge)]
    t.strictSame(holds.map(({ id }) => id), [String(ids.holds), String(ids.holds + 1n)])
    t.equal((await post('/holds', charge, key)).id, holds[0].id)
    await post(`/holds/${holds[0].id}/extend`, { ttl: 60_000 })
    const captured = await post(`/holds/${holds[0].id}/capture`, {})
    t.match(captured, { hold_id: holds[0].id, id: String(ids.usage) })
    t.equal((await post(`/holds/${holds[1].id}/release`, {})).id, holds[1].id)
    const refunded = await post('/refunds', { usage_id: captured.id, credits: 1 })
    t.match(refunded, { usage_id: captured.id, id: String(ids.usage + 1n) })
    const granted = await post('/grants', { user_id: 'ann', credits: 5, reason: 'bonus' })
    t.ok((await idsOf(app.pg.pool, 'ai_credit_grants')).includes(granted.id), granted.id)
    const { entries } = (await app.inject('/api/credits/statement?user_id=ann')).json()
    t.strictSame(entries.map((entry: any) => [entry.kind, entry.id, entry.reference_id]), [
      ['opening', undefined, undefined], ['hold', holds[0].id, undefined], ['hold', holds[1].id, undefined],
      ['capture', captured.id, holds[0].id], ['release', undefined, holds[1].id], ['refund', refunded.id, captured.id],
      ['grant', granted.id, undefined]
    ])
  })
}

t.test('an id that no row can have is not found', async t => {
  const { ledger } = await open(t, first)
  await ledger.hold(ann)
  for (const id of ['9223372036854775808', '9'.repeat(19), '9'.repeat(20), '1e3', '-1', '', ' 1', '0x1', '١']) {
    await t.rejects(ledger.release(id), { code: 'FST_CREDITS_NOT_FOUND' }, id)
    const calls = await Promise.allSettled([ledger.release(id, { userId: 'ann' }), ledger.deduct(ann)])
    t.match(calls, [{ reason: { code: 'FST_CREDITS_NOT_FOUND' } }, { status: 'fulfilled' }])
  }
  await t.rejects(ledger.release('9223372036854775807'), { code: 'FST_CREDITS_NOT_FOUND' })
})

t.test('zeros in front of an id are no part of it', async t => {
  const { ledger } = await open(t, first)
  const { id } = await ledger.hold(ann)
  t.equal(rowId(`00${id}`, 'hold'), id)
  t.equal(rowId('000', 'hold'), '0')
  const [released, again] = await Promise.all([
    ledger.release(`00${id}`, { userId: 'ann' }), ledger.release(id, { userId: 'ann' }), ledger.deduct(ann)
  ])
  t.match(released, { id: `00${id}`, credits: 2, replayed: false })
  t.match(again, { id, credits: 2, replayed: true })
})

t.test('results of a shared statement are read exactly, or not at all', t => {
  const read = (answers: string) => readResults([{}, { columns: ['credits'] }], { answers, refusals: null })
  t.strictSame(read('{1,9007199254740993,9007199254740991,-5,0,2,7,-9007199254740991,1,2,3}'), [
    { verdict: 'accepted', id: '9007199254740993', total: 9007199254740991, used: -5, held: 0 },
    { verdict: 'replayed', id: '7', total: -9007199254740991, used: 1, held: 2, credits: 3 }
  ])
  for (const answers of ['{1,7,1,2,3,2,7,1,2,3}', '{1,7,1,2,3,2,7,1,2,3,4,5}', '{1,7,NULL,2,3,2,7,1,2,3,4}']) {
    t.throws(() => read(answers), /other results/, answers)
  }
  t.end()
})

async function open (t: Test, ids: typeof first) {
  const pool = createPool(t, await createLedgerDatabase(t))
  const ledger = createLedger(pool, { allowance: 1000, prepare: !pglite })
  await ledger.migrate()
  await setIds(pool, ids)
  return { ledger, pool }
}

async function setIds (pool: pg.Pool, { usage, holds, grants }: typeof first) {
  await pool.query("select setval('ai_credit_usage_id_seq', $1, false)", [usage])
  await pool.query("select setval('ai_credit_holds_id_seq', $1, false)", [holds])
  await pool.query("select setval('ai_credit_grants_id_seq', $1, false)", [grants])
}

async function idsOf (pool: pg.Pool, table: string): Promise<string[]> {
  const { rows } = await pool.query(`select id::text from ${table} order by 1`)
  return rows.map(({ id }) => id)
}

/** Makes each call of the ledger `count` times at once, with the ids that the calls before have returned. */
async function useAll (t: Test, credits: Credits, pool: pg.Pool, count: number) {
  const heard = hear(credits)
  const each = <Result>(call: (index: number) => Promise<Result>) => Promise.all(Array.from({ length: count }, (_, i) => call(i)))
  const deducts = await each(i => credits.deduct({ ...ann, idempotencyKey: `deduct ${i}` }))
  const holds = await each(i => credits.hold({ ...ann, credits: 5, idempotencyKey: `hold ${i}` }))
  const others = await each(() => credits.hold(ann))
  const grants = await each(i => credits.grant({ userId: 'ann', credits: 3, reason: 'bonus', idempotencyKey: `grant ${i}` }))
  const extended = await each(i => credits.extend(holds[i]!.id, { ttl: 60_000 }))
  const captures = await each(i => credits.capture(holds[i]!.id, { userId: 'ann', credits: 1, final: false, idempotencyKey: `capture ${i}` }))
  const finals = await each(i => credits.capture(holds[i]!.id))
  const released = await each(i => credits.release(others[i]!.id))
  const refunds = await each(i => credits.refund({ usageId: deducts[i]!.id, credits: 1 }))
  const byKey = await each(i => credits.refund({ userId: 'ann', deductKey: `deduct ${i}`, credits: 1 }))
  const revoked = await each(i => credits.revoke(grants[i]!.id))

  t.strictSame(extended.map(({ id }) => id), holds.map(({ id }) => id))
  t.strictSame(captures.map(({ holdId }) => holdId), holds.map(({ id }) => id))
  t.strictSame(released.map(({ id, credits }) => [id, credits]), others.map(({ id }) => [id, 2]))
  t.strictSame(refunds.map(({ usageId }) => usageId), deducts.map(({ id }) => id))
  t.strictSame(byKey.map(({ usageId }) => usageId), deducts.map(({ id }) => id))
  t.strictSame(revoked.map(({ id }) => id), grants.map(({ id }) => id))
  t.strictSame([...holds, ...others].map(({ id }) => id).sort(), await idsOf(pool, 'ai_credit_holds'))
  const kept = await idsOf(pool, 'ai_credit_grants') // among them what the account began with
  t.strictSame(grants.filter(({ id }) => !kept.includes(id)), [])
  t.equal(new Set(grants.map(({ id }) => id)).size, count)
  const records = [...deducts, ...captures, ...finals, ...refunds, ...byKey].map(({ id }) => id)
  t.strictSame([...records].sort(), await idsOf(pool, 'ai_credit_usage'))

  const again = await each(i => credits.deduct({ ...ann, idempotencyKey: `deduct ${i}` }))
  t.strictSame(again.map(({ id, replayed }) => [id, replayed]), deducts.map(({ id }) => [id, true]))
  const heldAgain = await each(i => credits.hold({ ...ann, credits: 5, idempotencyKey: `hold ${i}` }))
  t.strictSame(heldAgain.map(({ id, replayed }) => [id, replayed]), holds.map(({ id }) => [id, true]))
  const grantedAgain = await each(i => credits.grant({ userId: 'ann', credits: 3, reason: 'bonus', idempotencyKey: `grant ${i}` }))
  t.strictSame(grantedAgain.map(({ id, replayed }) => [id, replayed]), grants.map(({ id }) => [id, true]))
  const capturedAgain = await each(i => credits.capture(holds[i]!.id, { userId: 'ann', credits: 1, final: false, idempotencyKey: `capture ${i}` }))
  t.strictSame(capturedAgain.map(({ id, holdId, replayed }) => [id, holdId, replayed]), captures.map(({ id, holdId }) => [id, holdId, true]))
  const releasedAgain = await each(i => credits.release(others[i]!.id, { userId: 'ann' }))
  t.strictSame(releasedAgain.map(({ id, replayed }) => [id, replayed]), others.map(({ id }) => [id, true]))

  const told = await heard()
  const idsOfEvents = (event: string, field: string) =>
    told.filter(([name]) => name === event).map(([, payload]) => (payload as any)[field]).filter(id => id !== undefined).sort()
  t.strictSame(idsOfEvents('deducted', 'id'), [...deducts, ...captures, ...finals].map(({ id }) => id).sort())
  t.strictSame(idsOfEvents('deducted', 'holdId'), [...holds, ...holds].map(({ id }) => id).sort())
  t.strictSame(idsOfEvents('granted', 'id'), grants.map(({ id }) => id).sort())

  const { entries } = await credits.statement('ann')
  const inStatement = (...kinds: string[]) => entries.filter(({ kind }) => kinds.includes(kind)) as any[]
  t.strictSame(inStatement('deduct', 'capture', 'refund').map(({ id }) => id).sort(), [...records].sort())
  t.strictSame(inStatement('hold').map(({ id }) => id).sort(), [...holds, ...others].map(({ id }) => id).sort())
  t.strictSame(inStatement('grant').map(({ id }) => id).sort(), grants.map(({ id }) => id).sort())
  t.strictSame(inStatement('release').map(({ referenceId }) => referenceId).sort(), others.map(({ id }) => id).sort())
  t.strictSame(inStatement('revoke').map(({ referenceId }) => referenceId).sort(), grants.map(({ id }) => id).sort())
  t.match((await credits.history('ann')).entries, [{ used: count * (2 + 1 + 4 - 2) }])
  t.match(await credits.reconcile(), { ok: true })
}
