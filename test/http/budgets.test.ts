import t, { type Test } from 'tap'
import type { FastifyInstance, LightMyRequestResponse } from 'fastify'
import type { FastifyAiCreditsOptions, Identity } from '../../src/index.js'
import { buildGateway, postDeduct } from '../helper/app.js'

const one = { credits: 1, operation: 'chat' }

const NOT_ITS_OWN = {
  statusCode: 403, code: 'FST_CREDITS_FORBIDDEN', error: 'Forbidden', message: 'The request names a budget that is not its own'
}

/** Returns a gateway in which a header names the account and the budget; its account acme has a team, a member and keys. */
async function buildTeams (t: Test, options: FastifyAiCreditsOptions = {}) {
  const app = await buildGateway(t, { identify, management: { authorize: () => true }, ...options })
  await app.credits.setBudget('acme', 'team:ml', { month: 50_000 })
  await app.credits.setBudget('acme', 'member:ann', { within: 'team:ml', day: 500, week: 5000, total: 90_000 })
  await app.credits.setBudget('acme', 'member:bob', { within: 'team:ml', day: 500 })
  await app.credits.setBudget('acme', 'key:*', { within: 'member:ann', day: 200 })
  return app
}

const identify: FastifyAiCreditsOptions['identify'] = ({ headers }) =>
  headers['x-identity'] === undefined ? { userId: 'acme', budget: 'key:k1' } : JSON.parse(headers['x-identity'] as string)

const as = (identity: unknown) => ({ 'x-identity': JSON.stringify(identity) })

const ANY_KEY = { 'x-identity': JSON.stringify('acme') }

const used = async (app: FastifyInstance, budget: string) =>
  (await app.credits.history('acme', { budget })).entries.reduce((sum, entry) => sum + entry.used, 0)

const get = (app: FastifyInstance, path: string, headers = {}) => app.inject({ url: `/api/credits${path}`, headers })

t.test('a client is charged on the budget that identify returns, whether it names it or not', async t => {
  const app = await buildTeams(t)
  t.equal((await postDeduct(app, one)).statusCode, 200)
  t.equal((await postDeduct(app, { ...one, budget: 'key:k1' })).statusCode, 200)
  t.equal((await postDeduct(app, { ...one, user_id: 'acme' })).statusCode, 200)
  for (const budget of ['key:k1', 'member:ann', 'team:ml']) t.equal(await used(app, budget), 3, budget)
  t.match(await app.credits.reconcile('acme'), { ok: true })
})

t.test('a client that identify binds to a budget can name no other one, and nothing is charged', async t => {
  const app = await buildTeams(t)
  for (const budget of ['key:k2', 'member:ann', 'member:bob', 'team:ml', 'KEY:K1', 'key:k1 ', 'key:k1\t', '\ufeffkey:k1', 'key:k1\u200b', '\uff4bey:k1', 'key%3Ak1', 'nothing']) {
    const name = encodeURIComponent(budget)
    for (const reply of [
      await postDeduct(app, { ...one, budget }),
      await postDeduct(app, { ...one, user_id: 'acme', budget }),
      await get(app, `?budget=${name}`),
      await get(app, `?user_id=acme&budget=${name}`)
    ]) t.strictSame(reply.json(), NOT_ITS_OWN, budget)
  }
  for (const reply of [
    await postDeduct(app, { ...one, budget: 'key:*' }),
    await postDeduct(app, { ...one, budget: '' }),
    await postDeduct(app, { ...one, budget: null }),
    await postDeduct(app, { ...one, budget: ['key:k1'] }),
    await postDeduct(app, { ...one, Budget: 'key:k2' }),
    await app.inject({ method: 'POST', url: '/api/credits/deduct?budget=key:k2', body: one }),
    await app.inject({ method: 'POST', url: '/api/credits/deduct', headers: { 'content-type': 'text/plain' }, body: 'budget=key:k2' }),
    await get(app, '?budget='),
    await get(app, '?budget=key:k1&budget=key:k2'),
    await get(app, '?budget=key:k1&%62udget=key:k2'),
    await get(app, '?budget[]=key:k2'),
    await get(app, '/budgets?budget=member:bob')
  ]) t.match(reply.json(), { statusCode: reply.statusCode === 415 ? 415 : 400 }, reply.body)
  t.strictSame((await app.credits.history('acme')).entries, [])
  t.strictSame((await app.credits.budgets('acme')).entries.map(({ budget }) => budget), ['key:*', 'member:ann', 'member:bob', 'team:ml'])
})

