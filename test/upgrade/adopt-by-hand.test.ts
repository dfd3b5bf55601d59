// needs a real server
import { execFile } from 'node:child_process'
import { readFile } from 'node:fs/promises'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import type pg from 'pg'
import t from 'tap'
import { createLedger } from '../../src/index.js'
import { databaseOfMany, isAdopted } from '../helper/many-records.js'

const sql = new URL('../../src/sql/', import.meta.url)

t.test('by hand, it says how far it is; killed, it goes on; run again, it changes nothing', async t => {
  const { pool, connectionString } = await databaseOfMany(t)
  await pool.query('create view spent as select sum(credits_used) from ai_credit_usage')
  t.match(await psql(connectionString).catch(error => error.stderr), /1\. The view public\.spent depends .*\n {3}drop view public\.spent;/)
  await pool.query('drop view spent')

  const killed = psql(connectionString)
  const gone = t.rejects(killed)
  await until(pool, "select from pg_class where relname = 'ai_credit_adoption'")
  killed.child.kill('SIGKILL')
  await gone
  await pool.query("select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'psql' and datname = current_database()")
  await t.rejects(createLedger(pool).balance('user 1'), { code: 'FST_CREDITS_MIGRATION_REQUIRED' })

  const { stderr } = await psql(connectionString)
  t.match(stderr, /adopted \d+ of \d+ usage records/)
  await t.rejects(createLedger(pool).balance('user 1'),
    { code: 'FST_CREDITS_ADOPTION_UNFINISHED', message: /migrate: true, or run .* -v time_zone=UTC .* -f daily_usage\.sql\)/ })
  t.match((await psql(connectionString, 'daily_usage.sql')).stderr, /summed up 60000 of 60000 usage records/)
  await isAdopted(t, pool)
  await psql(connectionString, 'tables.sql', 'functions.sql', 'daily_usage.sql')
  await isAdopted(t, pool)
})

t.test('the commands of the documents run as they are written', async t => {
  const { pool, connectionString } = await databaseOfMany(t)
  const page = await readFile(new URL('../../docs/database.md', import.meta.url), 'utf8')
  const [, command] = /^## Adopting.*?^```sh\n(.*?)^```/ms.exec(page)!
  const here = command!.replace('cd node_modules/fastify-ai-credits/src/sql', `cd '${fileURLToPath(sql)}'`)
  await promisify(execFile)('sh', ['-ec', here], { env: { ...process.env, DATABASE_URL: connectionString } })
  await isAdopted(t, pool)
})

function psql (connectionString: string, ...files: string[]) {
  const names = files.length > 0 ? files : ['tables.sql', 'functions.sql']
  return promisify(execFile)('psql', [connectionString, '-v', 'ON_ERROR_STOP=1', '-v', 'time_zone=UTC',
    ...names.flatMap(name => ['-f', fileURLToPath(new URL(name, sql))])])
}

async function until (pool: pg.Pool, query: string) {
  while ((await pool.query(query)).rowCount === 0);
}
