import { request } from 'node:http'
import { text } from 'node:stream/consumers'
import t from 'tap'
import { startServer, temporaryFolder, type Example } from './run-example.js'

const SECRETS = { JWT_SECRET: 'of the tokens', GATEWAY_SECRET: 'of the gateway' }
const JSON_TYPE = { 'content-type': 'application/json' }

type Headers = Record<string, string | string[]>

interface Sent {
  path: string
  method?: string
  headers?: Headers
  body?: string | Buffer
}

const charge = (more: object = {}) => JSON.stringify({ credits: 1, operation: 'chat', ...more })

// Whatever a client may try to be bob with, under a prefix; `own` are the headers that prove it to be ann.
const attempts = (prefix: string): Sent[] => [
  // the query
  ...[
    'user_id=bob', 'user_id=%62ob', '%75ser_id=bob', 'user_id=ann&user_id=bob', 'user_id=bob&user_id=ann',
    'user_id=ann;user_id=bob', 'user_id[]=bob', 'user_id[0]=bob', 'userId=bob', 'USER_ID=bob', 'user_id=bob%00',
    'user_id=ann%00bob', 'user_id=ann%2Cbob', 'user_id=bob%20', 'user_id=BOB', '__proto__[user_id]=bob', 'user_id=b%6fb#ann'
  ].flatMap(query => [
    { path: `${prefix}/api/credits?${query}` },
    { path: `${prefix}/api/credits?${query}`, method: 'HEAD' },
    { path: `${prefix}/api/credits/deduct?${query}`, method: 'POST', headers: JSON_TYPE, body: charge() }
  ]),
  // the body
  ...[
    charge({ user_id: 'bob' }), charge({ userId: 'bob' }), charge({ 'user_id ': 'bob' }), charge({ user_id: ['bob'] }),
    charge({ user_id: 'bob', metadata: { user_id: 'ann' } }),
    '{"user_id":"ann","user_id":"bob","credits":1,"operation":"chat"}',
    '{"user_id":"\\u0062ob","credits":1,"operation":"chat"}',
    '{"__proto__":{"user_id":"bob"},"credits":1,"operation":"chat"}',
    '{"constructor":{"prototype":{"user_id":"bob"}},"credits":1,"operation":"chat"}',
    '\ufeff' + charge({ user_id: 'bob' })
  ].map(body => ({ path: `${prefix}/api/credits/deduct`, method: 'POST', headers: JSON_TYPE, body })),
  {
    path: `${prefix}/api/credits/deduct`,
    method: 'POST',
    headers: { 'content-type': 'application/json; charset=utf-16' },
    body: Buffer.from(charge({ user_id: 'bob' }), 'utf16le')
  },
  {
    path: `${prefix}/api/credits/deduct`,
    method: 'POST',
    headers: { 'content-type': 'application/x-www-form-urlencoded' },
    body: 'user_id=bob&credits=1&operation=chat'
  },
  // the path
  ...[
    '/api/%63redits', '/api//credits', '//api/credits', '/api/./credits', '/x/../api/credits', '/API/credits',
    '/api/credits/', '/api/credits%2F', '/api/credits/bob', '/api/credits%3Fuser_id=bob', '/api/credits;user_id=bob'
  ].map(path => ({ path: `${prefix}${path}${path.includes('user_id') ? '' : '?user_id=bob'}` })),
  { path: `http://localhost${prefix}/api/credits?user_id=bob` },
  // headers that are believed elsewhere, or by nobody
  ...['x-user', 'x-user-id', 'user-id', 'user_id', 'x-forwarded-user', 'x-original-url', 'cookie']
    .filter(name => !(prefix === '/trusted' && name === 'x-user-id'))
    .map(name => ({ path: `${prefix}/api/credits?user_id=bob`, headers: { [name]: 'bob' } })),
  { path: `${prefix}/api/credits?user_id=bob`, method: 'POST', headers: { 'x-http-method-override': 'GET' } }
]

