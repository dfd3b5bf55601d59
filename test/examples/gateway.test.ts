import jwt from '@fastify/jwt'
import Fastify from 'fastify'
import t from 'tap'
import { send, startServer, temporaryFolder } from './run-example.js'

const SECRET = 'the secret of this test'

const issuer = Fastify()
await issuer.register(jwt, { secret: SECRET })

const bearer = (claims: object) => ({ authorization: `Bearer ${issuer.jwt.sign(claims)}` })

const ALICE = bearer({ sub: 'alice' })

t.test('an existing gateway that charges credits', async t => {
  const { url, output, errors, end } =
    await startServer(t, 'examples/gateway/server.js', { DATA_DIR: await temporaryFolder(t), JWT_SECRET: SECRET })
  const chat = (prompt: string, headers = ALICE) => send(`${url}/v1/chat`, { prompt }, headers)
  const deduct = (body: object, headers?: Record<string, string>) =>
    send(`${url}/billing/credits/deduct`, { credits: 5, operation: 'chat', ...body }, headers)

  await t.test('needs a token, except for the routes outside', async t => {
    t.equal((await send(`${url}/billing/credits`)).status, 401)
    t.equal((await deduct({ user_id: 'alice' })).status, 401)
    t.equal((await send(`${url}/v1/chat`, { prompt: 'Hello' })).status, 401)
    t.equal((await send(`${url}/v1/chat`, { prompt: 'Hello' }, bearer({ sub: 'alice', exp: 1 }))).status, 401)
    t.strictSame(await send(`${url}/health`), { status: 200, body: { status: 'ok' } })
  })

  await t.test('the account is the one of the token', async t => {
    const own = { status: 200, body: { credits: { available: 10000, total: 10000, used: 0, usage_history: [] } } }
    t.strictSame(await send(`${url}/billing/credits`, undefined, ALICE), own)
    t.strictSame(await send(`${url}/billing/credits?user_id=alice`, undefined, ALICE), own)
    t.match(await send(`${url}/billing/credits?user_id=bob`, undefined, ALICE),
      { status: 403, body: { code: 'FST_CREDITS_FORBIDDEN' } })
    t.match(await deduct({ user_id: 'bob' }, ALICE), { status: 403, body: { code: 'FST_CREDITS_FORBIDDEN' } })
    t.strictSame(await deduct({ user_id: 'alice' }, ALICE), {
      status: 200,
      body: { message: 'Credits deducted successfully', credits: { available: 9995, total: 10000, used: 5 } }
    })
    t.match((await send(`${url}/billing/credits`, undefined, bearer({ sub: 'bob' }))).body, { credits: { used: 0 } })
  })

  await t.test('its own route charges for each word', async t => {
    t.strictSame(await chat('Why is the sky blue?'), {
      status: 200,
      body: { answer: 'You asked: Why is the sky blue?', credits: 9985 }
    })
    const { body } = await send(`${url}/billing/credits`, undefined, ALICE)
    t.match(body.credits.usage_history, [{ used: 10, operation: 'chat', words: 5 }, { used: 5, operation: 'chat' }])
  })

  await t.test('a request repeated with its key is charged once', async t => {
    const headers = { ...ALICE, 'idempotency-key': 'one' }
    t.strictSame((await chat('Once only', headers)).body.credits, 9981)
    t.strictSame((await chat('Once only', headers)).body.credits, 9981)
    t.match(await chat('Something else entirely', headers), { status: 409 })
    t.match((await send(`${url}/billing/credits`, undefined, ALICE)).body, { credits: { available: 9981 } })
  })

  await t.test('who has too few credits is refused', async t => {
    t.equal((await deduct({ credits: 9980 }, ALICE)).status, 200)
    t.match(await chat('Hello'), { status: 402, body: { code: 'FST_CREDITS_INSUFFICIENT' } })
    t.match((await send(`${url}/billing/credits`, undefined, ALICE)).body, { credits: { available: 1 } })
  })

  await t.test('a token without a subject charges nobody', async t => {
    t.match(await chat('Hello', bearer({ name: 'nobody' })), { status: 400, body: { code: 'FST_CREDITS_INVALID' } })
    t.match(await send(`${url}/billing/credits`, undefined, bearer({})), { status: 401 })
  })

  await t.test('the lines at start can be used as they are', async t => {
    const [, token] = /TOKEN=(\S+)/.exec(output())!
    t.match(output(), /curl http:\/\/localhost:\d+\/v1\/chat -H "Authorization: Bearer \$TOKEN" .*sky blue/)
    t.equal((await send(`${url}/billing/credits`, undefined, { authorization: `Bearer ${token}` })).status, 200)
  })

  t.equal(await end('SIGINT'), 0)
  t.equal(errors(), '')
})
