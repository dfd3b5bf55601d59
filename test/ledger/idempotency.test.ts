import t from 'tap'
import { buildGateway, getBalance, postDeduct } from '../helper/app.js'
import { dumpDatabase } from '../helper/schema-dump.js'

const charge = { userId: 'ann', credits: 10, operation: 'chat', metadata: { a: 1, b: { c: [2], d: 'e' } }, idempotencyKey: 'k' }
const body = { user_id: 'ann', credits: 10, operation: 'chat', metadata: { a: 1 } }
const key = { 'idempotency-key': 'k' }
const conflict = { statusCode: 409, code: 'FST_CREDITS_IDEMPOTENCY_CONFLICT' }

t.test('a repeated call is answered as the first one was, and charged once', async t => {
  const { credits } = await buildGateway(t)
  const first = await credits.deduct(charge)
  t.equal(first.replayed, false)
  await credits.deduct({ userId: 'ann', credits: 500, operation: 'chat' })
  t.strictSame(await credits.deduct(charge), { ...first, replayed: true })
  t.strictSame(await credits.balance('ann'), { available: 9490, total: 10000, used: 510, held: 0 })
})

t.test('a repeated request gets the first reply and a header that says so', async t => {
  const app = await buildGateway(t)
  const first = await postDeduct(app, body, key)
  t.equal(first.statusCode, 200)
  t.notOk('idempotency-replayed' in first.headers)
  await postDeduct(app, { ...body, credits: 500 })
  const second = await postDeduct(app, body, key)
  t.equal(second.statusCode, 200)
  t.equal(second.body, first.body)
  t.equal(second.headers['idempotency-replayed'], 'true')
  t.strictSame(await getBalance(app, 'ann'), { available: 9490, total: 10000, used: 510 })
})

t.test('a replay writes nothing', async t => {
  const app = await buildGateway(t)
  await app.credits.deduct(charge)
  const before = await dumpDatabase(app.pg)
  t.equal((await app.credits.deduct(charge)).replayed, true)
  t.equal(await dumpDatabase(app.pg), before)
})

t.test('a replay is answered even when the balance no longer covers it', async t => {
  const app = await buildGateway(t, { allowance: 10 })
  const first = await postDeduct(app, body, key)
  const second = await postDeduct(app, body, key)
  t.equal(second.statusCode, 200)
  t.equal(second.body, first.body)
})

t.test('metadata with its keys in another order is the same request', async t => {
  const { credits } = await buildGateway(t)
  const { id } = await credits.deduct(charge)
  const again = await credits.deduct({ ...charge, metadata: { b: { d: 'e', c: [2] }, a: 1 } })
  t.match(again, { id, replayed: true })
})

t.test('metadata left out is the same request as empty metadata', async t => {
  const { credits } = await buildGateway(t)
  const { metadata: _metadata, ...bare } = charge
  const { id } = await credits.deduct(bare)
  t.match(await credits.deduct({ ...bare, metadata: {} }), { id, replayed: true })
})

t.test('the key with other content is a conflict and charges nothing', async t => {
  const app = await buildGateway(t)
  await app.credits.deduct(charge)
  const others = [
    { credits: 11 }, { operation: 'image' }, { metadata: {} }, { metadata: { ...charge.metadata, a: '1' } },
    { metadata: { ...charge.metadata, f: null } }, { metadata: { a: 1, b: { c: [2, 2], d: 'e' } } }
  ]
  for (const other of others) {
    await t.rejects(app.credits.deduct({ ...charge, ...other }), conflict, JSON.stringify(other))
    const reply = await postDeduct(app, { ...body, metadata: charge.metadata, ...other }, key)
    t.equal(reply.statusCode, 409)
    t.strictSame(reply.json(), {
      ...conflict,
      error: 'Conflict',
      message: 'The idempotency key was already used for a different request'
    })
  }
  t.strictSame(await getBalance(app, 'ann'), { available: 9990, total: 10000, used: 10 })
  t.equal((await app.credits.deduct(charge)).replayed, true, 'the key still means what it meant')
})

t.test('a conflict is one even when the balance would not cover it', async t => {
  const { credits } = await buildGateway(t, { allowance: 10 })
  await credits.deduct(charge)
  await t.rejects(credits.deduct({ ...charge, credits: 11 }), conflict)
})

