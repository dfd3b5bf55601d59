import type { Attributes, Span } from '@opentelemetry/api'
import { InsufficientCreditsError } from '../errors.js'
import type { Emitter } from './emitter.js'
import { MAX_TEXT_LENGTH } from './fields.js'
import { boundOperations } from './operation-names.js'
import { now } from './timers.js'

type Api = typeof import('@opentelemetry/api')

/** Metrics and spans of a ledger, where OpenTelemetry is there. */
export interface Telemetry {
  /** Resolves once it is known whether it is; until then nothing is measured. */
  ready: Promise<void>
  /** The methods, measured. */
  measured: <T extends object>(methods: T) => T
  /** Calls were sent as one statement. */
  sent: (calls: number) => void
  close: () => void
}

/** What is measured beside the calls. */
export interface TelemetrySources {
  emitter: Emitter
  /** How many calls wait for their turn. */
  queueLength: () => number
  /** Whether an operation has a price: metrics always show those by name. */
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

/** Finds `@opentelemetry/api`, an optional peer. */
export async function loadApi (): Promise<Api | undefined> {
  const [found] = await Promise.allSettled([import('@opentelemetry/api')])
  return (found as { value?: Api }).value // none where it is not installed
}

/** Measures a ledger once OpenTelemetry has been found; without it nothing ever happens. */
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
      const answer = await (recorded ? api.context.with(api.trace.setSpan(api.context.active(), span), call) : call())
      span.setAttributes(factsOf(answer))
      end({ 'ai_credits.verdict': (answer as { replayed?: unknown } | undefined)?.replayed === true ? 'replayed' : 'accepted' })
      return answer
    } catch (error) {
      const refused = error instanceof InsufficientCreditsError
      span.setAttributes(factsOf(...args, refused && { credits: error.required }))
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
    description: 'Time until a call was answered', unit: 's', advice: { explicitBucketBoundaries: SECONDS }
  })
  const batch = meter.createHistogram('ai_credits.batch.size', {
    description: 'Calls that shared a statement', unit: '{call}', advice: { explicitBucketBoundaries: CALLS }
  })
  const deducts = meter.createCounter('ai_credits.deducts', { description: 'Deducts and captures', unit: '{deduct}' })
  const credits = meter.createCounter('ai_credits.credits', { description: 'Credits spent', unit: '{credit}' })
  const refusals = meter.createCounter('ai_credits.refusals', { description: 'Calls refused (402)', unit: '{call}' })
  const spentOn = boundOperations(hasPrice)
  const refusedFor = boundOperations(hasPrice) // a refusal costs nothing: it is not to take the place of what was paid for
  emitter.add('deducted', ({ operation, credits: spent }) => {
    const attributes = { 'ai_credits.operation': spentOn(operation) }
    deducts.add(1, attributes)
    credits.add(spent, attributes)
  }, false)
  emitter.add('refused', ({ operation }) => refusals.add(1, { 'ai_credits.operation': refusedFor(operation) }), false)

  const queue = meter.createObservableUpDownCounter('ai_credits.queue.length', {
    description: 'Calls of the process that wait for their turn', unit: '{call}'
  })
  // All ledgers of the process: an instrument keeps the last value that it was told.
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

// Of the arguments, or of the answer: never the key, the metadata or the account.
function factsOf (...values: unknown[]): Parameters<Span['setAttributes']>[0] {
  const facts: Attributes = {}
  for (const value of values) {
    const { operation, credits } = Object(value)
    if (typeof operation === 'string') facts['ai_credits.operation'] = operation.slice(0, MAX_TEXT_LENGTH) // it may be refused as too long
    if (typeof credits === 'number') facts['ai_credits.credits'] = credits
  }
  return facts
}

function codeOf (error: unknown) {
  const { code, name } = error as { code?: unknown, name: string }
  return typeof code === 'string' ? code : name
}
