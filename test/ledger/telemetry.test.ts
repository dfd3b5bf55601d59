import * as api from '@opentelemetry/api'
import { AggregationTemporality, InMemoryMetricExporter, MeterProvider, PeriodicExportingMetricReader } from '@opentelemetry/sdk-metrics'
import { BasicTracerProvider, InMemorySpanExporter, SimpleSpanProcessor } from '@opentelemetry/sdk-trace-base'
import t, { type Test } from 'tap'
import { createLedger, type Ledger, type LedgerOptions } from '../../src/index.js'
import { Emitter } from '../../src/ledger/events/emitter.js'
import { openTelemetry } from '../../src/ledger/telemetry.js'
import { createLedgerDatabase, createPool, pglite } from '../helper/database.js'
import { hear } from '../helper/hear.js'

const ann = { userId: 'ann', operation: 'chat' }

// OpenTelemetry has one set of globals for the process.
t.jobs = 1

t.test('without an SDK calls are answered as ever', async t => {
  const ledger = await open(t)
  t.match(await ledger.deduct({ ...ann, credits: 1 }), { balance: { used: 1 } })
  await t.rejects(ledger.deduct({ ...ann, credits: 10_000 }), { code: 'FST_CREDITS_INSUFFICIENT' })
  await ledger.close()
})

t.test('each call is a span with its operation, credits and verdict, and nothing that is private', async t => {
  const spans = trace(t)
  const ledger = await open(t, { allowance: 100 })
  await ledger.deduct({ ...ann, credits: 10, idempotencyKey: 'secret key', metadata: { secret: 'metadata' } })
  await ledger.deduct({ ...ann, credits: 10, idempotencyKey: 'secret key', metadata: { secret: 'metadata' } })
  await t.rejects(ledger.deduct({ ...ann, credits: 500 }))
  await t.rejects(ledger.deduct({ ...ann, credits: 0 }))
  const { id } = await ledger.hold({ ...ann, credits: 20 })
  await ledger.capture(id, { credits: 5 })
  await t.rejects(ledger.capture('999'))
  await ledger.balance('ann')
  await ledger.canAfford({ ...ann, credits: 7 })
  await ledger.canAfford({ ...ann, credits: 700 })
  await ledger.setBudget('ann', 'a', { day: 8 })
  await ledger.canAfford({ ...ann, credits: 9, budget: 'a' })
  await t.rejects(ledger.hold({ ...ann, credits: 9, budget: 'a' }))
  const of9 = { 'ai_credits.operation': 'chat', 'ai_credits.credits': 9, 'ai_credits.verdict': 'refused', 'error.type': 'FST_CREDITS_BUDGET_EXCEEDED' }
  t.strictSame(spans().map(({ name, attributes, status }) => [name, attributes, status.code]), [
    ['ai_credits.deduct', { 'ai_credits.operation': 'chat', 'ai_credits.credits': 10, 'ai_credits.verdict': 'accepted' }, 0],
    ['ai_credits.deduct', { 'ai_credits.operation': 'chat', 'ai_credits.credits': 10, 'ai_credits.verdict': 'replayed' }, 0],
    ['ai_credits.deduct', {
      'ai_credits.operation': 'chat',
      'ai_credits.credits': 500,
      'ai_credits.verdict': 'refused',
      'error.type': 'FST_CREDITS_INSUFFICIENT'
    }, 0],
    ['ai_credits.deduct', {
      'ai_credits.operation': 'chat', 'ai_credits.credits': 0, 'ai_credits.verdict': 'failed', 'error.type': 'FST_CREDITS_INVALID'
    }, 2],
    ['ai_credits.hold', { 'ai_credits.operation': 'chat', 'ai_credits.credits': 20, 'ai_credits.verdict': 'accepted' }, 0],
    ['ai_credits.capture', { 'ai_credits.credits': 5, 'ai_credits.verdict': 'accepted' }, 0],
    ['ai_credits.capture', { 'ai_credits.verdict': 'failed', 'error.type': 'FST_CREDITS_NOT_FOUND' }, 2],
    ['ai_credits.balance', { 'ai_credits.verdict': 'accepted' }, 0],
    ['ai_credits.canAfford', { 'ai_credits.operation': 'chat', 'ai_credits.credits': 7, 'ai_credits.verdict': 'accepted' }, 0],
    ['ai_credits.canAfford', {
      'ai_credits.operation': 'chat',
      'ai_credits.credits': 700,
      'ai_credits.verdict': 'refused',
      'error.type': 'FST_CREDITS_INSUFFICIENT'
    }, 0],
    ['ai_credits.setBudget', { 'ai_credits.verdict': 'accepted' }, 0],
    ['ai_credits.canAfford', of9, 0],
    ['ai_credits.hold', of9, 0]
  ])
  await ledger.close()
})

