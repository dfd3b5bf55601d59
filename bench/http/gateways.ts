import { setTimeout as sleep } from 'node:timers/promises'
import Fastify, { type FastifyContextConfig, type FastifyInstance } from 'fastify'
import { charge } from '../contenders/contender.js'
import { chargedByLibrary, openGateway } from '../contenders/library.js'
import { chargeByHand, chargedByTables, createTables } from '../contenders/hand-written.js'
import { openPool, query } from '../databases.js'
import { isolate } from '../../src/http/isolation.js'
import { deductBody, deductSchema, IdempotencyHeaders, NoQuery, sharedSchemas, type DeductBody } from '../../src/http/schemas.js'
import { strictValidator } from '../../src/http/validation.js'

/** A gateway with a route that charges. */
export interface Gateway {
  name: string
  /** Whether requests have an idempotency key. */
  keys: boolean
  open (connectionString: string): Promise<{ app: FastifyInstance, charged: () => Promise<number[]> }>
}

const library = (name: string, keys: boolean): Gateway => ({
  name,
  keys,
  open: async connectionString => ({
    app: await openGateway(connectionString), charged: () => chargedByLibrary(connectionString)
  })
})

// The route that a gateway without the library would have: a JSON schema, and Fastify's validation.
const byHand: Gateway = {
  name: 'hand-written transaction',
  keys: false,
  async open (connectionString) {
    await query(connectionString, createTables)
    await query(connectionString, 'vacuum analyze')
    const pool = openPool(connectionString)
    const app = Fastify()
    app.addHook('onClose', () => pool.end())
    app.post<{ Body: DeductBody }>('/api/credits/deduct', { schema: { body: deductBody(false) } }, async request => {
      await chargeByHand(pool, request.body.user_id!)
      return reply
    })
    return { app, charged: () => chargedByTables(connectionString) }
  }
}

// (g) The library's own validation, and no work.
const noDatabase: Gateway = {
  name: 'no database',
  keys: false,
  async open () {
    const app = Fastify()
    await app.register(async scope => {
      isolate(scope)
      for (const schema of sharedSchemas) scope.addSchema(schema)
      scope.post('/credits/deduct', {
        schema: deductSchema(false, '/api'),
        validatorCompiler: strictValidator({ body: deductBody(false), headers: IdempotencyHeaders, querystring: NoQuery })
      }, async () => reply)
    }, { prefix: '/api' })
    return { app, charged: async () => [] }
  }
}

// A route of the host that is charged by its config, or an equal route that is not charged.
const route = (name: string, charged: boolean): Gateway => ({
  name,
  keys: false,
  async open (connectionString) {
    const app = await openGateway(connectionString, { routes: false })
    const user = ({ body }: { body: unknown }) => (body as DeductBody).user_id
    const config: FastifyContextConfig = charged ? { credits: { operation: charge.operation, cost: charge.credits, user } } : {}
    app.post('/api/credits/deduct', { schema: { body: deductBody(false) }, config }, async () => reply)
    return { app, charged: async () => charged ? await chargedInTheEnd(connectionString) : [] }
  }
})

// A route is charged only after its reply, so this waits until nothing is held.
async function chargedInTheEnd (connectionString: string) {
  for (;;) {
    const [{ held }] = await query(connectionString, 'select sum(held_credits)::int as held from ai_credits')
    if (held === 0) return await chargedByLibrary(connectionString)
    await sleep(10)
  }
}

const reply = { message: 'Credits deducted successfully', credits: { available: 8400, total: 10000, used: 1600 } }

export const gateways: Gateway[] = [
  library('library', false), library('library, with keys', true), byHand, noDatabase,
  route('uncharged route', false), route('charged route', true)
]
