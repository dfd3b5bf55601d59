// A gateway in its own process: the plugin on the host's pool, on a port of the loopback interface. An uncaught error ends
// the process, and the test reports that as a crash.
import { Readable } from 'node:stream'
import fastifyPostgres from '@fastify/postgres'
import Fastify, { type FastifyReply, type FastifyRequest } from 'fastify'
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
// Replies in several ways, like the handlers of gateways.
const styles: Array<(answer: object, reply: FastifyReply) => unknown> = [
  async answer => answer,
  async (answer, reply) => {
    setImmediate(() => reply.send(answer))
    return reply
  },
  (answer, reply) => { reply.type('application/json').send(Readable.from([JSON.stringify(answer)])) }
]

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
}, (request, reply) => styles[bodyOf(request).call.length % styles.length]!({ done: bodyOf(request).call }, reply))

const url = await app.listen({ host: '127.0.0.1', port: 0 })

process.on('message', () => {
  const { totalCount, idleCount, waitingCount } = app.pg.pool
  process.send!({ connections: { totalCount, idleCount, waitingCount } })
})
process.on('disconnect', () => process.exit())
process.send!({ url })
