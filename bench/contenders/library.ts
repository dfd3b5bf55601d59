import { randomUUID } from 'node:crypto'
import fastifyPostgres from '@fastify/postgres'
import Fastify from 'fastify'
import credits, { createLedger, type Credits, type FastifyAiCreditsOptions } from '../../src/index.js'
import { fillAccounts, openPool, POOL, query } from '../databases.js'
import { charge, type Contender } from './contender.js'

/** Opens a gateway with the library, on a database with accounts. */
export async function openGateway (connectionString: string, options: FastifyAiCreditsOptions = {}) {
  const app = Fastify()
  await app.register(fastifyPostgres, { connectionString, max: POOL })
  await app.register(credits, options)
  await query(connectionString, fillAccounts())
  await query(connectionString, 'vacuum analyze')
  return app
}

/** Makes the library's tables and accounts in an empty database, for processes that open ledgers of their own. */
export async function makeLedger (connectionString: string, accounts?: number): Promise<void> {
  const pool = openPool(connectionString)
  const ledger = createLedger(pool)
  await ledger.migrate()
  await ledger.close()
  await pool.end()
  await query(connectionString, fillAccounts(accounts))
  await query(connectionString, 'vacuum analyze')
}

/** Returns the credits charged according to each of the library's tables. */
export async function chargedByLibrary (connectionString: string): Promise<number[]> {
  const [row] = await query(connectionString, `
    select (select coalesce(sum(credits_used), 0) from ai_credit_usage) as records,
      (select coalesce(sum(used_credits), 0) from ai_credit_daily_usage) + (
        select coalesce(sum(credits_used), 0) from ai_credit_usage record join ai_credits account using (user_id)
        where record.seq > account.summed_seq) as daily,
      (select sum(used_credits + held_credits) from ai_credits) as accounts`)
  return Object.values(row).map(Number)
}

function libraryContender (
  name: string, call: (credits: Credits, userId: string) => Promise<unknown>, callers?: number[]
): Contender {
  return {
    name,
    ...callers && { callers },
    async open (connectionString) {
      const app = await openGateway(connectionString)
      return {
        call: userId => call(app.credits, userId),
        charged: () => chargedByLibrary(connectionString),
        close: () => app.close()
      }
    }
  }
}

/** (a) The library's deduct. */
export const library = libraryContender('library', (credits, userId) => credits.deduct({ userId, ...charge }))

/** The library's deduct with an idempotency key on each call. */
export const libraryWithKeys = libraryContender('library, with keys', (credits, userId) =>
  credits.deduct({ userId, ...charge, idempotencyKey: randomUUID() }))

/** The library's hold of two credits and capture of one. */
export const libraryPairs = libraryContender('library, hold + capture', async (credits, userId) => {
  const { id } = await credits.hold({ userId, ...charge, credits: 2 })
  await credits.capture(id, { credits: charge.credits })
}, [256])
