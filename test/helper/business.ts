import type { FastifyInstance } from 'fastify'
import t, { type Test } from 'tap'
import type { Credits, FastifyAiCreditsOptions, Queryable } from '../../src/index.js'
import { buildGateway } from './app.js'
import { createClockedLedgerDatabase } from './clock.js'

/** When a test of `ledgerTest` begins. */
export const start = '2030-01-01T00:00:00.000Z'

/** What a test of `ledgerTest` works with. */
export interface Business {
  app: FastifyInstance
  credits: Credits
  /** Sets what time it is: an ISO 8601 time. */
  setClock: (time: string) => Promise<void>
  /** Runs the work on the host's own client, in a transaction that ends as said. */
  transaction: <T>(end: 'commit' | 'rollback', work: (client: Queryable) => Promise<T>) => Promise<T>
}

/** A test on a new database, at a time that it sets, with an allowance of 100; at its end all accounts must reconcile. */
export function ledgerTest (
  name: string, work: (t: Test, business: Business) => Promise<void>, options: FastifyAiCreditsOptions = {}
) {
  t.test(name, async t => {
    const { connectionString, setClock } = await createClockedLedgerDatabase(t, start)
    const app = await buildGateway(t, { allowance: 100, ...options }, { connectionString })
    await work(t, { app, credits: app.credits, setClock, transaction: (end, work) => transaction(app, end, work) })
    t.match(await app.credits.reconcile(), { ok: true, differences: [] }, 'every account reconciles')
  })
}

async function transaction<T> (app: FastifyInstance, end: string, work: (client: Queryable) => Promise<T>): Promise<T> {
  const client = await app.pg.connect()
  try {
    await client.query('begin')
    const result = await work(client)
    await client.query(end)
    return result
  } finally {
    client.release()
  }
}
