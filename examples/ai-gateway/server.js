import { randomBytes } from 'node:crypto'
import { fileURLToPath } from 'node:url'
import jwt from '@fastify/jwt'
import postgres from '@fastify/postgres'
import Fastify from 'fastify'
import credits from 'fastify-ai-credits'
import { startEmbeddedDatabase } from '../embedded-database.js'
import { readableLog } from '../readable-log.js'
import { isMain, serve, urlOf } from '../serve.js'
import chat from './chat.js'
import purchases from './purchases.js'
import videos from './videos.js'

// What each operation costs, in credits.
const prices = {
  chat: {
    per: { input_tokens: { credits: 1, each: 10 }, output_tokens: { credits: 4, each: 10 } },
    minimum: 1,
    round: 'up'
  },
  video_generation: { per: { seconds: 4 } }
}

/**
 * Builds a small AI gateway: users with JSON Web Tokens, a monthly allowance, a streaming chat that is charged by the
 * token, videos that are refunded if they fail, and purchases.
 *
 * @param {{
 *   dataDir?: string, jwtSecret?: string, webhookSecret?: string,
 *   logger?: import('fastify').FastifyServerOptions['logger']
 * }} options
 */
export async function build ({
  dataDir = fileURLToPath(new URL('data', import.meta.url)),
  jwtSecret = randomBytes(32).toString('hex'),
  webhookSecret = randomBytes(16).toString('hex'),
  logger = false
}) {
  const database = await startEmbeddedDatabase(dataDir)
  const app = Fastify({ logger })

  // onClose hooks run in reverse order: @fastify/postgres, registered later, ends its pool before this one runs.
  app.addHook('onClose', database.close)
  app.register(postgres, { connectionString: database.connectionString, max: database.max })
  app.register(jwt, { secret: jwtSecret })
  await app.register(credits, {
    allowance: { credits: 1000, every: 'month' },
    prices,
    low: ['10%'],
    identify: request => request.user.sub,
    // Users may read their balance. Only the gateway itself charges.
    routes: { read: { onRequest: request => request.jwtVerify() }, deduct: false },
    prepare: false
  })
  app.credits.on('low', ({ userId, balance }) => app.log.warn(`${userId} has ${balance.available} credits left`))

  app.register(async users => {
    users.addHook('onRequest', request => request.jwtVerify())
    users.register(chat)
    users.register(videos)
  })
  app.register(purchases, { secret: webhookSecret })
  app.register(audit)

  app.addHook('onListen', async () => {
    const token = app.jwt.sign({ sub: 'alice' }, { expiresIn: '1 day' })
    for (const line of hints(urlOf(app), token, webhookSecret)) app.log.info(line)
    app.log.info('Press Ctrl-C to stop')
  })
  return app
}

/** `GET /reconciliation`, for the operator: checks that all accounts agree with their records. */
async function audit (app) {
  app.addHook('onRequest', request => request.jwtVerify())
  app.get('/reconciliation', async (request, reply) => {
    if (request.user.role !== 'operator') return reply.status(403).send({ error: 'Forbidden' })
    return await app.credits.reconcile()
  })
}

function hints (url, token, webhookSecret) {
  const json = '-H "Content-Type: application/json"'
  const alice = '-H "Authorization: Bearer $TOKEN"'
  const payment = JSON.stringify({ payment_id: 'p-1', paid_at: new Date().toISOString(), user_id: 'alice', credits: 5000 })
  return [
    'Try it as alice, whose token is valid for a day and who gets 1000 credits each month:',
    `TOKEN=${token}`,
    `curl -N ${url}/v1/chat ${alice} ${json} -d '{"prompt":"Why is the sky blue?"}'`,
    `curl ${url}/v1/videos ${alice} ${json} -d '{"prompt":"A cat at sea","seconds":10}'`,
    `curl ${url}/v1/videos ${alice} ${json} -d '{"prompt":"Please fail","seconds":10}'`,
    `curl ${url}/purchases -H "X-Webhook-Secret: ${webhookSecret}" ${json} -d '${payment}'`,
    `curl ${url}/api/credits ${alice}`
  ]
}

if (isMain(import.meta.url)) {
  const { DATA_DIR: dataDir, JWT_SECRET: jwtSecret, WEBHOOK_SECRET: webhookSecret } = process.env
  await serve(() => build({
    dataDir: dataDir || undefined,
    jwtSecret: jwtSecret || undefined,
    webhookSecret: webhookSecret || undefined,
    logger: { stream: readableLog }
  }))
}
