import type { FastifyReply, FastifyRequest } from 'fastify'
import Fastify from 'fastify'
import { describe, expect, test } from 'tstyche'
import type { ChargedRequest, Metadata, RequestCredits, RouteCredits } from '../../src/index.js'

const app = Fastify()
const charge = (config: RouteCredits) => config

describe('config.credits', () => {
  test('is known to Fastify, whatever the method', () => {
    app.post('/', { config: { credits: { operation: 'chat', cost: 1 } } }, async () => {})
    app.get<{ Querystring: { n: number } }>('/', { config: { credits: { operation: 'chat', hold: 5 } } }, async () => {})
    // @ts-expect-error not assignable
    app.get('/', { config: { credits: { operation: 'chat', cost: '1' } } }, async () => {})
  })

  test('has amounts, or functions of the request', () => {
    expect(charge).type.toBeCallableWith({ operation: 'chat', cost: 1 })
    expect(charge).type.toBeCallableWith({ operation: 'chat', hold: 5, cost: (request: ChargedRequest) => request.credits.used })
    expect(charge).type.toBeCallableWith({ operation: 'chat', hold: async () => 5, cost: async () => 1 })
    expect(charge).type.toBeCallableWith({ operation: 'chat', cost: (_request: FastifyRequest, reply: FastifyReply) => reply.statusCode })
    expect(charge).type.not.toBeCallableWith({ operation: 'chat', cost: () => '1' })
    expect(charge).type.not.toBeCallableWith({ cost: 1 })
  })

  test('has settings, and no others', () => {
    expect(charge).type.toBeCallableWith({
      operation: 'chat',
      cost: 1,
      minimum: 1,
      ttl: 5000,
      maxDuration: 10_000,
      capture: 'before' as const,
      onUnavailable: 'allow' as const,
      metadata: { a: 1 },
      user: () => 'ann',
      budget: 'key:k1'
    })
    expect(charge).type.toBeCallableWith({ operation: 'chat', cost: 1, metadata: async () => ({ a: 1 }), user: async () => null })
    expect(charge).type.not.toBeCallableWith({ operation: 'chat', cost: 1, capture: 'never' })
    expect(charge).type.not.toBeCallableWith({ operation: 'chat', cost: 1, costs: 1 })
  })

  test('has a budget, or a function of the request that returns one or none', () => {
    expect<NonNullable<RouteCredits['budget']>>().type.toBe<
      string | ((request: FastifyRequest) => string | null | undefined | Promise<string | null | undefined>)
    >()
    expect(charge).type.toBeCallableWith({ operation: 'chat', cost: 1, budget: async () => undefined })
    expect(charge).type.toBeCallableWith({ operation: 'chat', cost: 1, user: () => ({ userId: 'acme', budget: 'key:k1' }) })
    expect(charge).type.not.toBeCallableWith({ operation: 'chat', cost: 1, budget: 17 })
    expect(charge).type.not.toBeCallableWith({ operation: 'chat', cost: 1, budget: () => 17 })
    expect(charge).type.not.toBeCallableWith({ operation: 'chat', cost: 1, budget: null })
  })

  test('tells a cost function what is held', () => {
    expect<ChargedRequest['credits']>().type.toBe<RequestCredits>()
  })
})

describe('request.credits', () => {
  test('may be null', () => {
    expect<FastifyRequest['credits']>().type.toBe<RequestCredits | null>()
  })

  test('is what it is said to be', () => {
    expect<RequestCredits['holdId']>().type.toBe<string | null>()
    expect<RequestCredits['budget']>().type.toBe<string | null>()
    expect<RequestCredits['use']>().type.toBe<(credits: number) => void>()
    expect<RequestCredits['metadata']>().type.toBe<(facts: Metadata) => void>()
    expect<RequestCredits['cancel']>().type.toBe<() => void>()
  })
})