t.test('the last of two fields of one name counts, and it is the one that is checked', async t => {
  const app = await buildTeams(t)
  const post = (body: string) => app.inject({
    method: 'POST', url: '/api/credits/deduct', headers: { 'content-type': 'application/json' }, body
  })
  t.strictSame((await post('{"credits":1,"operation":"chat","budget":"key:k1","budget":"key:k2"}')).json(), NOT_ITS_OWN)
  t.equal((await post('{"credits":1,"operation":"chat","budget":"key:k2","budget":"key:k1"}')).statusCode, 200)
  t.equal(await used(app, 'key:k1'), 1)
})

t.test('a user id, a user id without a budget, a trusted service or no identify: any budget of the account', async t => {
  const app = await buildTeams(t)
  const open = await buildTeams(t, { identify: undefined as never })
  for (const [gateway, identity, more] of [
    [app, 'acme', {}], [app, { userId: 'acme' }, {}], [app, { userId: 'acme', budget: null }, {}],
    [app, { any: true }, { user_id: 'acme' }], [open, undefined, { user_id: 'acme' }]
  ] as const) {
    const headers: Record<string, string> = identity === undefined ? {} : as(identity)
    const before = await used(gateway, 'member:bob')
    t.equal((await postDeduct(gateway, { ...one, ...more, budget: 'member:bob' }, headers)).statusCode, 200)
    t.equal((await postDeduct(gateway, { ...one, ...more }, headers)).statusCode, 200)
    t.equal(await used(gateway, 'member:bob'), before + 1)
    const query = new URLSearchParams({ ...more, budget: 'member:bob' })
    t.equal((await get(gateway, `?${query}`, headers)).json().credits.usage_history[0].used, before + 1)
  }
  t.equal((await postDeduct(app, { ...one, user_id: 'bob' }, as({ userId: 'acme' }))).json().code, 'FST_CREDITS_FORBIDDEN')
})

t.test('a budget that the host did not find binds nobody to none', async t => {
  const app = await buildTeams(t, { identify: async () => ({ userId: 'acme', budget: undefined }) as never })
  for (const reply of [await postDeduct(app, { ...one, budget: 'member:bob' }), await postDeduct(app, one), await get(app, '/budgets')]) {
    t.equal(reply.statusCode, 500)
  }
  t.equal(await used(app, 'member:bob'), 0)
})

t.test('hooks of the host see the account and the budget in requests to the plugin\'s routes, and nothing in others', async t => {
  const seen: unknown[] = []
  const app = await buildGateway(t, { identify })
  app.addHook('onRequest', async ({ creditsUserId, creditsBudget }) => { seen.push([creditsUserId, creditsBudget]) })
  app.addHook('onSend', async ({ creditsUserId, creditsBudget }) => { seen.push([creditsUserId, creditsBudget]) })
  app.get('/own', async () => 'own')
  await get(app, '/budgets')
  await get(app, '/budgets', as('acme'))
  await app.inject('/own')
  t.strictSame(seen, [[null, null], ['acme', 'key:k1'], [null, null], ['acme', null], [undefined, undefined], [undefined, undefined]])
})

t.test('an account and a budget that are not its own are forbidden alike', async t => {
  const app = await buildTeams(t)
  const reply = await postDeduct(app, { ...one, user_id: 'bob', budget: 'key:k1' })
  t.match(reply.json(), { statusCode: 403, message: 'The request names an account that is not its own' })
})

t.test('errors come in order: 400, 401, 403, 404, 402', async t => {
  const app = await buildTeams(t)
  const ask = async (identity: unknown, body: object) => (await postDeduct(app, { credits: 300, operation: 'chat', ...body }, as(identity))).statusCode
  t.equal(await ask({ userId: null, budget: 'key:k1' }, { credits: 0, budget: 'key:k2' }), 400)
  t.equal(await ask({ userId: null, budget: 'key:k1' }, { budget: 'key:k2' }), 401)
  t.equal(await ask({ userId: 'acme', budget: 'key:k1' }, { budget: 'key:k2' }), 403)
  t.equal(await ask({ userId: 'acme', budget: 'nothing' }, {}), 404)
  t.equal(await ask({ userId: 'acme', budget: 'key:k1' }, {}), 402)
})

