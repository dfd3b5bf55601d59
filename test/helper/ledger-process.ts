// Runs in its own process, started by processes.ts: does the tasks that it is sent, and sends back their outcomes.
import Fastify from 'fastify'
import fastifyPostgres from '@fastify/postgres'
import pg from 'pg'
import credits, { createLedger, type FastifyAiCreditsOptions, type Ledger, type LedgerOptions } from '../../src/index.js'
import type { Outcome, Task } from './processes.js'

process.on('message', async ({ connectionString, calls, prune, options }: Task) => {
  process.send!(await (calls
    ? withLedger(connectionString, options, ledger => calls.map(call => ledger.deduct(call)))
    : prune ? withLedger(connectionString, options, ledger => [ledger.prune(prune)]) : startGateway(connectionString, options)))
})
// Fastify loads most of itself with its first instance, which takes twenty processes twenty seconds. It is loaded here
// beforehand, because the tests need starts that coincide.
await Fastify().close()
process.send!('ready')

async function withLedger (connectionString: string, options: LedgerOptions = {}, work: (ledger: Ledger) => Promise<Outcome>[]) {
  const pool = new pg.Pool({ connectionString, max: 10 })
  const ledger = createLedger(pool, { timeout: 60_000, ...options })
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
  const { statusCode, code, message, budget, period, limit, used, held, resetsAt } = error as NonNullable<Outcome['error']>
  return { error: { statusCode, code, message, ...budget !== undefined && { budget, period, limit, used, held, resetsAt } } }
}
