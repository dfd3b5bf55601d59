import t from 'tap'
import { buildGateway, getBalance, postDeduct } from '../helper/app.js'

t.test('a deduct answers the new balance', async t => {
  const app = await buildGateway(t)
  const reply = await postDeduct(app, {
    user_id: 'ann', credits: 100, operation: 'video_generation', metadata: { duration: 30, quality: 'hd' }
  })
  t.equal(reply.statusCode, 200)
  t.strictSame(reply.json(), {
    message: 'Credits deducted successfully', credits: { available: 9900, total: 10000, used: 100 }
  })
})

t.test('a deduct without user_id is the default user\'s', async t => {
  const app = await buildGateway(t, { defaultUser: 'house' })
  await postDeduct(app, { credits: 1, operation: 'chat' })
  t.strictSame(await getBalance(app, 'house'), { available: 9999, total: 10000, used: 1 })
})

t.test('the last credit can be spent, and not one more', async t => {
  const app = await buildGateway(t, { allowance: 10 })
  t.equal((await postDeduct(app, { credits: 10, operation: 'chat' })).statusCode, 200)
  const reply = await postDeduct(app, { credits: 1, operation: 'chat' })
  t.equal(reply.statusCode, 402)
  t.strictSame(reply.json(), {
    statusCode: 402,
    code: 'FST_CREDITS_INSUFFICIENT',
    error: 'Payment Required',
    message: 'Insufficient credits: 1 required, 0 available',
    credits: { available: 0, total: 10, used: 10 },
    required: 1
  })
})

t.test('a refused deduct changes nothing but creates the account', async t => {
  const app = await buildGateway(t, { allowance: 10 })
  t.equal((await postDeduct(app, { user_id: 'ann', credits: 11, operation: 'chat' })).statusCode, 402)
  const { rows } = await app.pg.query('select user_id, total_credits, used_credits, seq from ai_credits')
  t.strictSame(rows, [{ user_id: 'ann', total_credits: '10', used_credits: '0', seq: '0' }])
  t.strictSame((await app.pg.query('select from ai_credit_usage')).rows, [])
  t.strictSame((await app.pg.query('select from ai_credit_daily_usage')).rows, [])
})

t.test('a deduct writes its usage record, in the account\'s order', async t => {
  const app = await buildGateway(t)
  await postDeduct(app, { user_id: 'ann', credits: 2, operation: 'chat', metadata: { words: 3 } })
  await postDeduct(app, { user_id: 'ann', credits: 5, operation: 'image' })
  const { rows } = await app.pg.query(`select user_id, credits_used, operation, metadata, seq, kind, total_after,
    used_after, held_after, idempotency_key from ai_credit_usage order by id`)
  const common = { user_id: 'ann', kind: 'deduct', total_after: '10000', held_after: '0', idempotency_key: null }
  t.strictSame(rows, [
    { ...common, credits_used: '2', operation: 'chat', metadata: { words: 3 }, seq: '1', used_after: '2' },
    { ...common, credits_used: '5', operation: 'image', metadata: {}, seq: '2', used_after: '7' }
  ])
})

t.test('other plugins deduct through the decorator', async t => {
  const app = await buildGateway(t)
  const deduction = await app.credits.deduct({ userId: 'ann', credits: 3, operation: 'chat' })
  t.match(deduction.id, /^\d+$/)
  t.strictSame({ ...deduction, id: '' }, {
    id: '',
    userId: 'ann',
    credits: 3,
    operation: 'chat',
    balance: { available: 9997, total: 10000, used: 3, held: 0 },
    replayed: false
  })
  t.strictSame(await app.credits.balance('ann'), deduction.balance)
  const { deduct } = app.credits
  t.equal((await deduct({ credits: 1, operation: 'chat' })).userId, 'default_user')
})

t.test('the largest balance is spent to the last credit without rounding', async t => {
  const app = await buildGateway(t, { allowance: Number.MAX_SAFE_INTEGER })
  await app.credits.deduct({ credits: 1, operation: 'chat' })
  t.strictSame(await getBalance(app), { available: 9007199254740990, total: 9007199254740991, used: 1 })
  await app.credits.deduct({ credits: 9007199254740990, operation: 'chat' })
  t.strictSame(await getBalance(app), { available: 0, total: 9007199254740991, used: 9007199254740991 })
})

t.test('held credits show while there are any', async t => {
  const app = await buildGateway(t)
  await app.credits.balance('ann')
  await app.pg.query("update ai_credits set held_credits = 40 where user_id = 'ann'")
  const { credits } = (await postDeduct(app, { user_id: 'ann', credits: 10, operation: 'chat' })).json()
  t.strictSame(credits, { available: 9950, total: 10000, used: 10, held: 40 })
  t.strictSame(await getBalance(app, 'ann'), credits)
  t.equal((await postDeduct(app, { user_id: 'ann', credits: 9951, operation: 'chat' })).statusCode, 402)
})
