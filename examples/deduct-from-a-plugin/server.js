import { fileURLToPath } from 'node:url'
import postgres from '@fastify/postgres'
import Fastify from 'fastify'
import credits from 'fastify-ai-credits'
import { startEmbeddedDatabase } from '../embedded-database.js'
import { readableLog } from '../readable-log.js'
import { isMain, serve, urlOf } from '../serve.js'
import videos from './videos.js'

/**
 * Builds a server with its own plugin, which charges credits inside its own transactions.
 *
 * @param {{ dataDir?: string, logger?: import('fastify').FastifyServerOptions['logger'] }} options
 */
export async function build ({ dataDir = fileURLToPath(new URL('data', import.meta.url)), logger = false }) {
  const database = await startEmbeddedDatabase(dataDir)
  const app = Fastify({ logger })

  // onClose hooks run in reverse order: @fastify/postgres, registered later, ends its pool before this one runs.
  app.addHook('onClose', database.close)
  app.register(postgres, { connectionString: database.connectionString, max: database.max })
  app.register(credits, { allowance: 1000, prepare: false })
  app.register(videos)

  app.addHook('onListen', async () => {
    app.log.info('Order videos of 20 seconds, for 400 credits each. An account starts with 1000, so the third is refused:')
    app.log.info(`curl ${urlOf(app)}/videos -H "Content-Type: application/json" ` +
      '-d \'{"user_id":"alice","prompt":"A cat at sea","seconds":20}\'')
    app.log.info('List the videos, and read the balance:')
    app.log.info(`curl "${urlOf(app)}/videos?user_id=alice"`)
    app.log.info(`curl "${urlOf(app)}/api/credits?user_id=alice"`)
    app.log.info('Press Ctrl-C to stop')
  })
  return app
}

if (isMain(import.meta.url)) {
  const { DATA_DIR: dataDir } = process.env
  await serve(() => build({ dataDir: dataDir || undefined, logger: { stream: readableLog } }))
}
