import { randomBytes } from 'node:crypto'
import { fileURLToPath } from 'node:url'
import jwt from '@fastify/jwt'
import postgres from '@fastify/postgres'
import Fastify from 'fastify'
import credits from 'fastify-ai-credits'
import { startEmbeddedDatabase } from '../embedded-database.js'
import { readableLog } from '../readable-log.js'
import { isMain, serve, urlOf } from '../serve.js'
import chatCompletions from './chat-completions.js'
import { startSimulatedUpstream } from './simulated-upstream.js'

// What a token costs, in credits.
const prices = {
  chat: {
    per: { prompt_tokens: { credits: 1, each: 10 }, completion_tokens: { credits: 4, each: 10 } },
    minimum: 1
  }
}

/**
 * Builds a gateway in front of an OpenAI-compatible service. It forwards requests and streams, and charges the usage that
 * the service reports.
 *
 * @param {{
 *   dataDir?: string, jwtSecret?: string, upstreamUrl?: string, upstreamKey?: string,
 *   logger?: import('fastify').FastifyServerOptions['logger']
 * }} options  without `upstreamUrl` it starts a simulated service, which needs no account
 */
export async function build ({
  dataDir = fileURLToPath(new URL('data', import.meta.url)),
  jwtSecret = randomBytes(32).toString('hex'),
  upstreamUrl,
  upstreamKey = 'simulated',
  logger = false
}) {
  const database = await startEmbeddedDatabase(dataDir)
  const app = Fastify({ logger })

  // onClose hooks run in reverse order: @fastify/postgres, registered later, ends its pool before this one runs.
  app.addHook('onClose', database.close)
  app.register(postgres, { connectionString: database.connectionString, max: database.max })
  app.register(jwt, { secret: jwtSecret })
  await app.register(credits, {
    allowance: 1000,
    prices,
    identify: request => request.user.sub,
    routes: { read: { onRequest: request => request.jwtVerify() }, deduct: false },
    prepare: false
  })

  const upstream = upstreamUrl ?? await simulated(app)
  app.register(async users => {
    users.addHook('onRequest', request => request.jwtVerify())
    users.register(chatCompletions, { upstream, key: upstreamKey })
  })

  app.addHook('onListen', async () => {
    const token = app.jwt.sign({ sub: 'alice' }, { expiresIn: '1 day' })
    for (const line of hints(urlOf(app), token)) app.log.info(line)
    app.log.info('Press Ctrl-C to stop')
  })
  return app
}

async function simulated (app) {
  const upstream = await startSimulatedUpstream()
  app.addHook('onClose', upstream.close)
  return upstream.url
}

function hints (url, token) {
  const alice = '-H "Authorization: Bearer $TOKEN"'
  const chat = stream => JSON.stringify({ model: 'small', stream, messages: [{ role: 'user', content: 'Why is the sky blue?' }] })
  return [
    'Try it as alice, whose token is valid for a day and who has 1000 credits:',
    `TOKEN=${token}`,
    `curl -N ${url}/v1/chat/completions ${alice} -H "Content-Type: application/json" -d '${chat(true)}'`,
    `curl ${url}/v1/chat/completions ${alice} -H "Content-Type: application/json" -d '${chat(false)}'`,
    `curl ${url}/api/credits ${alice}`
  ]
}

if (isMain(import.meta.url)) {
  const { DATA_DIR: dataDir, JWT_SECRET: jwtSecret, UPSTREAM_URL: upstreamUrl, UPSTREAM_KEY: upstreamKey } = process.env
  await serve(() => build({
    dataDir: dataDir || undefined,
    jwtSecret: jwtSecret || undefined,
    upstreamUrl: upstreamUrl || undefined,
    upstreamKey: upstreamKey || undefined,
    logger: { stream: readableLog }
  }))
}
