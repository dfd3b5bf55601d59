import { createRequire } from 'node:module'
import { fileURLToPath } from 'node:url'
import postgres from '@fastify/postgres'
import swagger from '@fastify/swagger'
import swaggerUi from '@fastify/swagger-ui'
import Fastify from 'fastify'
import credits from 'fastify-ai-credits'
import { startEmbeddedDatabase } from '../embedded-database.js'
import { readableLog } from '../readable-log.js'
import { isMain, serve, urlOf } from '../serve.js'

const { version } = createRequire(import.meta.url)('fastify-ai-credits/package.json')

/**
 * Builds a credits server, on the PostgreSQL at `databaseUrl` or otherwise on an embedded database in the folder `dataDir`.
 *
 * @param {{ databaseUrl?: string, dataDir?: string, logger?: import('fastify').FastifyServerOptions['logger'] }} options
 */
export async function build ({ databaseUrl, dataDir = fileURLToPath(new URL('data', import.meta.url)), logger = false }) {
  const database = databaseUrl ? externalDatabase(databaseUrl) : await embeddedDatabase(dataDir)
  const app = Fastify({ logger })

  // onClose hooks run in reverse order: @fastify/postgres, registered later, ends its pool before this one runs.
  app.addHook('onClose', database.close)
  app.register(postgres, database.pool)

  app.register(swagger, {
    refResolver: { buildLocalReference: schema => String(schema.$id) }, // names schemas by their $id
    openapi: {
      openapi: '3.0.3',
      info: {
        title: 'AI credits',
        description: 'Prepaid credits for AI services: read a balance, deduct what a call costs.',
        version,
        license: { name: 'MIT', url: 'https://opensource.org/license/mit' }
      },
      servers: [{ url: '/' }],
      // This server authenticates nobody; examples/gateway shows how a host does it.
      security: []
    }
  })
  app.register(swaggerUi, { routePrefix: '/documentation' })
  app.get('/', { schema: { hide: true } }, (request, reply) => reply.redirect('/documentation'))

  app.register(credits, { sampleData: true, prepare: database.prepare })

  app.addHook('onListen', async () => {
    app.log.info(`Credits: ${urlOf(app)}/api/credits, documentation: ${urlOf(app)}/documentation`)
    for (const line of database.facts) app.log.info(line)
    app.log.info('Press Ctrl-C to stop')
  })
  return app
}

async function embeddedDatabase (dataDir) {
  const { connectionString, max, folder, close } = await startEmbeddedDatabase(dataDir)
  return {
    pool: { connectionString, max },
    // All connections share one backend, where prepared statements with equal names would collide.
    prepare: false,
    facts: [
      `Database: embedded PostgreSQL (PGlite), data in ${folder}`,
      'It survives a killed process, but not a power loss or a crash of the machine: for real use set DATABASE_URL'
    ],
    close
  }
}

function externalDatabase (connectionString) {
  return {
    pool: { connectionString },
    prepare: true,
    facts: [
      `Database: the PostgreSQL of DATABASE_URL, ${withoutSecrets(connectionString)}, which holds the data`,
      'What it survives is up to that server: its defaults survive a power loss, fsync or synchronous_commit off do not'
    ],
    close: async () => {}
  }
}

function withoutSecrets (connectionString) {
  if (!URL.canParse(connectionString)) return 'as given'
  const { host, pathname } = new URL(connectionString)
  return `${host}${pathname}`
}

if (isMain(import.meta.url)) {
  const { DATABASE_URL: databaseUrl, DATA_DIR: dataDir } = process.env
  await serve(() => build({ databaseUrl, dataDir: dataDir || undefined, logger: { stream: readableLog } }))
}
