import type { PGlite } from '@electric-sql/pglite'
import type { FastifyInstance } from 'fastify'
import type pg from 'pg'
import { describe, expect, test } from 'tstyche'
import {
  createLedger, type Affordability, BudgetExceededError, IdempotencyConflictError, InsufficientCreditsError, InvalidInputError, UnavailableError,
  type Balance, type Credits, type CreditsEvents, type CreditsListener, type Deduction, type DeductedEvent, type History,
  type HistoryEntry, type Ledger, type Pruning, type Queryable, type Quote
} from '../../src/index.js'

declare const fastify: FastifyInstance
declare const pool: pg.Pool
declare const client: pg.PoolClient
declare const single: pg.Client
declare const pglite: PGlite
declare const adapter: { query (text: string, values?: unknown[]): Promise<{ rows: unknown[] }> }
declare const ledger: Ledger

const { deduct, canAfford, balance, history, prune } = fastify.credits

describe('fastify.credits', () => {
  test('is on every instance', () => {
    expect(fastify).type.toHaveProperty('credits')
    expect(fastify.credits).type.toBe<Credits>()
  })
})

describe('deduct', () => {
  test('takes credits and an operation, and may take more', () => {
    expect(deduct).type.toBeCallableWith({ credits: 100, operation: 'chat' })
    expect(deduct).type.toBeCallableWith({
      userId: 'ann', credits: 100, operation: 'chat', metadata: { words: [1, { a: null }] }, idempotencyKey: 'one'
    })
  })

  test('refuses what is missing, of another type, or unknown', () => {
    expect(deduct).type.not.toBeCallableWith()
    expect(deduct).type.not.toBeCallableWith({ operation: 'chat' })
    expect(deduct).type.not.toBeCallableWith({ credits: 100 })
    expect(deduct).type.not.toBeCallableWith({ credits: '100', operation: 'chat' })
    expect(deduct).type.not.toBeCallableWith({ credits: 100n, operation: 'chat' })
    expect(deduct).type.not.toBeCallableWith({ credits: 100, operation: 'chat', userId: null })
    expect(deduct).type.not.toBeCallableWith({ credits: 100, operation: 'chat', metadata: 'words' })
    expect(deduct).type.not.toBeCallableWith({ credits: 100, operation: 'chat', user_id: 'ann' })
  })

  test('answers the charge', () => {
    expect(deduct({ credits: 100, operation: 'chat' })).type.toBe<Promise<Deduction>>()
    expect<Deduction>().type.toBe<{
      id: string, userId: string, credits: number, operation: string, balance: Balance, replayed: boolean
    }>()
    expect<Balance>().type.toBe<{ available: number, total: number, used: number, held: number }>()
  })

  test('takes whatever runs SQL as client', () => {
    expect(deduct).type.toBeCallableWith({ credits: 1, operation: 'chat', client })
    expect(deduct).type.toBeCallableWith({ credits: 1, operation: 'chat', client: single })
    expect(deduct).type.toBeCallableWith({ credits: 1, operation: 'chat', client: pglite })
    expect(deduct).type.toBeCallableWith({ credits: 1, operation: 'chat', client: adapter })
    expect<Queryable>().type.toBeAssignableFrom<pg.PoolClient>()
  })

  test('takes nothing else as client', () => {
    expect(deduct).type.not.toBeCallableWith({ credits: 1, operation: 'chat', client: 'postgres://localhost' })
    expect(deduct).type.not.toBeCallableWith({ credits: 1, operation: 'chat', client: { query: () => [] } })
    expect(deduct).type.not.toBeCallableWith({ credits: 1, operation: 'chat', client: {} })
  })
})

describe('canAfford', () => {
  test('takes what deduct takes', () => {
    expect<Parameters<Credits['canAfford']>>().type.toBe<Parameters<Credits['deduct']>>()
    expect(canAfford).type.toBeCallableWith({ userId: 'ann', credits: 100, operation: 'chat', budget: 'key:1', idempotencyKey: 'one', client })
    expect(canAfford).type.not.toBeCallableWith({ credits: 100 })
  })

  test('answers with the error of a refusal, and does not throw it', () => {
    expect(canAfford({ credits: 100, operation: 'chat' })).type.toBe<Promise<Affordability>>()
    expect<Affordability>().type.toBe<{
      userId: string
      credits: number
      operation: string
      affordable: boolean
      replayed: boolean
      balance: Balance
      refusal: InsufficientCreditsError | BudgetExceededError | null
    }>()
  })
})

describe('charges by usage', () => {
  const { capture, quote } = fastify.credits
  const usage = { input_tokens: 1500 }

  test('deduct takes usage in place of credits', () => {
    expect(deduct).type.toBeCallableWith({ usage, operation: 'chat', userId: 'ann', idempotencyKey: 'one', client })
    expect(deduct).type.not.toBeCallableWith({ usage, operation: 'chat', credits: 1 })
    expect(deduct).type.not.toBeCallableWith({ usage })
    expect(deduct).type.not.toBeCallableWith({ usage: { input_tokens: '1500' }, operation: 'chat' })
    expect(deduct({ usage, operation: 'chat' })).type.toBe<Promise<Deduction>>()
  })

  test('capture takes an operation with it', () => {
    expect(capture).type.toBeCallableWith('17', { usage, operation: 'chat', metadata: { words: 1 }, idempotencyKey: 'one' })
    expect(capture).type.not.toBeCallableWith('17', { usage })
    expect(capture).type.not.toBeCallableWith('17', { operation: 'chat' })
    expect(capture).type.not.toBeCallableWith('17', { usage, operation: 'chat', credits: 1 })
  })

  test('quote answers at once', () => {
    expect(quote('chat', usage)).type.toBe<Quote>()
    expect<Quote>().type.toBe<{ credits: number, operation: string, version: string, usage: Record<string, number> }>()
    expect(quote).type.not.toBeCallableWith('chat')
  })
})

