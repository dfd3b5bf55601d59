import { randomBytes } from 'node:crypto'
import { fileURLToPath } from 'node:url'
import jwt from '@fastify/jwt'
import postgres from '@fastify/postgres'
import Fastify from 'fastify'
import credits from 'fastify-ai-credits'
import { startEmbeddedDatabase } from '../embedded-database.js'
import { readableLog } from '../readable-log.js'
import { isMain, serve, urlOf } from '../serve.js'
import { budgetOfKey, foundAcme } from './company.js'

const CREDITS_PER_WORD = 10

/**
 * Builds a gateway for companies. A company pays for all its members from one account, and limits its teams, members and
 * API keys by budgets. A JSON Web Token says who is asking: `org` with `role: 'owner'`, or `org`, `member` and `key`.
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
  app.register(companies)

  app.addHook('onListen', async () => {
    for (const line of hints(urlOf(app), app.jwt)) app.log.info(line)
    app.log.info('Press Ctrl-C to stop')
  })
  return app
}

// Every route in this context needs a token, including those of the credits plugin.
async function companies (app) {
  app.addHook('onRequest', request => request.jwtVerify())
  await app.register(credits, {
    identify,
    // Only the gateway itself charges.
    routes: { deduct: false },
    management: { authorize: ownsBudgets },
    prepare: false
  })
  await foundAcme(app.credits)

  app.post('/v1/chat', {
    schema: { body: chatBody },
    config: { credits: { operation: 'chat', cost: request => wordsOf(request.body.prompt) * CREDITS_PER_WORD } }
  }, async request => {
    return { answer: `You asked: ${request.body.prompt}`, budget: request.credits.budget }
  })
}

// A key is bound to its budget, and so to those of its member and team above it. An owner is bound to none.
function identify ({ user: { org, role, member, key } }) {
  if (role === 'owner') return org
  return typeof member === 'string' && typeof key === 'string' ? { userId: org, budget: budgetOfKey({ member, key }) } : null
}

// An owner may change the budgets of the own company. All other management routes stay closed: one of them makes credits.
function ownsBudgets ({ user: { org, role }, routeOptions, body, query }) {
  const company = body?.user_id ?? query.user_id
  return role === 'owner' && company === org && routeOptions.url.startsWith('/api/credits/budgets/')
}

const chatBody = {
  type: 'object',
  required: ['prompt'],
  additionalProperties: false,
  properties: { prompt: { type: 'string', minLength: 1, maxLength: 4000 } }
}

function wordsOf (prompt) {
  return prompt.trim().split(/\s+/).length
}

function hints (url, jwt) {
  const json = '-H "Content-Type: application/json"'
  const ann = '-H "Authorization: Bearer $ANN"'
  const owner = '-H "Authorization: Bearer $OWNER"'
  const sign = token => jwt.sign({ org: 'acme', ...token }, { expiresIn: '1 day' })
  return [
    'Try it as ann of the company acme, and as its owner. Their tokens are valid for a day:',
    `ANN=${sign({ member: 'ann', key: 'laptop' })}`,
    `OWNER=${sign({ role: 'owner' })}`,
    `curl ${url}/v1/chat ${ann} ${json} -d '{"prompt":"Why is the sky blue?"}'`,
    `curl ${url}/api/credits/budgets ${ann}`,
    `curl ${url}/api/credits/budgets ${owner}`,
    `curl "${url}/api/credits?budget=team:ml" ${owner}`,
    `curl -X PUT ${url}/api/credits/budgets/key.ann:laptop ${owner} ${json} ` +
      '-d \'{"user_id":"acme","within":"member:ann","day":50}\''
  ]
}

if (isMain(import.meta.url)) {
  const { DATA_DIR: dataDir, JWT_SECRET: jwtSecret } = process.env
  await serve(() => build({
    dataDir: dataDir || undefined,
    jwtSecret: jwtSecret || undefined,
    logger: { stream: readableLog }
  }))
}
