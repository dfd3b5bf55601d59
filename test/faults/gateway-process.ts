// A gateway in a process of its own: the plugin on its host's pool, on a port of the loopback interface. An error that
// nobody hears ends it, which the test takes for what it is.
import fastifyPostgres from '@fastify/postgres'
import Fastify, { type FastifyRequest } from 'fastify'
import credits from '../../src/index.js'
import { allowance, chargedRoute, ttl } from './load.js'

const connectionString = process.argv[2]!

const app = Fastify()
await app.register(fastifyPostgres, { connectionString, max: 10 })
await app.register(credits, { allowance, management: { authorize: () => true } })

interface Work {
  user: string
  call: string
}

const { path, operation, cost } = chargedRoute
const bodyOf = ({ body }: FastifyRequest) => body as Work
app.post(path, {
  config: {
    credits: {
      operation,
      cost,
      capture: 'before',
      ttl: ttl.short,
      user: request => bodyOf(request).user,
      metadata: request => ({ call: bodyOf(request).call })
    }
  }
}, async request => ({ done: bodyOf(request).call }))

const url = await app.listen({ host: '127.0.0.1', port: 0 })

process.on('message', () => {
  const { totalCount, idleCount, waitingCount } = app.pg.pool
  process.send!({ connections: { totalCount, idleCount, waitingCount } })
})
process.on('disconnect', () => process.exit())
process.send!({ url })
