import fastifyPostgres from '@fastify/postgres'
import Fastify, { type FastifyInstance, type FastifyServerOptions } from 'fastify'
import type pg from 'pg'
import type { Test } from 'tap'
import credits, { type FastifyAiCreditsOptions } from '../../src/index.js'
import { createDatabase, createLedgerDatabase, keepSessions, pglite } from './database.js'

/** Settings of a test's gateway. */
export interface GatewaySettings {
  /** Default: a new database; `buildHost` makes an empty one. */
  connectionString?: string
  server?: FastifyServerOptions
  pool?: pg.PoolConfig
}

/** Returns a Fastify instance with `@fastify/postgres`. It is closed after the test. */
export async function buildHost (t: Test, settings: GatewaySettings = {}): Promise<FastifyInstance> {
  const connectionString = settings.connectionString ?? await createDatabase(t)
  const app = Fastify(settings.server)
  t.teardown(() => app.close())
  await app.register(fastifyPostgres, { connectionString, max: 10, ...keepSessions, ...settings.pool })
  return app
}

/** Returns a gateway with the plugin registered. It is closed after the test. */
export async function buildGateway (
  t: Test, options: FastifyAiCreditsOptions = {}, settings: GatewaySettings = {}
): Promise<FastifyInstance> {
  const connectionString = settings.connectionString ?? await createLedgerDatabase(t)
  const app = await buildHost(t, { ...settings, connectionString })
  await app.register(credits, { ...defaults, ...options })
  return app
}

/** The plugin's options that the database of this run needs. */
export const defaults: FastifyAiCreditsOptions = pglite || process.env.TEST_PREPARE === 'off' ? { prepare: false } : {}

/** Sends a deduct to the default prefix. */
export async function postDeduct (app: FastifyInstance, body: object, headers: Record<string, string> = {}) {
  return await app.inject({ method: 'POST', url: '/api/credits/deduct', headers, body })
}

/** Returns the balance from `GET /credits`: `{ available, total, used }`. */
export async function getBalance (app: FastifyInstance, userId = 'default_user') {
  const reply = await app.inject({ url: '/api/credits', query: { user_id: userId } })
  const { usage_history: _history, ...balance } = reply.json().credits
  return balance
}
