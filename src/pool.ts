import { randomUUID } from 'node:crypto'
import fastifyPostgres from '@fastify/postgres'
import type { FastifyInstance } from 'fastify'
import { InvalidOptionError } from './errors.js'
import type { Pool } from './ledger/database/types.js'
import type { FastifyAiCreditsOptions } from './options.js'

type Instances = FastifyInstance['pg'] & Record<string, { pool: Pool } | undefined>

/**
 * Returns the pool that the options name: the host's pool in `@fastify/postgres`, or a new one to `connectionString`.
 * Throws InvalidOptionError if the host has no such pool.
 */
export async function findPool (
  fastify: FastifyInstance, { pg, connectionString, timeout }: Pick<FastifyAiCreditsOptions, 'pg' | 'connectionString' | 'timeout'>
): Promise<Pool> {
  if (connectionString !== undefined) return await openPool(fastify, connectionString, timeout)
  const instances = fastify.pg as Instances | undefined
  const pool = pg === undefined ? instances?.pool : instances?.[pg]?.pool
  if (pool === undefined) {
    throw new InvalidOptionError('pg', pg === undefined
      ? 'is not given: register @fastify/postgres before fastify-ai-credits, or give pg or connectionString'
      : `names no instance of @fastify/postgres: ${pg}`)
  }
  return pool as Pool
}

// The pool has its own context and a unique name, because the host may have, or later register, its own `fastify.pg`.
// The context closes the pool.
async function openPool (fastify: FastifyInstance, connectionString: string, timeout: number | undefined) {
  const name = `fastify-ai-credits-${randomUUID()}`
  let pool: Pool | undefined
  await fastify.register(async scope => {
    await scope.register(fastifyPostgres, { connectionString, name, connectionTimeoutMillis: timeout })
    pool = (scope.pg as Instances)[name]?.pool
  })
  return pool!
}