describe('balance and history', () => {
  test('take an account or leave it out', () => {
    expect(balance).type.toBeCallableWith()
    expect(balance).type.toBeCallableWith('ann')
    expect(balance).type.not.toBeCallableWith(17)
    expect(history).type.toBeCallableWith()
    expect(history).type.toBeCallableWith(undefined, { days: 7, limit: 10, cursor: 'next' })
    expect(history).type.not.toBeCallableWith('ann', { day: 7 })
    expect(history).type.not.toBeCallableWith('ann', { cursor: null })
  })

  test('answer', () => {
    expect(balance()).type.toBe<Promise<Balance>>()
    expect(history()).type.toBe<Promise<History>>()
    expect<History>().type.toBe<{ entries: HistoryEntry[], cursor: string | null }>()
    expect<HistoryEntry>().type.toBe<{ date: string, used: number, operation: string, metadata: Record<string, unknown> }>()
  })
})

describe('events', () => {
  test('have listeners that take their own payload', () => {
    fastify.credits.on('deducted', event => {
      expect(event).type.toBe<DeductedEvent>()
      expect(event.holdId).type.toBe<string | undefined>()
    })
    ledger.once('low', ({ threshold }) => expect(threshold).type.toBe<number | `${number}%`>())
    fastify.credits.off('renewed', async ({ details }) => expect(details.periods).type.toBe<number>())
    expect<keyof CreditsEvents>().type.toBe<'deducted' | 'refused' | 'budget_exceeded' | 'granted' | 'lapsed' | 'low' | 'budget_low' | 'exhausted' | 'renewed'>()
    expect<CreditsListener<'exhausted'>>().type.toBeAssignableFrom<(event: { userId: string, balance: Balance }) => Promise<void>>()
  })

  test('have no other names and payloads', () => {
    const { on } = fastify.credits
    expect(on).type.not.toBeCallableWith('deduct', () => {})
    expect(on).type.not.toBeCallableWith('deducted')
    expect(on).type.not.toBeCallableWith('low', (event: DeductedEvent) => event)
  })
})

describe('prune', () => {
  test('takes a time, and may take a batch and a listener', () => {
    expect(prune).type.toBeCallableWith({ before: new Date() })
    expect(prune).type.toBeCallableWith({ before: '2024-01-01T00:00:00Z', batch: 100, onProgress: () => {} })
    expect(prune).type.toBeCallableWith({ before: new Date(), onProgress: async ({ records }: Pruning) => records })
  })

  test('refuses what is missing, of another type, or unknown', () => {
    expect(prune).type.not.toBeCallableWith()
    expect(prune).type.not.toBeCallableWith({})
    expect(prune).type.not.toBeCallableWith({ before: 0 })
    expect(prune).type.not.toBeCallableWith({ before: new Date(), userId: 'ann' })
  })

  test('answers how much it did', () => {
    expect(prune({ before: new Date() })).type.toBe<Promise<Pruning>>()
    expect<Pruning>().type.toBe<{ accounts: number, records: number }>()
  })
})

describe('createLedger', () => {
  test('takes a pool of pg and the options of a ledger', () => {
    expect(createLedger).type.toBeCallableWith(pool)
    expect(createLedger).type.toBeCallableWith(pool, { allowance: 5, defaultUser: null, timeout: 100, prepare: false })
    expect(createLedger(pool)).type.toBe<Ledger>()
  })

  test('takes neither a client nor PGlite, which lend no connections', () => {
    expect(createLedger).type.not.toBeCallableWith(client)
    expect(createLedger).type.not.toBeCallableWith(pglite)
    expect(createLedger).type.not.toBeCallableWith('postgres://localhost')
    expect(createLedger).type.not.toBeCallableWith()
  })

  test('does not take the options of the plugin', () => {
    expect(createLedger).type.not.toBeCallableWith(pool, { prefix: '/api' })
    expect(createLedger).type.not.toBeCallableWith(pool, { connectionString: 'postgres://localhost' })
  })

  test('answers what a Fastify instance has, and two methods more', () => {
    expect(ledger).type.toBeAssignableTo<Credits>()
    expect(ledger.migrate()).type.toBe<Promise<void>>()
    expect(ledger.close()).type.toBe<Promise<void>>()
    expect<Credits>().type.not.toHaveProperty('migrate')
  })
})

describe('errors', () => {
  test('say what a caller needs', () => {
    expect<InsufficientCreditsError['credits']>().type.toBe<Balance>()
    expect<InsufficientCreditsError['required']>().type.toBe<number>()
    expect<InvalidInputError['field']>().type.toBe<string>()
    expect<IdempotencyConflictError>().type.toBeAssignableTo<Error & { code: string, statusCode?: number }>()
    expect<UnavailableError>().type.toBeAssignableTo<Error & { headers: { 'retry-after': string } }>()
  })
})
