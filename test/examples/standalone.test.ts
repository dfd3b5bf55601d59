import { readdir, writeFile } from 'node:fs/promises'
import { createServer } from 'node:net'
import { once } from 'node:events'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { until } from '../helper/charging.js'
import { createDatabase, pglite } from '../helper/database.js'
import { send, startScript, startServer, temporaryFolder } from './run-example.js'

const SCRIPT = 'examples/standalone/server.js'

const CHARGE = {
  user_id: 'default_user',
  credits: 100,
  operation: 'video_generation',
  metadata: { duration: 30, quality: 'hd' }
}

const SAMPLE_BALANCE = { available: 8500, total: 10000, used: 1500 }

const start = (t: Test, folder: string) => startServer(t, SCRIPT, { DATA_DIR: folder })

const balanceOf = async (url: string, userId: string) => {
  const { body: { credits: { available, total, used } } } = await send(`${url}/api/credits?user_id=${userId}`)
  return { available, total, used }
}

const locks = async (folder: string) => (await readdir(folder)).filter(name => name.endsWith('.lock'))

function dayBefore (day: string) {
  return new Date(Date.parse(day) - 86_400_000).toISOString().slice(0, 10)
}

// Making a database takes seconds.
t.setTimeout(300_000)

const folder = await temporaryFolder(t)