t.test('nobody, however the host says so', async t => {
  const app = await buildTeams(t)
  for (const identity of [{ userId: '' }, { userId: null }, { userId: null, budget: 'key:k1' }, { userId: '', budget: 7 }]) {
    for (const reply of [await postDeduct(app, one, as(identity)), await get(app, '', as(identity)), await get(app, '/budgets', as(identity))]) {
      t.match(reply.json(), { statusCode: 401, code: 'FST_CREDITS_UNIDENTIFIED' }, JSON.stringify(identity))
    }
  }
  const unset = await buildTeams(t, { identify: () => ({ userId: undefined, budget: 'key:k1' }) })
  t.equal((await postDeduct(unset, one)).statusCode, 401)
})

t.test('a malformed identity is the host\'s bug, and the error names what is wrong', async t => {
  const app = await buildTeams(t)
  for (const [identity, problem] of [
    [{}, /userId is required/],
    [{ budget: 'key:k1' }, /userId is required/],
    [{ userId: 7 }, /userId must be a string/],
    [{ userId: ['acme'], budget: 'key:k1' }, /userId must be a string/],
    [{ userId: 'acme', budget: '' }, /budget must be a string of 1 to 255 characters/],
    [{ userId: 'acme', budget: 7 }, /budget must be a string/],
    [{ userId: 'acme', budget: false }, /budget must be a string/],
    [{ userId: 'acme', budget: ['key:k1'] }, /budget must be a string/],
    [{ userId: 'acme', budget: 'k'.repeat(256) }, /budget must be a string of 1 to 255/],
    [{ userId: 'acme', budget: 'a\0b' }, /budget .* without NUL/],
    [{ userId: 'acme', budget: 'key:*' }, /budget .* no template/],
    [{ userId: 'acme', budegt: 'key:k1' }, /budegt is not a known field/],
    [{ userId: 'acme', any: true }, /any is not a known field/],
    [{ budget: 'key:k1', any: true }, /userId is required|any is not a known field/],
    [[], /userId is required/],
    [true, /boolean/]
  ] as const) {
    for (const reply of [await postDeduct(app, one, as(identity)), await get(app, '', as(identity)), await get(app, '/budgets', as(identity))]) {
      t.match(reply.json(), {
        statusCode: 500, code: 'FST_CREDITS_INVALID_IDENTITY', message: problem
      }, JSON.stringify(identity))
    }
  }
  t.strictSame((await app.credits.history('acme')).entries, [])
  t.match((await postDeduct(app, one, as({ userId: 'x'.repeat(256) }))).json(), { statusCode: 400 }, 'a user id is checked as ever')
})

t.test('an unknown budget is not found, and never free', async t => {
  const app = await buildTeams(t)
  const reply = await postDeduct(app, { ...one, budget: 'teem:ml' }, ANY_KEY)
  t.strictSame(reply.json(), { statusCode: 404, code: 'FST_CREDITS_NOT_FOUND', error: 'Not Found', message: 'There is no such budget' })
  const hold = await app.inject({ method: 'POST', url: '/api/credits/holds', body: { ...one, user_id: 'acme', budget: 'teem:ml' } })
  t.match(hold.json(), { statusCode: 404, code: 'FST_CREDITS_NOT_FOUND' })
  t.equal((await app.credits.balance('acme')).available, 10_000)
})

t.test('a malformed budget is refused, and names the field', async t => {
  const app = await buildGateway(t, { management: { authorize: () => true } })
  const send = (path: string, budget: string) => app.inject({
    method: 'POST', url: `/api/credits${path}`, headers: { 'content-type': 'application/json' }, body: `{"credits":1,"operation":"chat","budget":${budget}}`
  })
  for (const budget of ['""', '7', 'true', 'null', '{}', '["a"]', '"a\\u0000b"', '"\\ud800"', '"key:*"', '"a:b:*"', `"${'x'.repeat(256)}"`, `"${'😀'.repeat(256)}"`]) {
    for (const path of ['/deduct', '/holds']) {
      t.match((await send(path, budget)).json(), { statusCode: 400, code: 'FST_ERR_VALIDATION', message: /^body\/budget must be a string/ }, budget)
    }
  }
  for (const query of ['budget=', 'budget=%00', 'budget=%FF', 'budget=a&budget=a', `budget=${'x'.repeat(256)}`, 'budget[]=a']) {
    t.match((await get(app, `?${query}`)).json(), { statusCode: 400, code: 'FST_ERR_VALIDATION', message: /^querystring/ }, query)
  }
  t.strictSame((await app.pg.query('select from ai_credits')).rows, [])
  for (const budget of ['x'.repeat(255), '😀'.repeat(255), ':*', 'key:k1:*x', 'a\nb', '__proto__']) {
    await app.credits.setBudget(undefined, budget, { total: 2 })
    for (const path of ['/deduct', '/holds']) t.equal((await send(path, JSON.stringify(budget))).statusCode, 200, budget.slice(0, 9))
  }
})

