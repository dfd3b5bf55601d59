// Runs in its own process: a gateway with a charged request that never ends. Its argument is the connection string.
import Fastify from 'fastify'
import credits from '../../src/index.js'

const app = Fastify()
await app.register(credits, { connectionString: process.argv[2]!, defaultUser: 'ann' })
app.get('/', { config: { credits: { operation: 'video', hold: 500, ttl: 1000 } } }, async () => {
  process.send!('at work')
  await new Promise(() => {})
})
const url = await app.listen({ port: 0, host: '127.0.0.1' })
await fetch(url)
