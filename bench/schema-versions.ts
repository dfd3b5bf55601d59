// Deducts by one caller on an account without grants or holds, at each version of the schema, interleaved in one run.
// npm run bench:schema-versions
import pg from 'pg'
import { migrations } from '../src/sql/index.js'
import { startPostgres } from '../test/helper/postgres.js'

const ROUNDS = 7
const DEDUCTS = 1500 // of a round

const deduct = {
  name: 'deduct',
  text: 'select * from ai_credit_deduct($1, $2, $3, $4, $5, $6, $7, $8)',
  values: ['ann', 1, 'chat', '{"model": "x", "tokens": 5}', null, '{"credits": 1000000000}', 'UTC', 5000]
}

/** A database whose schema is at the given migration. */
async function openVersion (server: string, version: number) {
  const admin = new pg.Client(server)
  await admin.connect()
  await admin.query(`create database version_${version}`)
  await admin.end()
  const client = new pg.Client(Object.assign(new URL(server), { pathname: `/version_${version}` }).href)
  await client.connect()
  for (const { id, sql } of migrations) if (id <= version) await client.query(sql)
  await client.query('select ai_credit_use_time_zone($1)', ['UTC'])
  return { version, client, times: [] as number[] }
}

async function measure (client: pg.Client) {
  const start = performance.now()
  for (let i = 0; i < DEDUCTS; i++) await client.query(deduct)
  return (performance.now() - start) / DEDUCTS
}

const median = (times: number[]) => times.sort((a, b) => a - b)[times.length >> 1]!

const server = await startPostgres({ settings: { fsync: 'on', synchronous_commit: 'on' } })
const versions = []
for (const { id } of migrations) versions.push(await openVersion(server.connectionString, id))
for (const { client } of versions) await measure(client) // warm up
for (let round = 0; round < ROUNDS; round++) {
  for (const { client, times } of versions) times.push(await measure(client))
}
const first = median(versions[0]!.times)
for (const { version, client, times } of versions) {
  process.stdout.write(`migration ${version}: ${median(times).toFixed(3)} ms a deduct, ${(median(times) / first).toFixed(2)} of the first\n`)
  await client.end()
}
await server.stop()
