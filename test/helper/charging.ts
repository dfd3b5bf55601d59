import { once } from 'node:events'
import { request as httpRequest, type IncomingMessage } from 'node:http'
import { setTimeout as sleep } from 'node:timers/promises'
import type { FastifyInstance, FastifyServerOptions } from 'fastify'
import type { Test } from 'tap'
import { CHARGING, type Marked } from '../../src/http/charging/route-charging.js'
import credits, { type Balance, type FastifyAiCreditsOptions } from '../../src/index.js'
import { buildHost, defaults, type GatewaySettings } from './app.js'
import { createLedgerDatabase } from './database.js'

/** Settings of a gateway with charged routes. */
export interface ChargedSettings extends GatewaySettings {
  options?: FastifyAiCreditsOptions
  server?: FastifyServerOptions
  /** What the host registers before the plugin. */
  before?: (app: FastifyInstance) => unknown
}

/** A gateway that listens. */
export interface ChargedGateway {
  app: FastifyInstance
  url: string
  /** What it has logged as a warning or worse. */
  lines: Record<string, any>[]
  /** Sends a request as this user, and reads the reply to its end. */
  ask (user: string, path: string, init?: RequestInit): Promise<Answer>
  /** Sends a request as this user, reads so many chunks of the reply, and goes away. */
  leave (user: string, path: string, chunks: number): Promise<void>
  /** The user's balance once nothing is held any more. */
  settled (user: string): Promise<Balance>
  /** How many charged requests are not settled. */
  inFlight (): number
}

/** What came back. */
export interface Answer {
  status: number
  headers: Headers
  text: string
}

/**
 * A gateway whose users have 1000 credits and say who they are in `x-user`, with the routes that `declare` adds. At the
 * end of the test all accounts must reconcile.
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
    inFlight: () => (app as Marked)[CHARGING]!['inFlight'].size
  }
}

/** Asks until the answer is as wanted. */
export async function until<T> (ask: () => T | Promise<T>, wanted: (answer: T) => unknown): Promise<T> {
  for (;;) {
    const answer = await ask()
    if (wanted(answer)) return answer
    await sleep(5)
  }
}

/** That all accounts agree with their records. */
export async function reconciles (t: Test, { app }: ChargedGateway): Promise<void> {
  t.match(await app.credits.reconcile(), { ok: true, differences: [] }, 'every account reconciles')
}

/** Sends a request with node:http; the reply is still to be read. */
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
