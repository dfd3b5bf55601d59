import { once } from 'node:events'
import { request as httpRequest, type IncomingMessage } from 'node:http'
import { setTimeout as sleep } from 'node:timers/promises'
import type { FastifyInstance, FastifyServerOptions } from 'fastify'
import type { Test } from 'tap'
import { CHARGING, type HasCharging } from '../../src/http/charging/route-charging.js'
import credits, { type Balance, type FastifyAiCreditsOptions } from '../../src/index.js'
import { buildHost, defaults, type GatewaySettings } from './app.js'
import { createLedgerDatabase } from './database.js'

/** Settings of a gateway with charged routes. */
export interface ChargedSettings extends GatewaySettings {
  options?: FastifyAiCreditsOptions
  server?: FastifyServerOptions
  /** Called before the plugin is registered. */
  before?: (app: FastifyInstance) => unknown
}

/** A gateway with charged routes that listens. */
export interface ChargedGateway {
  app: FastifyInstance
  url: string
  /** The lines of its log, from the level warn. */
  lines: Record<string, any>[]
  /** Sends a request as this user, and reads the reply to its end. */
  ask (user: string, path: string, init?: RequestInit): Promise<Answer>
  /** Sends a request as this user, reads so many chunks of the reply, and closes the connection. */
  leave (user: string, path: string, chunks: number): Promise<void>
  /** Waits until nothing is held for the user, and returns the balance. */
  settled (user: string): Promise<Balance>
  /** Returns how many charged requests are not settled. */
  inFlight (): number
}

/** A reply, read to its end. */
export interface Answer {
  status: number
  headers: Headers
  text: string
}

/**
 * Starts a gateway with the routes that `declare` adds. Its users have 1000 credits, and are named by the header `x-user`.
 */
export async function buildCharged (
  t: Test, declare: (app: FastifyInstance) => unknown, { options, server, before, ...settings }: ChargedSettings = {}
): Promise<ChargedGateway> {
  const lines: Record<string, any>[] = []
  const logger = { level: 'warn', stream: { write: (line: string) => { lines.push(JSON.parse(line)) } } }
  const app = await buildHost(t, {
    connectionString: await createLedgerDatabase(t),
    ...settings,
    server: { logger, forceCloseConnections: true, ...server } as FastifyServerOptions
  })
  await before?.(app)
  await app.register(credits, { ...defaults, allowance: 1000, identify: request => request.headers['x-user'] as string, ...options })
  await declare(app)
  const url = await app.listen({ port: 0, host: '127.0.0.1' })
  return {
    app,
    url,
    lines,
    ask: async (user, path, init = {}) => {
      const reply = await fetch(url + path, { ...init, headers: { 'x-user': user, ...init.headers } })
      return { status: reply.status, headers: reply.headers, text: await reply.text() }
    },
    leave: (user, path, chunks) => leave(url + path, user, chunks),
    settled: user => until(() => app.credits.balance(user), ({ held }) => held === 0),
    inFlight: () => (app as HasCharging)[CHARGING]!['inFlight'].size
  }
}

/** Repeats a call until its result is wanted, and returns that result. */
export async function until<T> (call: () => T | Promise<T>, isWanted: (result: T) => unknown): Promise<T> {
  for (;;) {
    const result = await call()
    if (isWanted(result)) return result
    await sleep(5)
  }
}

/** Asserts that all accounts agree with their records. */
export async function reconciles (t: Test, { app }: ChargedGateway): Promise<void> {
  t.match(await app.credits.reconcile(), { ok: true, differences: [] }, 'every account reconciles')
}

/** Sends a request with node:http, and returns the reply once its headers are there. */
export async function open (url: string, user: string, headers: Record<string, string> = {}): Promise<IncomingMessage> {
  const request = httpRequest(url, { headers: { 'x-user': user, ...headers } }).end()
  const [reply] = await once(request, 'response')
  return reply
}

async function leave (url: string, user: string, chunks: number) {
  if (chunks === 0) throw new Error('Use a request of your own to go away before the reply')
  const reply = await open(url, user)
  for (let seen = 0; seen < chunks; seen++) await once(reply, 'data')
  reply.destroy()
}
