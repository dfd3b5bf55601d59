import type { Attributes, Span } from '@opentelemetry/api'
import type { Emitter } from './events/emitter.js'
import { MAX_TEXT_LENGTH } from './input/fields.js'
import { isShortage } from './posting/verdict.js'
import { now } from './timers.js'

type Api = typeof import('@opentelemetry/api')

/** Metrics and spans of a ledger, if OpenTelemetry is installed. */
export interface Telemetry {
  /** Resolves once OpenTelemetry was found, or was not. Until then, nothing is measured. */
  ready: Promise<void>
  /** Returns the methods with measurement added. */
  measured: <T extends object>(methods: T) => T
  /** Records how many calls were sent in one statement. */
  sent: (calls: number) => void
  close: () => void
}

/** Where measurements other than those of calls come from. */
export interface TelemetrySources {
  emitter: Emitter
  /** Returns how many calls wait for their turn. */
  queueLength: () => number
  /** Returns whether an operation has a price. Metrics always show such operations by name. */
  hasPrice: (operation: string) => boolean
}

type Method = (...args: unknown[]) => Promise<unknown>

interface Instruments {
  measure: (name: string, method: Method, args: unknown[]) => Promise<unknown>
  sent: (calls: number) => void
  close: () => void
}

const NAME = 'fastify-ai-credits'

const SECONDS = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5]
const CALLS = [1, 2, 5, 10, 20, 40, 80, 160]

/** Loads `@opentelemetry/api`, an optional peer dependency. Returns undefined if it is not installed. */
export async function loadApi (): Promise<Api | undefined> {
  const [found] = await Promise.allSettled([import('@opentelemetry/api')])
  return (found as { value?: Api }).value
}

/** Begins to measure a ledger once OpenTelemetry is loaded. If it is not installed, nothing is measured. */
export function openTelemetry (sources: TelemetrySources, load = loadApi): Telemetry {
  let instruments: Instruments | undefined
  let closed = false
  const ready = load().then(api => {
    if (api !== undefined && !closed) instruments = createInstruments(api, sources)
  })
  const measured = (name: string, method: Method): Method => (...args) =>
    instruments === undefined ? method(...args) : instruments.measure(name, method, args)
  return {
    ready,
    measured: <T extends object>(methods: T) => Object.fromEntries(
      Object.entries(methods).map(([name, method]) => [name, measured(name, method)])) as T,
    sent: calls => instruments?.sent(calls),
    close () {
      closed = true
      instruments?.close()
      instruments = undefined
    }
  }
}

function createInstruments (api: Api, sources: TelemetrySources): Instruments {
  const tracer = api.trace.getTracer(NAME)
  const meter = api.metrics.getMeter(NAME)
  const metrics = meter === api.createNoopMeter() ? undefined : createMetrics(meter, sources)

  async function measure (name: string, method: Method, args: unknown[]) {
    const span = tracer.startSpan(`ai_credits.${name}`)
    const recorded = span.isRecording()
    if (!recorded && metrics === undefined) return await method(...args)
    const start = now()
    const end = (outcome: Attributes) => {
      metrics?.duration.record((now() - start) / 1000, { 'ai_credits.method': name, ...outcome })
      span.setAttributes(outcome)
      span.end()
    }
    try {
      const call = () => method(...args)
      const result = await (recorded ? api.context.with(api.trace.setSpan(api.context.active(), span), call) : call())
      span.setAttributes(attributesOf(result))
      end(outcomeOf(result))
      return result
    } catch (error) {
      const refused = isShortage(error)
      span.setAttributes(attributesOf(...args, refused && { credits: error.required }))
      if (!refused) span.setStatus({ code: api.SpanStatusCode.ERROR })
      end({ 'ai_credits.verdict': refused ? 'refused' : 'failed', 'error.type': codeOf(error) })
      throw error
    }
  }

  return {
    measure,
    sent: calls => metrics?.batch.record(calls),
    close: () => metrics?.close()
  }
}