t.test('a budget that is exceeded is 402, with the limit that refuses', async t => {
  const app = await buildTeams(t)
  const hold = await app.inject({ method: 'POST', url: '/api/credits/holds', body: { credits: 30, operation: 'chat', user_id: 'acme', budget: 'key:k1' } })
  t.equal(hold.statusCode, 200)
  t.equal((await postDeduct(app, { ...one, credits: 120 })).statusCode, 200)
  const refusal = {
    statusCode: 402,
    code: 'FST_CREDITS_BUDGET_EXCEEDED',
    error: 'Payment Required',
    message: 'Budget key:k1 is exceeded: 60 required, 50 left',
    credits: { available: 9850, total: 10_000, used: 120, held: 30 },
    budget: 'key:k1',
    period: 'day',
    limit: 200,
    used: 120,
    held: 30,
    required: 60
  }
  for (const reply of [
    await postDeduct(app, { ...one, credits: 60 }),
    await app.inject({ method: 'POST', url: '/api/credits/holds', body: { credits: 60, operation: 'chat', user_id: 'acme', budget: 'key:k1' } })
  ]) {
    const { resetsAt, ...rest } = reply.json()
    t.equal(reply.statusCode, 402)
    t.strictSame(rest, refusal)
    t.equal(resetsAt, new Date(resetsAt).toISOString())
    t.ok(Date.parse(resetsAt) > Date.now() && Date.parse(resetsAt) <= Date.now() + 86_400_000, resetsAt)
  }
  await app.credits.setBudget('acme', 'prepaid', { total: 5 })
  t.match((await postDeduct(app, { ...one, credits: 6, budget: 'prepaid' }, ANY_KEY)).json(), { period: 'total', limit: 5, resetsAt: null })
  const poor = await postDeduct(app, { ...one, credits: 20_000 })
  t.strictSame(Object.keys(poor.json()).sort(), ['code', 'credits', 'error', 'message', 'required', 'statusCode'])
  t.equal(poor.json().code, 'FST_CREDITS_INSUFFICIENT', 'where both are short')
})

t.test('a repeated request is charged once, and its budget is part of it', async t => {
  const app = await buildTeams(t)
  const headers = { ...ANY_KEY, 'idempotency-key': 'k' }
  await postDeduct(app, { ...one, budget: 'key:k1' }, headers)
  t.equal((await postDeduct(app, { ...one, budget: 'key:k1' }, headers)).headers['idempotency-replayed'], 'true')
  for (const other of [{}, { budget: 'key:k2' }]) t.equal((await postDeduct(app, { ...one, ...other }, headers)).statusCode, 409)
  t.equal(await used(app, 'team:ml'), 1)
})

t.test('a hold of a service counts in its budget, and so do its captures', async t => {
  const app = await buildTeams(t)
  const post = (path: string, body: object) => app.inject({ method: 'POST', url: `/api/credits/holds${path}`, body })
  const { id } = (await post('', { credits: 50, operation: 'chat', user_id: 'acme', budget: 'key:k1' })).json()
  t.equal((await post(`/${id}/capture`, { credits: 20 })).statusCode, 200)
  t.equal(await used(app, 'member:ann'), 20)
  for (const budget of ['key:*', '', 7]) t.match((await post('', { ...one, user_id: 'acme', budget })).json(), { statusCode: 400, message: /^body\/budget/ })
})

