import { fileURLToPath } from 'node:url'
import postgres from '@fastify/postgres'
import Fastify from 'fastify'
import credits from 'fastify-ai-credits'
import { startEmbeddedDatabase } from '../embedded-database.js'
import { readableLog } from '../readable-log.js'
import { isMain, serve, urlOf } from '../serve.js'
import videos from './videos.js'

/**
 * A server with a plugin of its own that charges credits inside its own transactions.
 *
 * @param {{ dataDir?: string, logger?: import('fastify').FastifyServerOptions['logger'] }} options
 */
export async function build ({ dataDir = fileURLToPath(new URL('data', import.meta.url)), logger = false }) {
  const database = await startEmbeddedDatabase(dataDir)
  const app = Fastify({ logger })

  // Hooks run last in, first out: the pool of @fastify/postgres, registered later, has ended when this one runs.
  app.addHook('onClose', database.close)
  app.register(postgres, { connectionString: database.connectionString, max: database.max })
  app.register(credits, { allowance: 1000, prepare: false })
  app.register(videos)

  app.addHook('onListen', async () => {
    app.log.info('Order videos of 20 seconds for 400 credits each; of the 1000 credits at start, the third is refused:')
    app.log.info(`curl ${urlOf(app)}/videos -H "Content-Type: application/json" ` +
      '-d \'{"user_id":"alice","prompt":"A cat at sea","seconds":20}\'')
    app.log.info('What is stored, and what is left:')
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
