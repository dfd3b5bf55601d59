import type { FastifyReply, FastifyRequest, preHandlerHookHandler } from 'fastify'
import Fastify from 'fastify'
import { describe, expect, test } from 'tstyche'
import credits, {
  fastifyAiCredits, type FastifyAiCreditsOptions, type Identity, type Prices, type RecurringAllowance
} from '../../src/index.js'

const app = Fastify()
declare const signIn: (request: FastifyRequest) => Promise<void>
declare const withDone: (request: FastifyRequest, reply: FastifyReply, done: (error?: Error) => void) => void
declare const preHandler: preHandlerHookHandler
const options = (options: FastifyAiCreditsOptions) => options

describe('the options', () => {
  test('all may be left out', () => {
    expect(app.register).type.toBeCallableWith(credits)
    expect(app.register).type.toBeCallableWith(fastifyAiCredits, {})
    expect(app.register).type.toBeCallableWith(credits, { allowance: 500, prefix: '/gw' })
  })

  test('are what they are said to be', () => {
    expect<Required<Omit<FastifyAiCreditsOptions, 'routes' | 'identify' | 'management'>>>().type.toBe<{
      prefix: string
      defaultUser: string | null
      allowance: number | RecurringAllowance
      prices: Prices
      priceVersion: string
      pg: string
      connectionString: string
      migrate: boolean
      sampleData: boolean
      historyDays: number
      historyLimit: number
      timeZone: string
      timeout: number
      maxQueue: number
      low: Array<number | `${number}%`>
      budgetLow: Array<number | `${number}%`>
      schema: string
      prepare: boolean
    }>()
  })

  test('an allowance may renew', () => {
    expect(options).type.toBeCallableWith({ allowance: { credits: 5, every: 'month' as const, rollover: { max: 2 } } })
    expect(options).type.not.toBeCallableWith({ allowance: { credits: 5, every: 'year' } })
    expect(options).type.not.toBeCallableWith({ allowance: { credits: 5 } })
  })

  test('prices are per quantity, with a base, limits and a rounding', () => {
    expect(options).type.toBeCallableWith({
      prices: {
        chat: { per: { input: { credits: 1, each: 1000 }, output: 4 }, minimum: 1, round: 'nearest' as const },
        video: { per: { seconds: { tiers: [{ upTo: 60, credits: 4 }, { credits: 3, each: 2 }] } }, base: 2, maximum: 2000 }
      },
      priceVersion: 'may'
    })
    expect(options).type.not.toBeCallableWith({ prices: { chat: 5 } })
    expect(options).type.not.toBeCallableWith({ prices: { chat: { per: { input: '1' } } } })
    expect(options).type.not.toBeCallableWith({ prices: { chat: { base: 1, round: 'half' } } })
    expect(options).type.not.toBeCallableWith({ prices: { chat: { base: 1, min: 5 } } })
    expect(options).type.not.toBeCallableWith({ prices: {}, priceVersion: 5 })
  })

  test('management needs authorize', () => {
    expect(options).type.toBeCallableWith({ management: { authorize: signIn } })
    expect(options).type.toBeCallableWith({ management: { authorize: [signIn, withDone, () => true] } })
    expect(options).type.toBeCallableWith({ management: { authorize: preHandler } })
    expect(options).type.not.toBeCallableWith({ management: { authorize: 'yes' } })
    expect(options).type.not.toBeCallableWith({ management: {} })
  })

  test('hold no others', () => {
    expect(options).type.not.toBeCallableWith({ allowence: 500 })
    expect(app.register).type.not.toBeCallableWith(credits, { allowence: 500 })
  })

  test('are not converted', () => {
    expect(options).type.not.toBeCallableWith({ allowance: '500' })
    expect(options).type.not.toBeCallableWith({ allowance: 500n })
    expect(options).type.not.toBeCallableWith({ prefix: null })
    expect(options).type.not.toBeCallableWith({ migrate: 'yes' })
  })
})

describe('routes', () => {
  test('are on, off, or have options of the host', () => {
    expect(options).type.toBeCallableWith({ routes: false })
    expect(options).type.toBeCallableWith({ routes: { deduct: false } })
    expect(options).type.toBeCallableWith({ routes: { read: true, deduct: { onRequest: signIn, config: {}, constraints: {} } } })
    expect(options).type.toBeCallableWith({ routes: { deduct: { preValidation: [signIn], preHandler: signIn } } })
  })

  test('have no others, and only options that guard', () => {
    expect(options).type.not.toBeCallableWith({ routes: { write: false } })
    expect(options).type.not.toBeCallableWith({ routes: { deduct: { schema: {} } } })
    expect(options).type.not.toBeCallableWith({ routes: { deduct: { onRequest: 'signIn' } } })
  })
})

describe('identify', () => {
  test('answers who asks, now or later', () => {
    expect(options).type.toBeCallableWith({ identify: () => 'ann' })
    expect(options).type.toBeCallableWith({ identify: async () => null })
    expect(options).type.toBeCallableWith({ identify: () => undefined })
    expect(options).type.toBeCallableWith({ identify: () => ({ any: true } as const) })
    expect<Identity>().type.toBe<
      string | { userId: string | null | undefined, budget?: string | null | undefined } | { any: true } | null | undefined
    >()
  })

  test('may bind a request to a budget', () => {
    expect(options).type.toBeCallableWith({ identify: () => ({ userId: 'acme', budget: 'key:k1' }) })
    expect(options).type.toBeCallableWith({ identify: async () => ({ userId: 'acme' }) })
    expect(options).type.toBeCallableWith({ identify: () => ({ userId: null, budget: undefined }) })
    expect(options).type.not.toBeCallableWith({ identify: () => ({ budget: 'key:k1' }) })
    expect(options).type.not.toBeCallableWith({ identify: () => ({ userId: 'acme', budget: 17 }) })
    expect(options).type.not.toBeCallableWith({ identify: () => ({ userId: 17 }) })
  })

  test('is given the request', () => {
    expect<Parameters<NonNullable<FastifyAiCreditsOptions['identify']>>>().type.toBe<[request: FastifyRequest]>()
  })

  test('answers nothing else', () => {
    expect(options).type.not.toBeCallableWith({ identify: () => 17 })
    expect(options).type.not.toBeCallableWith({ identify: () => ['ann'] })
    expect(options).type.not.toBeCallableWith({ identify: () => ({ any: false }) })
    expect(options).type.not.toBeCallableWith({ identify: 'ann' })
  })
})
