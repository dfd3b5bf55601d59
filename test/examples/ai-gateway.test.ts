import { once } from 'node:events'
import { request, type IncomingMessage } from 'node:http'
import { setTimeout as sleep } from 'node:timers/promises'
import jwt from '@fastify/jwt'
import Fastify from 'fastify'
import t from 'tap'
import { send, startServer, temporaryFolder } from './run-example.js'

const SECRETS = { JWT_SECRET: 'of the tokens', WEBHOOK_SECRET: 'of the payment provider' }
const PROVIDER = { 'x-webhook-secret': SECRETS.WEBHOOK_SECRET }

const issuer = Fastify()
await issuer.register(jwt, { secret: SECRETS.JWT_SECRET })
const bearer = (claims: object) => ({ authorization: `Bearer ${issuer.jwt.sign(claims)}` })

t.test('an AI gateway', async t => {
  const { url, said, output, errors, end } =
    await startServer(t, 'examples/ai-gateway/server.js', { ...SECRETS, DATA_DIR: await temporaryFolder(t) })

  const creditsOf = async (userId: string) => (await send(`${url}/api/credits`, undefined, bearer({ sub: userId }))).body.credits
  const settled = async (userId: string) => {
    for (;;) {
      const credits = await creditsOf(userId)
      if (credits.held === undefined) return credits
      await sleep(20)
    }
  }

  // Reads a stream, all of it or the first events. Not with fetch: that one connects again at once where it was aborted.
  async function chat (userId: string, prompt: string, events = Infinity) {
    const headers = { 'content-type': 'application/json', ...bearer({ sub: userId }) }
    const sent = request(`${url}/v1/chat`, { method: 'POST', headers, agent: false }).end(JSON.stringify({ prompt }))
    const [response]: [IncomingMessage] = await once(sent, 'response') as any
    let text = ''
    try {
      for await (const chunk of response.setEncoding('utf8')) {
        text += chunk
        if (text.split('data:').length > events) return { response, text, broken: false } // which destroys the connection
      }
    } catch {
      return { response, text, broken: true }
    }
    return { response, text, broken: false }
  }

  await t.test('a stream is paid for by its tokens', async t => {
    const { response, text } = await chat('ann', 'Why is the sky blue?')
    t.equal(response.statusCode, 200)
    t.match(response.headers['content-type'], 'text/event-stream')
    t.match(response.headers['credits-remaining'], '500', 'what is left after the hold')
    t.match(text, 'data: {"token":"blue?"}')
    t.match(text, 'data: [DONE]')
    // 5 tokens at 1 for 10, and 20 at 4 for 10, rounded up once
    const { available, used, usage_history: history } = await settled('ann')
    t.strictSame({ available, used }, { available: 991, used: 9 })
    t.match(history, [{ operation: 'chat', used: 9 }])
  })

  await t.test('a reader that goes away pays for what was made until then', async t => {
    await chat('bob', 'Why is the sky blue?', 3)
    const { used } = await settled('bob')
    t.ok(used >= 2 && used < 9, `${used}`)
  })

  await t.test('a model that breaks off is paid for what it made', async t => {
    const { broken } = await chat('cleo', 'Please break off')
    t.ok(broken)
    t.match(await settled('cleo'), { used: 3 }, '3 tokens at 1 for 10, and 5 at 4 for 10')
  })

  await t.test('a request that is malformed, or nobody\'s, costs nothing', async t => {
    t.equal((await send(`${url}/v1/chat`, { prompt: '' }, bearer({ sub: 'dan' }))).status, 400)
    t.equal((await send(`${url}/v1/chat`, { prompt: 'Hello' })).status, 401)
    t.equal((await send(`${url}/v1/chat`, { prompt: 'Hello' }, bearer({}))).status, 401)
    t.equal((await send(`${url}/api/credits/deduct`, { credits: 1, operation: 'chat' }, bearer({ sub: 'dan' }))).status, 404)
    t.match(await creditsOf('dan'), { available: 1000, used: 0 })
  })

  await t.test('a video that fails is refunded', async t => {
    const eve = bearer({ sub: 'eve' })
    const statusOf = async (prompt: string) => {
      const { status, body } = await send(`${url}/v1/videos`, { prompt, seconds: 10 }, eve)
      t.equal(status, 202)
      t.equal((await send(`${url}/v1/videos/${body.id}`, undefined, bearer({ sub: 'ann' }))).status, 404, 'nobody else\'s')
      for (;;) {
        const job = (await send(`${url}/v1/videos/${body.id}`, undefined, eve)).body
        if (job.status !== 'making') return job.status
        await sleep(20)
      }
    }
    t.equal(await statusOf('A cat at sea'), 'done')
    t.equal(await statusOf('Please fail'), 'failed, refunded')
    t.match(await creditsOf('eve'), { available: 960, used: 40 })
  })

  await t.test('a payment grants once, however often it is told', async t => {
    const payment = { payment_id: 'p-1', paid_at: '2026-01-01T12:00:00Z', user_id: 'fay', credits: 5000 }
    const paid = { ...payment, paid_at: new Date().toISOString() }
    const told = await Promise.all(Array.from({ length: 5 }, () => send(`${url}/purchases`, paid, PROVIDER)))
    t.strictSame(told.map(({ status }) => status), [200, 200, 200, 200, 200])
    t.equal(told.filter(({ body }) => body.granted).length, 1)
    t.match(await creditsOf('fay'), { available: 6000 })
    t.equal((await send(`${url}/purchases`, { ...paid, credits: 6000 }, PROVIDER)).status, 409)
    t.equal((await send(`${url}/purchases`, { ...paid, payment_id: 'p-2' })).status, 401)
    t.match(await creditsOf('fay'), { available: 6000 })
  })

  await t.test('who has too few credits is refused before the model is asked', async t => {
    const gus = bearer({ sub: 'gus' })
    for (const seconds of [60, 60, 30]) t.equal((await send(`${url}/v1/videos`, { prompt: 'A dog', seconds }, gus)).status, 202)
    t.match((await chat('gus', 'Hello')).text, 'FST_CREDITS_INSUFFICIENT')
    t.match(await creditsOf('gus'), { available: 400, used: 600 })
    for (const seconds of [60, 20]) t.equal((await send(`${url}/v1/videos`, { prompt: 'A dog', seconds }, gus)).status, 202)
    t.ok(await said(/gus has 80 credits left/))
  })

  await t.test('many streams at once, some of them aborted, and every account adds up', async t => {
    const users = ['ann', 'bob', 'hal', 'ida', 'jon', 'kim', 'lea', 'moe']
    await Promise.all(users.flatMap((userId, index) => [
      chat(userId, 'Why is the sky blue?'),
      chat(userId, 'Why is the sea salty?', index)
    ]))
    for (const userId of users) t.ok((await settled(userId)).used > 0)
    t.equal((await send(`${url}/reconciliation`, undefined, bearer({ sub: 'ann' }))).status, 403)
    t.match(await send(`${url}/reconciliation`, undefined, bearer({ sub: 'zoe', role: 'operator' })),
      { status: 200, body: { ok: true, differences: [] } })
  })

  t.equal(await end('SIGINT'), 0, output())
  t.equal(errors(), '')
})
