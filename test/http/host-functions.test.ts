// about HTTP, not the database
import { once } from 'node:events'
import { Writable } from 'node:stream'
import type { FastifyReply, FastifyRequest } from 'fastify'
import t from 'tap'
import { createLedger, type FastifyAiCreditsOptions, type RouteCredits } from '../../src/index.js'
import { buildGateway, defaults, postDeduct } from '../helper/app.js'
import { createLedgerDatabase, createPool } from '../helper/database.js'
import { hear } from '../helper/hear.js'

// Values that the host's functions may return without having decided anything.
const nothing: Array<[title: string, answer: (...args: any[]) => unknown]> = [
  ['nothing', () => {}],
  ['what it tells done', (...args) => { args.at(-1)?.(null, 'ann') }],
  ['what it tells done later', (_request: FastifyRequest, _reply: FastifyReply, done?: () => void) => { setImmediate(() => done?.()) }],
  ['a promise of nothing', async () => {}],
  ['null', () => null],
  ['false', () => false],
  ['NaN', () => NaN],
  ['a list', () => []],
  ['a function', () => () => 'ann'],
  ['a symbol', () => Symbol('ann')],
  ['an error', () => new Error('No')],
  ['a rejection with nothing', () => Promise.reject()] // eslint-disable-line prefer-promise-reject-errors
]

const answers = [...nothing, ['0', () => 0], ['true', () => true], ['a String', () => new String('ann')], // eslint-disable-line no-new-wrappers
  ['an object', () => ({ any: 'yes' })], ['a budget alone', () => ({ budget: 'key:k1' })], ['a list as userId', () => ({ userId: ['ann'] })],
  ['a promise as userId', () => ({ userId: Promise.resolve('ann') })], ['a promise as budget', () => ({ userId: 'ann', budget: Promise.resolve('a') })],
  ['a list that says any', () => Object.assign([], { any: 1 })]] as typeof nothing

for (const [title, answer] of answers) {
  t.test(`identify that returns ${title} lets nobody through`, async t => {
    const app = await buildGateway(t, { identify: answer as FastifyAiCreditsOptions['identify'] })
    app.get('/charged', { config: { credits: { operation: 'chat', cost: 1 } } }, async () => 'ok')
    app.get('/its-own', { config: { credits: { operation: 'chat', cost: 1, user: answer as RouteCredits['user'] } } }, async () => 'ok')
    for (const reply of [
      await postDeduct(app, { user_id: 'ann', credits: 1, operation: 'chat' }),
      await postDeduct(app, { credits: 1, operation: 'chat' }),
      await app.inject('/api/credits?user_id=ann'),
      await app.inject('/charged'),
      await app.inject('/its-own')
    ]) t.ok([401, 500].includes(reply.statusCode), reply.body)
    t.strictSame((await app.pg.query('select from ai_credits')).rows, [])
  })
}

for (const [title, answer] of nothing) {
  t.test(`a function of config.credits that returns ${title} lets nobody through`, async t => {
    const app = await buildGateway(t, { defaultUser: 'ann', prices: { chat: { per: { tokens: 1 } } } })
    let worked = 0
    const configs: Array<Partial<RouteCredits>> = [
      { cost: answer as RouteCredits['cost'] }, { hold: answer as RouteCredits['hold'] },
      { cost: 1, hold: answer as RouteCredits['hold'] }, { cost: 1, metadata: answer as RouteCredits['metadata'] }
    ]
    for (const [index, credits] of configs.entries()) {
      app.get(`/${index}`, { config: { credits: { operation: 'chat', ...credits } } }, async () => { worked++ })
    }
    app.get('/usage', { config: { credits: { operation: 'chat', hold: 5, usage: answer as RouteCredits['usage'] } } }, async () => 'work')
    for (const [index, { metadata }] of configs.entries()) {
      if (title === 'an error' && metadata !== undefined) continue // an object, as metadata is
      t.equal((await app.inject(`/${index}`)).statusCode, 500)
    }
    t.equal(worked, 0)
    t.not((await app.inject('/usage')).body, 'work')
  })
}

// It may return nothing: then there is no budget.
const saysNone = ['nothing', 'what it tells done', 'what it tells done later', 'a promise of nothing', 'null']

for (const [title, answer] of answers.filter(([title]) => !saysNone.includes(title))) {
  t.test(`a budget function that returns ${title} lets nobody through`, async t => {
    const app = await buildGateway(t, { defaultUser: 'ann' })
    let worked = 0
    app.get('/', { config: { credits: { operation: 'chat', cost: 1, budget: answer as () => string } } }, async () => { worked++ })
    t.equal((await app.inject('/')).statusCode, 500)
    t.equal(worked, 0)
    t.strictSame((await app.pg.query('select from ai_credits')).rows, [])
  })
}

const thrown = [Symbol('s'), Object.create(null), null, undefined, 5n]

t.test('the process continues, whatever a listener throws', async t => {
  const warnings: string[] = []
  const warn = ({ name, message }: Error) => { if (name === 'CreditsListenerWarning') warnings.push(message) }
  process.on('warning', warn)
  t.teardown(() => { process.off('warning', warn) })
  const ledger = createLedger(createPool(t, await createLedgerDatabase(t)), defaults)
  await ledger.migrate()
  let lines = 0
  const stream = new Writable({ write (_line, _encoding, done) { lines++; done() } })
  const app = await buildGateway(t, { routes: false }, { server: { logger: { level: 'error', stream } } })
  for (const credits of [ledger, app.credits]) {
    for (const error of thrown) credits.on('deducted', () => { throw error })
    const heard = hear(credits)
    await credits.deduct({ userId: 'ann', credits: 1, operation: 'chat' })
    t.match(await heard(), [['deducted', { credits: 1 }]])
  }
  while (warnings.length < thrown.length) await once(process, 'warning')
  t.match(warnings, [/: Symbol\(s\)$/, /null prototype/, /: null$/, /: undefined$/, /: 5n$/])
  t.equal(lines, thrown.length)
  await ledger.close()
})
