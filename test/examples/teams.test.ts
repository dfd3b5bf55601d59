import jwt from '@fastify/jwt'
import Fastify from 'fastify'
import t from 'tap'
import { send, startServer, temporaryFolder } from './run-example.js'

const SECRET = 'the secret of this test'

const issuer = Fastify()
await issuer.register(jwt, { secret: SECRET })

const bearer = (claims: object) => ({ authorization: `Bearer ${issuer.jwt.sign({ org: 'acme', ...claims })}` })

const ANN = bearer({ member: 'ann', key: 'laptop' })
const ANNS_SERVER = bearer({ member: 'ann', key: 'server' })
const BEN = bearer({ member: 'ben', key: 'laptop' })
const OWNER = bearer({ role: 'owner' })

t.test('a gateway of a company, its teams and its keys', async t => {
  const folder = await temporaryFolder(t)
  const settings = { DATA_DIR: folder, JWT_SECRET: SECRET }
  const { url, output, errors, end } = await startServer(t, 'examples/teams/server.js', settings)
  const chat = (words: number, headers: Record<string, string>) => send(`${url}/v1/chat`, { prompt: 'why '.repeat(words) }, headers)
  const read = (path: string, headers: Record<string, string>) => send(`${url}/api/credits${path}`, undefined, headers)
  const namesOf = async (headers: Record<string, string>) =>
    (await read('/budgets', headers)).body.entries.map(({ budget }: { budget: string }) => budget)
  const write = async (method: string, budget: string, body?: object, headers = OWNER) => {
    const query = body === undefined ? '?user_id=acme' : ''
    const reply = await fetch(`${url}/api/credits/budgets/${encodeURIComponent(budget)}${query}`, {
      method,
      headers: { ...headers, ...body && { 'content-type': 'application/json' } },
      ...body && { body: JSON.stringify(body) }
    })
    return { status: reply.status, text: await reply.text() }
  }

  await t.test('nobody is 401, also with a token that names no key', async t => {
    for (const headers of [{}, bearer({}), bearer({ member: 'ann' }), bearer({ role: 'owner', org: '' })] as Array<Record<string, string>>) {
      t.equal((await chat(1, headers)).status, 401)
      t.equal((await read('/budgets', headers)).status, 401)
    }
  })

  await t.test('a key spends from the account of the company, within its day', async t => {
    t.match(await chat(15, ANN), { status: 200, body: { budget: 'key.ann:laptop' } })
    const refused = await chat(10, ANN)
    t.match(refused, {
      status: 402,
      body: {
        code: 'FST_CREDITS_BUDGET_EXCEEDED',
        budget: 'key.ann:laptop',
        period: 'day',
        limit: 200,
        used: 150,
        held: 0,
        required: 100,
        credits: { available: 9850 }
      }
    })
    const reset = Date.parse(refused.body.resetsAt)
    t.ok(reset > Date.now() && reset <= Date.now() + 86_400_000, 'it says when the day is over')
    t.equal((await chat(20, ANNS_SERVER)).status, 200, 'another key has a day of its own')
    t.match(await chat(20, bearer({ member: 'ann', key: 'phone' })), { status: 402, body: { budget: 'member:ann', limit: 500 } }, 'within that of its member')
    t.equal((await chat(20, BEN)).status, 200, 'another member has another one')
    t.match(await chat(1, bearer({ member: 'carl', key: 'laptop' })), { status: 404 }, 'a member that is not known has none')
  })

  await t.test('a key sees why it is refused, and nothing of others', async t => {
    t.strictSame(await namesOf(ANN), ['key.ann:laptop', 'member:ann', 'team:ml'])
    t.strictSame(await namesOf(BEN), ['key.ben:laptop', 'member:ben', 'team:ml'])
    t.match((await read('', ANN)).body.credits.usage_history, [{ used: 150, operation: 'chat' }])
    for (const path of ['?budget=key.ben:laptop', '?budget=team:ml', '?user_id=other', '/budgets?user_id=other']) {
      t.equal((await read(path, ANN)).status, 403, path)
    }
  })

  await t.test('the owner looks at the budgets, and changes them', async t => {
    t.strictSame(await namesOf(OWNER), [
      'key.ann:*', 'key.ann:laptop', 'key.ann:server', 'key.ben:*', 'key.ben:laptop', 'member:ann', 'member:ben', 'team:ml'
    ])
    t.match((await read('?budget=member:ann', OWNER)).body.credits.usage_history, [{ used: 350, operation: 'chat' }])
    const raised = await write('PUT', 'key.ann:laptop', { user_id: 'acme', within: 'member:ann', day: 300 })
    t.match(JSON.parse(raised.text), { limits: { day: 300 }, used: { day: 150 } })
    t.equal((await chat(10, ANN)).status, 200)
    t.equal((await write('DELETE', 'team:ml')).status, 409)
    t.equal((await write('DELETE', 'key.ann:server')).status, 204)
  })

  await t.test('only the owner does, only of the own company, and only budgets', async t => {
    const definition = { user_id: 'acme', day: 1_000_000 }
    for (const headers of [ANN, BEN, bearer({ role: 'owner', org: 'other' }), bearer({ role: 'member' })]) {
      t.equal((await write('PUT', 'key.ann:laptop', definition, headers)).status, 403)
      t.equal((await write('DELETE', 'key.ann:laptop', undefined, headers)).status, 403)
    }
    t.equal((await write('PUT', 'key.ann:laptop', { ...definition, user_id: 'other' })).status, 403)
    t.equal((await send(`${url}/api/credits/grants`, { user_id: 'acme', credits: 5 }, OWNER)).status, 403, 'none makes credits')
    t.equal((await send(`${url}/api/credits/deduct`, { credits: 5, operation: 'chat' }, OWNER)).status, 404)
  })

  await t.test('the lines at start can be used as they are', async t => {
    const tokenOf = (name: string) => ({ authorization: `Bearer ${new RegExp(`${name}=(\\S+)`).exec(output())![1]}` })
    t.equal((await chat(1, tokenOf('ANN'))).status, 200)
    t.strictSame(await namesOf(tokenOf('ANN')), ['key.ann:laptop', 'member:ann', 'team:ml'])
    const [, put] = /curl -X PUT http:\S+\/budgets\/(\S+) .* -d/.exec(output())!
    const [, body] = /-X PUT .* -d '(.*)'/.exec(output())!
    t.match(JSON.parse((await write('PUT', put!, JSON.parse(body!), tokenOf('OWNER'))).text), { budget: 'key.ann:laptop', limits: { day: 50 } })
  })

  t.equal(await end('SIGINT'), 0)
  t.equal(errors(), '')

  await t.test('limits that the owner has set stay after a restart', async t => {
    const again = await startServer(t, 'examples/teams/server.js', settings)
    const { body } = await send(`${again.url}/api/credits/budgets`, undefined, ANN)
    t.match(body.entries[0], { budget: 'key.ann:laptop', limits: { day: 50 } })
    t.equal(await again.end('SIGINT'), 0)
  })
})