const queueLengths = new Set<() => number>()

function createMetrics (
  meter: ReturnType<Api['metrics']['getMeter']>, { emitter, queueLength, hasPrice }: TelemetrySources
) {
  const duration = meter.createHistogram('ai_credits.call.duration', {
    description: 'Time until a call returned', unit: 's', advice: { explicitBucketBoundaries: SECONDS }
  })
  const batch = meter.createHistogram('ai_credits.batch.size', {
    description: 'Calls that shared a statement', unit: '{call}', advice: { explicitBucketBoundaries: CALLS }
  })
  const deducts = meter.createCounter('ai_credits.deducts', { description: 'Deducts and captures', unit: '{deduct}' })
  const credits = meter.createCounter('ai_credits.credits', { description: 'Credits spent', unit: '{credit}' })
  const refusals = meter.createCounter('ai_credits.refusals', { description: 'Calls refused (402)', unit: '{call}' })
  const spentOn = limitOperations(hasPrice)
  // Refusals have their own limit. They cost nothing, so invented operations could otherwise use up the names of paid ones.
  const refusedFor = limitOperations(hasPrice)
  emitter.add('deducted', ({ operation, credits: spent }) => {
    const attributes = { 'ai_credits.operation': spentOn(operation) }
    deducts.add(1, attributes)
    credits.add(spent, attributes)
  }, false)
  for (const event of ['refused', 'budget_exceeded'] as const) {
    emitter.add(event, ({ operation }) => refusals.add(1, { 'ai_credits.operation': refusedFor(operation) }), false)
  }

  const queue = meter.createObservableUpDownCounter('ai_credits.queue.length', {
    description: 'Calls of the process that wait for their turn', unit: '{call}'
  })
  // The sum of all ledgers in the process, because an instrument keeps only the last value that it observes.
  const observe: Parameters<typeof queue.addCallback>[0] = result =>
    result.observe([...queueLengths].reduce((sum, length) => sum + length(), 0))
  queueLengths.add(queueLength)
  queue.addCallback(observe)
  return {
    duration,
    batch,
    close () {
      queueLengths.delete(queueLength)
      queue.removeCallback(observe)
    }
  }
}

const MOST_OPERATIONS = 100
const OTHER_OPERATIONS = '_other'

// Limits how many operations a metric shows by name, because each name makes a separate series, and clients can invent
// names. The `expected` operations and the first hundred others keep their names. The rest are shown as one.
function limitOperations (expected: (operation: string) => boolean): (operation: string) => string {
  const others = new Set<string>()
  return operation => {
    if (expected(operation) || others.has(operation)) return operation
    if (others.size === MOST_OPERATIONS) return OTHER_OPERATIONS
    others.add(operation)
    return operation
  }
}

// Returns the span attributes that the arguments or the result contain. These never include the idempotency key, the
// metadata or the account.
function attributesOf (...values: unknown[]): Parameters<Span['setAttributes']>[0] {
  const attributes: Attributes = {}
  for (const value of values) {
    const { operation, credits } = Object(value)
    // An operation that is about to be refused may be too long.
    if (typeof operation === 'string') attributes['ai_credits.operation'] = operation.slice(0, MAX_TEXT_LENGTH)
    if (typeof credits === 'number') attributes['ai_credits.credits'] = credits
  }
  return attributes
}

// Returns the outcome of a call that returned. `canAfford` returns a refusal, and does not throw it.
function outcomeOf (result: unknown): Attributes {
  const { replayed, refusal = null } = Object(result)
  if (refusal !== null) return { 'ai_credits.verdict': 'refused', 'error.type': codeOf(refusal) }
  return { 'ai_credits.verdict': replayed === true ? 'replayed' : 'accepted' }
}

function codeOf (error: unknown) {
  const { code, name } = error as { code?: unknown, name: string }
  return typeof code === 'string' ? code : name
}
