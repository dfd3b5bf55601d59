import { once } from 'node:events'
import { request, type IncomingMessage } from 'node:http'
import { setTimeout as sleep } from 'node:timers/promises'
import jwt from '@fastify/jwt'
import Fastify from 'fastify'
import t from 'tap'
import { send, startServer, temporaryFolder } from './run-example.js'

const JWT_SECRET = 'of the tokens'
const issuer = Fastify()
await issuer.register(jwt, { secret: JWT_SECRET })
const bearer = (sub: string) => ({ authorization: `Bearer ${issuer.jwt.sign({ sub })}` })

t.test('a proxy of an OpenAI-compatible service', async t => {
  const { url, output, errors, end } =
    await startServer(t, 'examples/openai-proxy/server.js', { JWT_SECRET, DATA_DIR: await temporaryFolder(t) })
  const path = `${url}/v1/chat/completions`
  const asking = (content: string, stream: boolean, more = {}) => ({ model: 'small', stream, messages: [{ role: 'user', content }], ...more })

  async function settled (user: string) {
    for (;;) {
      const { credits } = (await send(`${url}/api/credits`, undefined, bearer(user))).body
      if (credits.held === undefined) return credits
      await sleep(20)
    }
  }

  // Reads a stream, all of it or the first events.
  async function chat (user: string, content: string, events = Infinity) {
    const headers = { 'content-type': 'application/json', ...bearer(user) }
    const sent = request(path, { method: 'POST', headers, agent: false }).end(JSON.stringify(asking(content, true)))
    const [reply]: [IncomingMessage] = await once(sent, 'response') as any
    let text = ''
    try {
      for await (const chunk of reply.setEncoding('utf8')) {
        text += chunk
        if (text.split('data:').length > events) break // which destroys the connection
      }
    } catch {
      return { reply, text, broken: true }
    }
    return { reply, text, broken: false }
  }

  await t.test('a stream is paid for by the usage in its last event', async t => {
    const { reply, text } = await chat('ann', 'Why is the sky blue?')
    t.match(reply.headers, { 'content-type': 'text/event-stream', 'credits-remaining': String })
    t.match(text, '"usage":{"prompt_tokens":5,"completion_tokens":18}')
    t.ok(text.endsWith('data: [DONE]\n\n'))
    // 5 tokens at 1 for 10, and 18 at 4 for 10, rounded up once
    t.match(await settled('ann'), { used: 8, usage_history: [{ operation: 'chat', used: 8, model: 'small' }] })
  })

  await t.test('a reply that is no stream, too', async t => {
    const { status, body } = await send(path, asking('Why is the sky blue?', false), bearer('bob'))
    t.equal(status, 200)
    t.match(body.usage, { completion_tokens: 18 })
    t.match(await settled('bob'), { used: 8 })
  })

  await t.test('a client that leaves pays for what it was sent', async t => {
    await chat('cleo', 'Why is the sky blue?', 3)
    const { used } = await settled('cleo')
    t.ok(used >= 1 && used < 8, `${used}`)
  })

  await t.test('an upstream that breaks off is paid for what it made, and one that refuses is not', async t => {
    t.ok((await chat('dan', 'Please break off')).broken)
    t.match(await settled('dan'), { used: 3 }, '3 tokens at 1 for 10, and 5 at 4 for 10')
    const { status } = await send(path, asking('Please refuse', true), bearer('eve'))
    t.equal(status, 429)
    t.match(await settled('eve'), { used: 0 })
  })

  await t.test('who cannot pay for the longest reply is refused', async t => {
    const { status, body } = await send(path, asking('Hello', true, { max_tokens: 100_000 }), bearer('fay'))
    t.equal(status, 402)
    t.match(body, { code: 'FST_CREDITS_INSUFFICIENT', required: 40_001 })
    t.equal((await send(path, asking('Hello', true))).status, 401)
    t.match(await settled('fay'), { used: 0, available: 1000 })
  })

  t.equal(await end('SIGINT'), 0, output())
  t.equal(errors(), '')
})
