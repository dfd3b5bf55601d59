// A gateway in a process of its own: the plugin on its host's pool, on a port of the loopback interface. An error that
// nobody hears ends it, which the test takes for what it is.
import fastifyPostgres from '@fastify/postgres'
import Fastify from 'fastify'
import credits from '../../src/index.js'
import { allowance } from './load.js'

const connectionString = process.argv[2]!

const app = Fastify()
await app.register(fastifyPostgres, { connectionString, max: 10 })
await app.register(credits, { allowance, management: { authorize: () => true } })
// A route that is charged goes here, and its calls into load.ts.
const url = await app.listen({ host: '127.0.0.1', port: 0 })

process.on('message', () => {
  const { totalCount, idleCount, waitingCount } = app.pg.pool
  process.send!({ connections: { totalCount, idleCount, waitingCount } })
})
process.on('disconnect', () => process.exit())
process.send!({ url })
