import { randomBytes } from 'node:crypto'
import { fileURLToPath } from 'node:url'
import jwt from '@fastify/jwt'
import postgres from '@fastify/postgres'
import Fastify from 'fastify'
import credits from 'fastify-ai-credits'
import { startEmbeddedDatabase } from '../embedded-database.js'
import { readableLog } from '../readable-log.js'
import { isMain, serve, urlOf } from '../serve.js'

const CREDITS_PER_WORD = 2

/**
 * Builds a gateway that already has its own database and authentication, and that now charges credits.
 *
 * @param {{ dataDir?: string, jwtSecret?: string, logger?: import('fastify').FastifyServerOptions['logger'] }} options
 */
export async function build ({
  dataDir = fileURLToPath(new URL('data', import.meta.url)),
  jwtSecret = randomBytes(32).toString('hex'),
  logger = false
}) {
  const database = await startEmbeddedDatabase(dataDir)
  const app = Fastify({ logger })

  // onClose hooks run in reverse order: @fastify/postgres, registered later, ends its pool before this one runs.
  app.addHook('onClose', database.close)
  app.register(postgres, { connectionString: database.connectionString, max: database.max })
  app.register(jwt, { secret: jwtSecret })

  app.get('/health', async () => ({ status: 'ok' }))
  app.register(paidRoutes)

  app.addHook('onListen', async () => {
    const token = app.jwt.sign({ sub: 'alice' }, { expiresIn: '1 day' })
    app.log.info('Try it as alice, whose token is valid for a day:')
    app.log.info(`TOKEN=${token}`)
    app.log.info(`curl ${urlOf(app)}/v1/chat -H "Authorization: Bearer $TOKEN" ` +
      '-H "Content-Type: application/json" -d \'{"prompt":"Why is the sky blue?"}\'')
    app.log.info(`curl ${urlOf(app)}/billing/credits -H "Authorization: Bearer $TOKEN"`)
    app.log.info('Press Ctrl-C to stop')
  })
  return app
}

// Every route in this context needs a token, including those of the credits plugin: a hook applies to its own context.
async function paidRoutes (app) {
  app.addHook('onRequest', request => request.jwtVerify())

  await app.register(credits, {
    prefix: '/billing',
    identify: request => request.user.sub,
    // A token without `sub` names nobody. It must not charge a default account that others share.
    defaultUser: null,
    prepare: false
  })

  app.post('/v1/chat', { schema: { body: chatBody } }, async request => {
    const { prompt } = request.body
    const words = prompt.trim().split(/\s+/).length

    // Charge before the model runs, because the model costs money from the start. Too few credits throw here: a 402.
    const { balance } = await app.credits.deduct({
      userId: request.user.sub,
      credits: words * CREDITS_PER_WORD,
      operation: 'chat',
      metadata: { words },
      // A client that repeats its request with the same key is charged once.
      idempotencyKey: request.headers['idempotency-key']
    })
    return { answer: await askModel(prompt), credits: balance.available }
  })
}

const chatBody = {
  type: 'object',
  required: ['prompt'],
  additionalProperties: false,
  properties: { prompt: { type: 'string', minLength: 1, maxLength: 4000 } }
}

// A stand-in for the AI service behind the gateway.
async function askModel (prompt) {
  return `You asked: ${prompt}`
}

if (isMain(import.meta.url)) {
  const { DATA_DIR: dataDir, JWT_SECRET: jwtSecret } = process.env
  await serve(() => build({
    dataDir: dataDir || undefined,
    jwtSecret: jwtSecret || undefined,
    logger: { stream: readableLog }
  }))
}