t.test('deducts, refusals and credits are counted by operation, calls timed, statements sized', async t => {
  const metrics = measure(t)
  const ledger = await open(t, { allowance: 100 })
  const { id } = await ledger.hold({ ...ann, credits: 20 })
  await Promise.all([1, 2, 3].map(credits => ledger.deduct({ userId: 'ann', credits, operation: 'video' })))
  await ledger.capture(id, { credits: 15 })
  await t.rejects(ledger.deduct({ ...ann, credits: 101 }))
  await ledger.setBudget('ann', 'a', { day: 5 })
  await t.rejects(ledger.deduct({ ...ann, credits: 6, budget: 'a' }))
  await hear(ledger, [])()
  const read = await metrics()
  t.strictSame(read('ai_credits.deducts'), [['video', 3], ['chat', 1]])
  t.strictSame(read('ai_credits.credits'), [['video', 6], ['chat', 15]])
  t.strictSame(read('ai_credits.refusals'), [['chat', 2]], 'by the balance, and by a budget')
  t.strictSame(read('ai_credits.queue.length'), [[undefined, 0]])
  const durations = read.points('ai_credits.call.duration')
  t.strictSame(durations.map(({ attributes, value }) => [attributes, (value as { count: number }).count]), [
    [{ 'ai_credits.method': 'hold', 'ai_credits.verdict': 'accepted' }, 1],
    [{ 'ai_credits.method': 'deduct', 'ai_credits.verdict': 'accepted' }, 3],
    [{ 'ai_credits.method': 'capture', 'ai_credits.verdict': 'accepted' }, 1],
    [{ 'ai_credits.method': 'deduct', 'ai_credits.verdict': 'refused', 'error.type': 'FST_CREDITS_INSUFFICIENT' }, 1],
    [{ 'ai_credits.method': 'setBudget', 'ai_credits.verdict': 'accepted' }, 1],
    [{ 'ai_credits.method': 'deduct', 'ai_credits.verdict': 'refused', 'error.type': 'FST_CREDITS_BUDGET_EXCEEDED' }, 1],
    [{ 'ai_credits.method': 'grant', 'ai_credits.verdict': 'accepted' }, 1]
  ])
  const [batch] = read.points('ai_credits.batch.size')
  t.match(batch!.value, { sum: 8, max: 3, count: 6 }) // the first call is sent twice, because its account does not exist yet
  await ledger.close()
})

t.test('operations that somebody invents do not crowd out the others', async t => {
  const metrics = measure(t)
  const ledger = await open(t, { allowance: 1000, prices: { priced: { base: 1 } } })
  const invented = Array.from({ length: 300 }, (_, index) => `invented ${index}`)
  await Promise.all(invented.map(operation => t.rejects(ledger.deduct({ userId: 'ann', credits: 1001, operation }))))
  await ledger.deduct({ userId: 'ann', credits: 7, operation: 'video' })
  await Promise.all(invented.map(operation => ledger.deduct({ userId: 'ann', credits: 1, operation })))
  await ledger.deduct({ userId: 'ann', operation: 'priced', usage: {} })
  await ledger.deduct({ userId: 'ann', credits: 7, operation: 'video' })
  await hear(ledger, [])()
  const read = await metrics()
  const credits = read('ai_credits.credits')
  t.equal(credits.length, 102)
  t.strictSame(credits.filter(([operation]) => !/^invented/.test(String(operation))), [['video', 14], ['_other', 201], ['priced', 1]])
  t.strictSame(read('ai_credits.deducts').find(([operation]) => operation === '_other'), ['_other', 201])
  t.strictSame([read('ai_credits.refusals').length, read('ai_credits.refusals').at(-1)], [101, ['_other', 200]])
  await ledger.close()
})

