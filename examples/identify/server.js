import { randomBytes } from 'node:crypto'
import { fileURLToPath } from 'node:url'
import postgres from '@fastify/postgres'
import Fastify from 'fastify'
import credits from 'fastify-ai-credits'
import { startEmbeddedDatabase } from '../embedded-database.js'
import { readableLog } from '../readable-log.js'
import { isMain, serve, urlOf } from '../serve.js'
import { identifyByApiKey } from './api-key.js'
import { identifyByJwt } from './jwt.js'
import { identifyByTrustedHeader } from './trusted-header.js'

/**
 * Builds a server that identifies users in three ways, each under its own prefix: by a JSON Web Token, by an API key, and
 * by a header of a trusted gateway. All three use the same accounts.
 *
 * @param {{
 *   dataDir?: string, jwtSecret?: string, gatewaySecret?: string,
 *   logger?: import('fastify').FastifyServerOptions['logger']
 * }} options
 */
export async function build ({
  dataDir = fileURLToPath(new URL('data', import.meta.url)),
  jwtSecret = randomBytes(32).toString('hex'),
  gatewaySecret = randomBytes(32).toString('hex'),
  logger = false
}) {
  const database = await startEmbeddedDatabase(dataDir)
  const app = Fastify({ logger })

  // onClose hooks run in reverse order: @fastify/postgres, registered later, ends its pool before this one runs.
  app.addHook('onClose', database.close)
  app.register(postgres, { connectionString: database.connectionString, max: database.max })

  const hints = []

  app.register(async jwt => {
    await offerImages(jwt, await identifyByJwt(jwt, { secret: jwtSecret }))
    hints.push(['/jwt', `Authorization: Bearer ${jwt.jwt.sign({ sub: 'ann' })}`])
  }, { prefix: '/jwt' })

  app.register(async keys => {
    const { identify, issueKey } = await identifyByApiKey(keys)
    await offerImages(keys, identify)
    const key = await issueKey('ann')
    hints.push(['/key', `Authorization: Bearer ${key}`])
  }, { prefix: '/key' })

  app.register(async trusted => {
    await offerImages(trusted, identifyByTrustedHeader({ secret: gatewaySecret }))
    hints.push(['/trusted', 'X-User-Id: ann', `X-Gateway-Secret: ${gatewaySecret}`])
  }, { prefix: '/trusted' })

  app.addHook('onListen', async () => {
    app.log.info('Try it as ann:')
    for (const [prefix, ...headers] of hints) {
      app.log.info(`curl ${urlOf(app)}${prefix}/api/credits ${headers.map(header => `-H "${header}"`).join(' ')}`)
    }
    app.log.info('Press Ctrl-C to stop')
  })
  return app
}

// Registers what each of the three ways guards: the credits routes, and a charged route of the host's own.
async function offerImages (app, identify) {
  await app.register(credits, { identify, prepare: false })
  app.post('/images', { config: { credits: { operation: 'image', cost: 10 } } }, async () => ({ image: '…' }))
}

if (isMain(import.meta.url)) {
  const { DATA_DIR: dataDir, JWT_SECRET: jwtSecret, GATEWAY_SECRET: gatewaySecret } = process.env
  await serve(() => build({
    dataDir: dataDir || undefined,
    jwtSecret: jwtSecret || undefined,
    gatewaySecret: gatewaySecret || undefined,
    logger: { stream: readableLog }
  }))
}
