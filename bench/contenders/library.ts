import { randomUUID } from 'node:crypto'
import fastifyPostgres from '@fastify/postgres'
import Fastify from 'fastify'
import credits, { type Credits, type FastifyAiCreditsOptions } from '../../src/index.js'
import { fillAccounts, POOL, query } from '../databases.js'
import { charge, type Contender } from './contender.js'

/** A gateway with the library, on a database with accounts. */
export async function openGateway (connectionString: string, options: FastifyAiCreditsOptions = {}) {
  const app = Fastify()
  await app.register(fastifyPostgres, { connectionString, max: POOL })
  await app.register(credits, options)
  await query(connectionString, fillAccounts)
  await query(connectionString, 'vacuum analyze')
  return app
}

/** What the library's tables say was charged. */
export async function chargedByLibrary (connectionString: string): Promise<number[]> {
  const [row] = await query(connectionString, `
    select (select coalesce(sum(credits_used), 0) from ai_credit_usage) as records,
      (select coalesce(sum(used_credits), 0) from ai_credit_daily_usage) as daily,
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

/** (a) the library. */
export const library = libraryContender('library', (credits, userId) => credits.deduct({ userId, ...charge }))

/** The same with an idempotency key on each call. */
export const libraryWithKeys = libraryContender('library, with keys', (credits, userId) =>
  credits.deduct({ userId, ...charge, idempotencyKey: randomUUID() }))

/** Two credits held, one captured. */
export const libraryPairs = libraryContender('library, hold + capture', async (credits, userId) => {
  const { id } = await credits.hold({ userId, ...charge, credits: 2 })
  await credits.capture(id, { credits: charge.credits })
}, [256])