t.test('the history of a budget, by pages', async t => {
  const app = await buildTeams(t, { historyLimit: 1 })
  for (const [budget, operation] of [['key:k1', 'chat'], ['key:k1', 'video'], ['key:k2', 'audio']] as const) {
    await app.credits.deduct({ userId: 'acme', credits: 5, operation, budget })
  }
  const read = async (query: string, headers = {}) => {
    const operations: string[] = []
    let next: string | undefined = `/api/credits${query}`
    for (; next !== undefined; next = /^<(.*)>/.exec(next)?.[1]) {
      const reply: LightMyRequestResponse = await app.inject({ url: next, headers })
      operations.push(...reply.json().credits.usage_history.map(({ operation }: { operation: string }) => operation))
      next = String(reply.headers.link ?? '')
    }
    return operations.sort()
  }
  t.strictSame(await read('', ANY_KEY), ['audio', 'chat', 'video'])
  t.strictSame(await read('?budget=key:k1', ANY_KEY), ['chat', 'video'])
  t.strictSame(await read('?budget=key%3Ak2', ANY_KEY), ['audio'])
  t.strictSame(await read('?budget=member:ann', ANY_KEY), ['audio', 'chat', 'video'])
  t.strictSame(await read('?budget=member:bob', ANY_KEY), [])
  t.strictSame(await read('?budget=__proto__', ANY_KEY), [])
  t.strictSame(await read(''), ['chat', 'video'], 'a client that is bound to a budget sees what was spent in it')
  t.strictSame(await read('?budget=key:k1'), ['chat', 'video'])
  t.match((await get(app, '')).json().credits, { available: 9985, total: 10_000, used: 15 }, 'and the balance of the account')
})

t.test('the budgets of an account, by pages', async t => {
  const app = await buildTeams(t)
  await app.credits.hold({ userId: 'acme', credits: 7, operation: 'chat', budget: 'member:ann' })
  await app.credits.deduct({ userId: 'acme', credits: 5, operation: 'chat', budget: 'member:ann' })
  const first = await get(app, '/budgets?limit=2', ANY_KEY)
  const [template, ann] = first.json().entries
  t.match(template, { budget: 'key:*', within: 'member:ann', limits: { day: 200 }, used: { day: 0 }, held: 0, resets_at: { day: /Z$/ } })
  const { day, week } = ann.resets_at
  t.strictSame(ann, {
    budget: 'member:ann',
    within: 'team:ml',
    limits: { day: 500, week: 5000, total: 90_000 },
    used: { day: 5, week: 5, total: 5 },
    held: 7,
    resets_at: { day, week, total: null }
  })
  t.ok(Date.parse(day) <= Date.parse(week) && day.endsWith('Z'))
  t.equal(first.json().cursor, 'member:ann')
  const next = /^<(.*)>; rel="next"$/.exec(String(first.headers.link))![1]!
  const second = await app.inject({ url: next, headers: ANY_KEY })
  t.strictSame(second.json().entries.map(({ budget }: any) => budget), ['member:bob', 'team:ml'])
  t.equal(second.json().entries[1].within, null)
  t.equal(second.json().cursor, null)
  t.notOk(second.headers.link)
  t.strictSame((await get(app, '/budgets', as('bob'))).json(), { entries: [], cursor: null }, 'of another account')
})

t.test('a client that is bound to a budget sees its own and those above it, and no other', async t => {
  const app = await buildTeams(t)
  const see = async (identity: unknown, query = '') => {
    const reply = await get(app, `/budgets${query}`, as(identity))
    return [reply.json().entries.map(({ budget }: { budget: string }) => budget), reply.json().cursor]
  }
  const of = (budget: string) => ({ userId: 'acme', budget })
  t.strictSame(await see(of('member:bob')), [['member:bob', 'team:ml'], null])
  t.strictSame(await see(of('team:ml')), [['team:ml'], null])
  t.strictSame(await see(of('nothing')), [[], null])
  t.strictSame(await see(of(':k')), [[], null])
  t.strictSame(await see({ userId: 'other', budget: 'key:k1' }), [[], null])

  const before = (await get(app, '/budgets')).json().entries
  t.strictSame(before.map(({ budget, used }: any) => [budget, used.day]), [['key:k1', 0], ['member:ann', 0], ['team:ml', undefined]],
    'before its first charge, what its template gives it')
  t.strictSame((await app.credits.budgets('acme')).entries.length, 4, 'which makes none')
  await postDeduct(app, { ...one, credits: 11 })
  const after = (await get(app, '/budgets')).json().entries
  t.strictSame(after.map(({ budget, used }: any) => [budget, used.day, used.month]), [
    ['key:k1', 11, undefined], ['member:ann', 11, undefined], ['team:ml', undefined, 11]
  ])
  t.strictSame({ ...after[0], used: {} }, { ...before[0], used: {} }, 'it is as it was foretold')

  t.strictSame(await see(of('key:k1'), '?limit=2'), [['key:k1', 'member:ann'], 'member:ann'])
  t.strictSame(await see(of('key:k1'), '?limit=2&cursor=member:ann'), [['team:ml'], null])
  t.strictSame(await see(of('key:k1'), '?limit=3'), [['key:k1', 'member:ann', 'team:ml'], null])
})

