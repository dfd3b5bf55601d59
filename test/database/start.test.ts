// needs a real server
import { setTimeout as sleep } from 'node:timers/promises'
import Fastify from 'fastify'
import pg from 'pg'
import t, { type Test } from 'tap'
import credits, { createLedger, UnavailableError, type FastifyAiCreditsOptions } from '../../src/index.js'
import { reasonOf } from '../../src/ledger/database/failure.js'
import { createDatabase, createLedgerDatabase, createPool } from '../helper/database.js'

const unavailable = (message: RegExp | string) => ({ code: 'FST_CREDITS_UNAVAILABLE', message })

t.test('a start that cannot reach its database says why, a call does not', async t => {
  const right = new URL(await createDatabase(t))
  const wrong: Record<string, [change: (url: URL) => void, reason: RegExp]> = {
    'another database': [url => { url.pathname = 'nowhere' }, /: database "nowhere" does not exist$/],
    'another role': [url => { url.username = 'nobody' }, /: (role "nobody" does not exist|.* authentication failed for user "nobody")$/],
    'another host': [url => { url.hostname = 'nowhere.invalid' }, /: getaddrinfo \S+ nowhere\.invalid$/],
    'another port': [url => { url.port = '1' }, /: connect ECONNREFUSED \S+:1$/]
  }
  for (const [what, [change, reason]] of Object.entries(wrong)) {
    const url = new URL(right)
    url.password = 'very secret'
    change(url)
    for (const migrate of [true, false]) {
      const error = await startError(t, url.href, { migrate })
      t.match(error, unavailable(reason), what)
      t.notMatch(error.message, /very|secret/)
    }
    const ledger = createLedger(createPool(t, url.href))
    await t.rejects(ledger.balance(), unavailable('The credits database is unavailable'), 'clients may see this one')
  }
})

t.test('of several addresses that were tried, each says something', async t => {
  const refused = Object.assign(new Error('connect ECONNREFUSED ::1:1'), { code: 'ECONNREFUSED' })
  t.equal(reasonOf(new AggregateError([refused, Object.assign(new Error(), { code: 'ETIMEDOUT' })])), 'connect ECONNREFUSED ::1:1, ETIMEDOUT')
})

t.test('a database that cannot hold every text is refused by name, and left as it is', async t => {
  for (const encoding of ['LATIN1', 'SQL_ASCII']) {
    const connectionString = await createEncoded(t, encoding)
    for (const migrate of [true, false]) {
      t.match(await startError(t, connectionString, { migrate }), {
        code: 'FST_CREDITS_ENCODING', encoding, message: `The database has the encoding ${encoding}, and fastify-ai-credits needs UTF8`
      })
    }
    const { rows } = await createPool(t, connectionString).query("select from pg_class where relname like 'ai\\_credit%'")
    t.equal(rows.length, 0)
  }
})

t.test('a start that waits for a lock ends when the gateway is closed', async t => {
  const connectionString = await createLedgerDatabase(t)
  const client = await createPool(t, connectionString).connect()
  await client.query('begin')
  await client.query('lock table ai_credit_migrations')
  const pool = createPool(t, connectionString, { max: 1 })
  const ledger = createLedger(pool)
  const starting = ledger.migrate().catch(error => error)
  while (pool.totalCount === 0 || pool.idleCount > 0) await sleep(5)
  await sleep(100)
  await ledger.close()
  t.match(await starting, unavailable('The credits database is unavailable: The ledger is closed'))
  await pool.end()
  await client.query('rollback')
  client.release()
})

async function startError (t: Test, connectionString: string, options: FastifyAiCreditsOptions) {
  const app = Fastify()
  t.teardown(() => app.close())
  try {
    await app.register(credits, { connectionString, ...options })
    return new UnavailableError('It started')
  } catch (error) {
    return error as Error
  }
}

async function createEncoded (t: Test, encoding: string) {
  const url = new URL(await createDatabase(t))
  const name = `${url.pathname.slice(1)}_${encoding.toLowerCase()}`
  const client = new pg.Client({ connectionString: url.href })
  await client.connect()
  t.teardown(async () => {
    await client.query(`drop database ${name} with (force)`)
    await client.end()
  })
  await client.query(`create database ${name} encoding '${encoding}' lc_collate 'C' lc_ctype 'C' template template0`)
  url.pathname = name
  return url.href
}
