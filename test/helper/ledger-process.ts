// A process of its own, run by processes.ts: it does the tasks that it is sent, and sends back what came of them.
import Fastify from 'fastify'
import fastifyPostgres from '@fastify/postgres'
import pg from 'pg'
import credits, { createLedger, type FastifyAiCreditsOptions, type Ledger } from '../../src/index.js'
import type { Outcome, Task } from './processes.js'

process.on('message', async ({ connectionString, calls, prune, options }: Task) => {
  process.send!(await (calls
    ? withLedger(connectionString, ledger => calls.map(call => ledger.deduct(call)))
    : prune ? withLedger(connectionString, ledger => [ledger.prune(prune)]) : startGateway(connectionString, options)))
})
// Fastify loads most of itself with its first instance. Twenty processes take twenty seconds for that, in which none starts
// what is tested; and it is the starts that are to coincide.
await Fastify().close()
process.send!('ready')

async function withLedger (connectionString: string, work: (ledger: Ledger) => Promise<Outcome>[]) {
  const pool = new pg.Pool({ connectionString, max: 10 })
  const ledger = createLedger(pool, { timeout: 60_000 })
  const outcomes = await Promise.all(work(ledger).map(call => call.catch(failure)))
  await pool.end()
  return outcomes
}

async function startGateway (connectionString: string, options: FastifyAiCreditsOptions = {}) {
  const app = Fastify()
  await app.register(fastifyPostgres, { connectionString, max: 1 })
  try {
    await app.register(credits, options)
    return [{ balance: await app.credits.balance() }]
  } catch (error) {
    return [failure(error)]
  } finally {
    await app.close()
  }
}

function failure (error: unknown): Outcome {
  const { statusCode, code, message } = error as Error & { statusCode?: number, code?: string }
  return { error: { statusCode, code, message } }
}