t.test('budgets are found by names of any characters, beside others that are almost the same', async t => {
  const app = await buildTeams(t)
  const last = '\u{10ffff}'
  const names = [
    '\u0001', 'a', 'a\u0001', 'a\u0001\u0001', `a${last}`, `a${last.repeat(254)}`, 'b', 'b\u0001', '\u{ffff}', '\ue000', '\ud7ff', '😀', '\u{10000}',
    last, last.repeat(255), 'x'.repeat(255), `${'x'.repeat(254)}w`, 'kéy/%2F?#', '__proto__', 'constructor', ':*', ':k', ' ', "o'hara"
  ]
  for (const name of names) await app.credits.setBudget('acme', name, { within: 'team:ml', day: 5 })
  for (const name of names) {
    const reply = await get(app, '/budgets', { 'x-identity': encode({ userId: 'acme', budget: name }) })
    t.strictSame(reply.json().entries.map(({ budget }: { budget: string }) => budget), [name, 'team:ml'], JSON.stringify(name.slice(0, 9)))
  }
  for (const missing of ['\u0002', 'a\u0002', `b${last}`, '\ue001', 'x'.repeat(254), last.repeat(254)]) {
    const reply = await get(app, '/budgets', { 'x-identity': encode({ userId: 'acme', budget: missing }) })
    t.strictSame(reply.json().entries, [], JSON.stringify(missing.slice(0, 9)))
  }

  // A header holds ASCII alone.
  function encode (identity: Identity) {
    return JSON.stringify(identity).replace(/[^ -~]/g, unit => `\\u${unit.charCodeAt(0).toString(16).padStart(4, '0')}`)
  }
})

t.test('a malformed query of the budgets is refused, and names the field', async t => {
  const app = await buildTeams(t)
  for (const headers of [{}, ANY_KEY]) {
    for (const [query, field] of [
      ['limit=0', 'limit'], ['limit=1001', 'limit'], ['limit=x', 'limit'], ['limit=1.5', 'limit'], ['limit=', 'limit'], ['limit=1&limit=2', 'limit'],
      ['cursor=', 'cursor'], ['cursor=a&cursor=b', 'cursor'], [`cursor=${'x'.repeat(256)}`, 'cursor'], ['userid=acme', 'userid'], ['user_id=', 'user_id'],
      ['budget=key:k1', 'budget'], ['user_id=acme&user_id=acme', 'user_id'], ['cursor=%FF', '']
    ] as const) {
      const reply = await get(app, `/budgets?${query}`, headers)
      t.match(reply.json(), { statusCode: 400, code: 'FST_ERR_VALIDATION', message: `querystring${field && `/${field}`}` }, query)
    }
  }
  t.equal((await get(app, '/budgets?user_id=bob')).statusCode, 403)
  t.equal((await get(app, '/budgets', as({ any: true }))).statusCode, 400)
  t.equal((await get(app, '/budgets?user_id=acme', as({ any: true }))).json().entries.length, 4)
})

t.test('the option routes.read is about the budgets, too', async t => {
  const guarded = await buildTeams(t, { routes: { read: { onRequest: async () => { throw Object.assign(new Error('No'), { statusCode: 418 }) } } } })
  t.equal((await get(guarded, '/budgets')).statusCode, 418)
  t.equal((await postDeduct(guarded, one)).statusCode, 200)
  for (const routes of [false, { read: false }] as const) {
    const app = await buildTeams(t, { routes, management: undefined as never })
    t.equal((await get(app, '/budgets')).statusCode, 404)
  }
  const elsewhere = await buildTeams(t, { prefix: '/gw/v1' })
  await elsewhere.credits.setBudget('acme', 'zzz', {})
  const reply = await elsewhere.inject({ url: '/gw/v1/credits/budgets?limit=4', headers: ANY_KEY })
  t.equal(reply.headers.link, '</gw/v1/credits/budgets?limit=4&cursor=team%3Aml>; rel="next"')
})