t.test('three ways of telling who is asking', async t => {
  const example = await startServer(t, 'examples/identify/server.js', { ...SECRETS, DATA_DIR: await temporaryFolder(t) })
  const ways = waysOf(example)

  for (const { prefix, ann, strangers } of ways) {
    const send = (sent: Sent, own: Headers = ann) => ask(example.url, { ...sent, headers: { ...sent.headers, ...own } })
    const asBob = bobOf(prefix, ann)

    await t.test(`${prefix}: nobody else's account`, async t => {
      const { used } = (await send({ path: `${prefix}/api/credits` })).json().credits
      let accepted = 0
      for (const attempt of attempts(prefix)) {
        const { status, body, json } = await send(attempt)
        const what = `${attempt.method ?? 'GET'} ${attempt.path} ${attempt.body ?? ''}`
        t.ok([400, 401, 403, 404, 413, 415].includes(status) || isOwn(json()), `${status} ${what}`)
        if (status === 404 && body !== '') t.match(json(), { message: /^Route / }, what) // it says what was asked for
        else t.notMatch(body, 'bob', what)
        if (status === 200 && attempt.method === 'POST') accepted++
      }
      t.equal((await send({ path: `${prefix}/api/credits` })).json().credits.used, used + accepted, 'ann paid for her own')
      if (asBob !== undefined) {
        t.match((await send({ path: `${prefix}/api/credits` }, asBob)).json(), { credits: { used: 0, usage_history: [] } })
      }

      function isOwn (reply: any) {
        return reply?.credits !== undefined && reply.credits.used <= used + accepted + 1
      }
    })

    await t.test(`${prefix}: a stranger is nobody's`, async t => {
      for (const headers of strangers) {
        for (const sent of [
          { path: `${prefix}/api/credits` },
          { path: `${prefix}/api/credits?user_id=ann` },
          { path: `${prefix}/api/credits/deduct`, method: 'POST', headers: JSON_TYPE, body: charge() },
          { path: `${prefix}/images`, method: 'POST' }
        ]) {
          t.equal((await ask(example.url, { ...sent, headers: { ...sent.headers, ...headers } })).status, 401,
            `${sent.path} ${JSON.stringify(headers)}`)
        }
      }
    })

    await t.test(`${prefix}: a route of the host's charges who is asking`, async t => {
      const before = (await send({ path: `${prefix}/api/credits` })).json().credits.used
      for (const query of ['', '?user_id=bob']) {
        const { status } = await send({
          path: `${prefix}/images${query}`, method: 'POST', headers: JSON_TYPE, body: charge({ user_id: 'bob' })
        })
        t.equal(status, 200)
      }
      t.equal((await send({ path: `${prefix}/api/credits` })).json().credits.used, before + 20)
    })
  }

  t.equal(await example.end('SIGINT'), 0)
  t.equal(example.errors(), '')
})

interface Way {
  prefix: string
  /** What proves a request to be ann's. */
  ann: Headers
  /** What proves nothing. */
  strangers: Headers[]
}

// The lines that the server prints at start show how to be ann.
function waysOf ({ output }: Example): Way[] {
  const headersOf = (prefix: string) => {
    const [line] = new RegExp(`curl \\S+${prefix}/api/credits .*`).exec(output())!
    return Object.fromEntries([...line.matchAll(/-H "([^:]+): ([^"]+)"/g)].map(([, name, value]) => [name!.toLowerCase(), value!]))
  }
  const [jwt, key, trusted] = [headersOf('/jwt'), headersOf('/key'), headersOf('/trusted')]
  const broken = { authorization: `${key.authorization}x` }
  const [head, payload] = jwt.authorization!.split('.')
  const none = Buffer.from('{"alg":"none","typ":"JWT"}').toString('base64url')
  return [
    {
      prefix: '/jwt',
      ann: jwt,
      strangers: [{}, key, trusted, broken, { authorization: `${head}.${payload}.` }, { authorization: `Bearer ${none}.${payload}.` }]
    },
    { prefix: '/key', ann: key, strangers: [{}, jwt, trusted, broken, { authorization: 'Bearer' }, { authorization: key.authorization!.slice(7) }] },
    {
      prefix: '/trusted',
      ann: trusted,
      strangers: [
        {}, jwt, key, { 'x-user-id': 'ann' }, { 'x-user-id': 'ann', 'x-gateway-secret': 'wrong' },
        { ...trusted, 'x-user-id': ['ann', 'bob'] }, { ...trusted, 'x-user-id': '' }, { 'x-gateway-secret': SECRETS.GATEWAY_SECRET },
        { ...trusted, 'x-gateway-secret': [SECRETS.GATEWAY_SECRET, 'wrong'] }
      ]
    }
  ]
}

// Only the gateway can say so.
function bobOf (prefix: string, ann: Headers) {
  return prefix === '/trusted' ? { ...ann, 'x-user-id': 'bob' } : undefined
}

// As it stands: fetch would tidy up paths and headers.
async function ask (url: string, { path, method = 'GET', headers = {}, body }: Sent) {
  const { hostname, port } = new URL(url)
  const reply = await new Promise<import('node:http').IncomingMessage>((resolve, reject) => {
    request({ hostname, port, path, method, headers, agent: false }, resolve).on('error', reject).end(body)
  })
  const answer = await text(reply)
  return { status: reply.statusCode!, body: answer, json: () => answer === '' ? undefined : JSON.parse(answer) }
}