t.test('the main job', async t => {
  const { url, output } = await start(t, folder)

  await t.test('the balance of the default user, and the sample records as history', async t => {
    const { status, body } = await send(`${url}/api/credits`)
    const today = body.credits.usage_history[0].date
    const yesterday = dayBefore(today)
    t.equal(status, 200)
    t.strictSame(body, {
      credits: {
        ...SAMPLE_BALANCE,
        usage_history: [
          { date: today, used: 500, operation: 'video_generation', duration: 30, quality: 'hd' },
          { date: today, used: 400, operation: 'video_generation', duration: 60, quality: '4k' },
          { date: today, used: 100, operation: 'text_analysis', words: 500 },
          { date: yesterday, used: 300, operation: 'video_analysis', clips_analyzed: 5 },
          { date: yesterday, used: 200, operation: 'script_generation', variants: 3 }
        ]
      }
    })
    t.ok(Math.abs(Date.now() - Date.parse(today)) < 2 * 86_400_000)
    t.strictSame((await send(`${url}/api/credits?user_id=default_user`)).body, body)
  })

  await t.test('a charge', async t => {
    const { status, body } = await send(`${url}/api/credits/deduct`, CHARGE)
    t.equal(status, 200)
    t.strictSame(body, {
      message: 'Credits deducted successfully',
      credits: { available: 8400, total: 10000, used: 1600 }
    })
  })

  await t.test('more than is available changes nothing', async t => {
    const before = (await send(`${url}/api/credits`)).body
    const { status, body } = await send(`${url}/api/credits/deduct`, { ...CHARGE, credits: 8401 })
    t.equal(status, 402)
    t.strictSame(body, {
      statusCode: 402,
      code: 'FST_CREDITS_INSUFFICIENT',
      error: 'Payment Required',
      message: 'Insufficient credits: 8401 required, 8400 available',
      credits: { available: 8400, total: 10000, used: 1600 },
      required: 8401
    })
    t.strictSame((await send(`${url}/api/credits`)).body, before)
  })

  await t.test('a new user', async t => {
    const { status, body } = await send(`${url}/api/credits?user_id=somebody_new`)
    t.equal(status, 200)
    t.strictSame(body, { credits: { available: 10000, total: 10000, used: 0, usage_history: [] } })
  })

  await t.test('localhost is this server', async t => {
    const { port } = new URL(url)
    t.strictSame((await send(`http://localhost:${port}/api/credits?user_id=somebody_new`)).status, 200)
  })

  await t.test('the documentation', async t => {
    const { body } = await send(`${url}/documentation/json`)
    t.strictSame(Object.keys(body.paths).sort(), ['/api/credits', '/api/credits/budgets', '/api/credits/check', '/api/credits/deduct'])
    const page = await fetch(url)
    t.equal(page.url.startsWith(`${url}/documentation`), true)
    t.match(page.headers.get('content-type'), /text\/html/)
  })

  await t.test('the lines at start', async t => {
    t.match(output(), /Credits: http:\/\/localhost:\d+\/api\/credits, documentation: http:\/\/localhost:\d+\/documentation/)
    t.match(output(), /Database: embedded PostgreSQL \(PGlite\), data in \//)
    t.match(output(), /not a power loss/)
  })
})

t.test('Ctrl-C closes cleanly, and the next start finds the same balances and seeds nothing', async t => {
  let server = await start(t, folder)
  for (const signal of ['SIGINT', 'SIGTERM'] as const) {
    await send(`${server.url}/api/credits/deduct`, CHARGE)
    const before = (await send(`${server.url}/api/credits`)).body
    t.equal((await locks(folder)).length, 1)
    t.equal(await server.end(signal), 0, signal)
    t.equal(server.errors(), '')
    t.strictSame(await locks(folder), [])

    server = await start(t, folder)
    t.strictSame((await send(`${server.url}/api/credits`)).body, before)
  }
})

t.test('a killed server loses no acknowledged charge', async t => {
  const first = await start(t, folder)
  const before = await balanceOf(first.url, 'default_user')
  const clients = 8
  let charged = 0
  const charging = Array.from({ length: clients }, async () => {
    for (;;) {
      const { status } = await send(`${first.url}/api/credits/deduct`, { user_id: 'alice', credits: 1, operation: 'chat' })
      if (status === 200) charged++
    }
  })
  const ended = Promise.allSettled(charging)
  await until(() => charged, charged => charged >= 50)
  await first.end('SIGKILL')
  await ended
  t.equal((await locks(folder)).length, 1, 'the lock is left behind')

  const second = await start(t, folder)
  const { available, used } = await balanceOf(second.url, 'alice')
  t.ok(used >= charged && used <= charged + clients, `${charged} acknowledged, ${used} charged`)
  t.equal(available, 10000 - used)
  t.strictSame(await balanceOf(second.url, 'default_user'), before)
  t.match(await locks(folder), [new RegExp(`^process-${second.pid}-`)], 'the stale lock is gone')
})

t.test('a second process on the same folder is refused, and the first is unharmed', async t => {
  const first = await start(t, folder)
  const second = startScript(t, SCRIPT, { DATA_DIR: folder, PORT: '0' })
  t.equal(await second.exited, 1)
  t.match(second.errors().trimEnd(), new RegExp(`^The folder ${folder} is in use by process ${first.pid}\\. [^\\n]*$`))
  t.equal((await send(`${first.url}/api/credits/deduct`, CHARGE)).status, 200)
  t.equal(await first.end('SIGTERM'), 0)
})

t.test('a first start that is killed halfway leaves a folder that the next one can use', async t => {
  const folder = await temporaryFolder(t)
  const first = startScript(t, SCRIPT, { DATA_DIR: folder, PORT: '0' })
  while (!(await readdir(folder)).includes('pgdata.unfinished')) await new Promise(resolve => setTimeout(resolve, 20))
  await first.end('SIGKILL')
  const second = await start(t, folder)
  t.strictSame(await balanceOf(second.url, 'default_user'), SAMPLE_BALANCE)
})

t.test('DATABASE_URL', { skip: pglite && 'is for a server, with prepared statements' }, async t => {
  const url = new URL(await createDatabase(t))
  url.password ||= 'secret-word'
  const server = await startServer(t, SCRIPT, { DATABASE_URL: url.href })
  t.strictSame(await balanceOf(server.url, 'default_user'), SAMPLE_BALANCE)
  t.match(server.output(), `Database: the PostgreSQL of DATABASE_URL, ${url.host}${url.pathname}`)
  t.notMatch(server.output(), `:${url.password}@`)
  t.equal(await server.end('SIGINT'), 0)
})

t.test('what cannot start says why in one line', async t => {
  for (const PORT of ['http', '-1', '1.5', '65536', '0x50']) {
    const example = startScript(t, SCRIPT, { PORT, DATA_DIR: await temporaryFolder(t) })
    t.equal(await example.exited, 1)
    t.equal(example.errors(), `PORT must be a whole number from 0 to 65535, not "${PORT}"\n`)
  }

  const taken = createServer().listen(0, '127.0.0.1')
  await once(taken, 'listening')
  t.teardown(() => taken.close())
  const { port } = taken.address() as { port: number }
  const folder = await temporaryFolder(t)
  const example = startScript(t, SCRIPT, { PORT: `${port}`, HOST: '127.0.0.1', DATA_DIR: folder })
  t.equal(await example.exited, 1)
  t.equal(example.errors(), `Port ${port} is already in use on 127.0.0.1. Choose another one with PORT=${port + 1}\n`)
  t.strictSame(await locks(folder), [])

  const file = join(folder, 'file')
  await writeFile(file, '')
  const misplaced = startScript(t, SCRIPT, { PORT: '0', DATA_DIR: file })
  t.equal(await misplaced.exited, 1)
  t.match(misplaced.errors(), /^EEXIST: [^\n]*\n$/)

  const unreachable = startScript(t, SCRIPT, { PORT: '0', DATABASE_URL: `postgres://me:secret-word@127.0.0.1:${port + 1}/db` })
  t.equal(await unreachable.exited, 1)
  t.match(unreachable.errors(), /^The credits database is unavailable: [^\n]*ECONNREFUSED[^\n]*\n$/)
  t.notMatch(unreachable.errors(), 'secret-word')
})
