import { setTimeout as sleep } from 'node:timers/promises'
import type { FastifyInstance } from 'fastify'
import type { Test } from 'tap'
import { postDeduct } from '../helper/app.js'
import { createPool } from '../helper/database.js'

/** A call of the gateway under test. */
export const charge = { userId: 'ann', credits: 10, operation: 'chat' }

/** The body of a request that makes this call. */
export const body = { user_id: 'ann', credits: 10, operation: 'chat' }

/** The error of an outage. */
export const unavailable = { statusCode: 503, code: 'FST_CREDITS_UNAVAILABLE' }

/** Asserts that a deduct gets a 503 with Retry-After, and that the reply says nothing about the database. */
export async function checkUnavailable (t: Test, app: FastifyInstance, key?: string): Promise<void> {
  const reply = await postDeduct(app, body, key === undefined ? {} : { 'idempotency-key': key })
  t.equal(reply.statusCode, 503)
  t.equal(reply.headers['retry-after'], '1')
  t.strictSame(reply.json(), { ...unavailable, error: 'Service Unavailable', message: 'The credits database is unavailable' })
}

/**
 * Asserts that an outage has left no trace: the pool has all connections back and can lend them, calls succeed, and accounts
 * reconcile. `direct`: a connection string that avoids the fault.
 */
export async function checkRecovered (t: Test, app: FastifyInstance, direct: string): Promise<void> {
  const { pool } = app.pg
  const observer = createPool(t, direct)
  while (pool.idleCount < pool.totalCount || pool.waitingCount > 0 || await working(observer)) await sleep(10)
  t.ok(pool.totalCount <= pool.options.max)
  await Promise.all(Array.from({ length: pool.options.max }, () => pool.query('select')))
  await app.credits.deduct({ ...charge, userId: 'later' })
  t.match(await app.credits.reconcile(), { ok: true, differences: [] }, 'every account reconciles')
}

// Backends whose client is gone may still be working.
async function working (observer: ReturnType<typeof createPool>) {
  const { rowCount } = await observer.query(`
    select from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()
    and backend_type = 'client backend' and state <> 'idle'`)
  return rowCount !== 0
}