t.test('the same key of another account is another key', async t => {
  const app = await buildGateway(t)
  const ann = await app.credits.deduct(charge)
  const bob = await app.credits.deduct({ ...charge, userId: 'bob', credits: 20 })
  t.equal(bob.replayed, false)
  t.not(bob.id, ann.id)
  t.strictSame(await getBalance(app, 'bob'), { available: 9980, total: 10000, used: 20 })
})

t.test('keys differ by case, accents and spaces, and may be long', async t => {
  const { credits } = await buildGateway(t)
  const keys = ['k', 'K', 'k ', ' k', 'ḱ', 'k\u0301', 'k'.repeat(255), `${'k'.repeat(254)}l`]
  for (const idempotencyKey of keys) t.equal((await credits.deduct({ ...charge, idempotencyKey })).replayed, false)
  for (const idempotencyKey of keys) t.equal((await credits.deduct({ ...charge, idempotencyKey })).replayed, true)
  t.equal((await credits.balance('ann')).used, 80)
})

t.test('calls without a key are never taken for each other', async t => {
  const { credits } = await buildGateway(t)
  const { idempotencyKey: _key, ...keyless } = charge
  await credits.deduct(keyless)
  t.equal((await credits.deduct(keyless)).replayed, false)
  t.equal((await credits.balance('ann')).used, 20)
})

t.test('a refusal is not remembered', async t => {
  const app = await buildGateway(t, { allowance: 9 })
  t.equal((await postDeduct(app, body, key)).statusCode, 402)
  await app.pg.query("update ai_credits set total_credits = 15 where user_id = 'ann'")
  const reply = await postDeduct(app, body, key)
  t.equal(reply.statusCode, 200)
  t.notOk('idempotency-replayed' in reply.headers)
  t.strictSame(reply.json().credits, { available: 5, total: 15, used: 10 })
})

t.test('a refused key may be used for another request', async t => {
  const { credits } = await buildGateway(t, { allowance: 9 })
  await t.rejects(credits.deduct(charge), { code: 'FST_CREDITS_INSUFFICIENT' })
  t.equal((await credits.deduct({ ...charge, credits: 9 })).replayed, false)
})

t.test('duplicates in flight together charge once, and all get the same reply', async t => {
  const app = await buildGateway(t)
  const replies = await Promise.all(Array.from({ length: 20 }, () => postDeduct(app, body, key)))
  t.strictSame(replies.map(({ statusCode }) => statusCode), replies.map(() => 200))
  t.equal(new Set(replies.map(({ body }) => body)).size, 1)
  t.equal(replies.filter(({ headers }) => headers['idempotency-replayed'] === undefined).length, 1)
  t.strictSame(await getBalance(app, 'ann'), { available: 9990, total: 10000, used: 10 })
})

t.test('different requests of one key in flight together: one is charged, the others conflict', async t => {
  const app = await buildGateway(t)
  const replies = await Promise.all(Array.from({ length: 10 }, (_, index) => postDeduct(app, { ...body, credits: index + 1 }, key)))
  t.strictSame(replies.map(({ statusCode }) => statusCode).sort(), [200, ...Array.from({ length: 9 }, () => 409)])
  const { used } = await getBalance(app, 'ann')
  t.equal(replies[used - 1]!.statusCode, 200)
})

t.test('an empty or too long key is refused, and charges nothing', async t => {
  const app = await buildGateway(t)
  for (const idempotencyKey of ['', 'k'.repeat(256)]) {
    t.equal((await postDeduct(app, body, { 'idempotency-key': idempotencyKey })).statusCode, 400)
    await t.rejects(app.credits.deduct({ ...charge, idempotencyKey }), { code: 'FST_CREDITS_INVALID', field: 'idempotencyKey' })
  }
  t.strictSame(await getBalance(app, 'ann'), { available: 10000, total: 10000, used: 0 })
})

t.test('a key holds in the host\'s transaction too, and goes when that is rolled back', async t => {
  const { credits, pg } = await buildGateway(t)
  const client = await pg.connect()
  await client.query('begin')
  const first = await credits.deduct({ ...charge, client })
  t.strictSame(await credits.deduct({ ...charge, client }), { ...first, replayed: true })
  await t.rejects(credits.deduct({ ...charge, credits: 11, client }), conflict)
  await client.query('rollback')
  client.release()

  const second = await credits.deduct(charge)
  t.equal(second.replayed, false)
  t.not(second.id, first.id)
  t.equal((await credits.balance('ann')).used, 10)
})