t.test('a span of a call that is refused has no more of an operation than an operation may have', async t => {
  const spans = trace(t)
  const ledger = await open(t)
  await t.rejects(ledger.deduct({ userId: 'ann', credits: 1, operation: 'x'.repeat(100_000) }))
  t.match(spans(), [{ attributes: { 'ai_credits.operation': 'x'.repeat(255) } }])
  await ledger.close()
})

t.test('the queue is counted over all ledgers of the process, and no more once they are closed', async t => {
  const metrics = measure(t)
  const lengths = [3, 4]
  const telemetries = lengths.map(length => openTelemetry({ emitter: new Emitter(() => {}), queueLength: () => length, hasPrice: () => false }))
  await Promise.all(telemetries.map(({ ready }) => ready))
  t.strictSame((await metrics())('ai_credits.queue.length'), [[undefined, 7]])
  telemetries[0]!.close()
  t.strictSame((await metrics())('ai_credits.queue.length'), [[undefined, 4]])
  telemetries[1]!.close()
  telemetries[1]!.sent(1)
})

t.test('a ledger that is closed before OpenTelemetry is found is not measured', async t => {
  const spans = trace(t)
  const telemetry = openTelemetry({ emitter: new Emitter(() => {}), queueLength: () => 0, hasPrice: () => false })
  telemetry.close()
  await telemetry.ready
  t.equal(await telemetry.measured({ balance: async () => 5 }).balance(), 5)
  t.strictSame(spans(), [])
})

t.test('without @opentelemetry/api nothing is measured', async t => {
  const spans = trace(t)
  const telemetry = openTelemetry({ emitter: new Emitter(() => {}), queueLength: () => 0, hasPrice: () => false }, async () => undefined)
  await telemetry.ready
  telemetry.sent(1)
  t.equal(await telemetry.measured({ balance: async () => 5 }).balance(), 5)
  telemetry.close()
  t.strictSame(spans(), [])
})

t.test('an error without a code is told by its name', async t => {
  const spans = trace(t)
  const telemetry = openTelemetry({ emitter: new Emitter(() => {}), queueLength: () => 0, hasPrice: () => false })
  await telemetry.ready
  await t.rejects(telemetry.measured({ async balance () { throw new TypeError() } }).balance())
  t.match(spans(), [{ attributes: { 'ai_credits.verdict': 'failed', 'error.type': 'TypeError' } }])
  telemetry.close()
})

async function open (t: Test, options: LedgerOptions = {}): Promise<Ledger> {
  const ledger = createLedger(createPool(t, await createLedgerDatabase(t)), { prepare: !pglite, ...options })
  await ledger.migrate()
  return ledger
}

/** Registers an SDK for spans until the end of the test. Returns the spans that have ended. */
function trace (t: Test) {
  const exporter = new InMemorySpanExporter()
  api.trace.setGlobalTracerProvider(new BasicTracerProvider({ spanProcessors: [new SimpleSpanProcessor(exporter)] }))
  t.teardown(() => api.trace.disable())
  return () => exporter.getFinishedSpans()
}

/** Registers an SDK for metrics until the end of the test. Returns a function that reads them. */
function measure (t: Test) {
  const exporter = new InMemoryMetricExporter(AggregationTemporality.CUMULATIVE)
  const reader = new PeriodicExportingMetricReader({ exporter, exportIntervalMillis: 3_600_000 })
  const provider = new MeterProvider({ readers: [reader] })
  api.metrics.setGlobalMeterProvider(provider)
  t.teardown(async () => {
    api.metrics.disable()
    await provider.shutdown()
  })
  return async () => {
    exporter.reset()
    await provider.forceFlush()
    const all = exporter.getMetrics().flatMap(({ scopeMetrics }) => scopeMetrics).flatMap(({ metrics }) => metrics)
    const points = (name: string) => [...all.find(({ descriptor }) => descriptor.name === name)?.dataPoints ?? []]
    const read = (name: string) => points(name).map(({ attributes, value }) => [attributes['ai_credits.operation'], value])
    return Object.assign(read, { points })
  }
}
