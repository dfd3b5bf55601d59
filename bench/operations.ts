// Measures the figures of docs/operations.md: sizes, HOT updates, pruning, partitions, locked accounts, neglected accounts.
// npm run bench:operations [-- --records=100000]
import { parseArgs } from 'node:util'
import pg from 'pg'
import { createLedger } from '../src/index.js'
import { neglect } from './neglect.js'
import { partitionScript } from './ledger-scripts.js'
import { HOT, openPool, startServer } from './databases.js'

const CALLERS = 64
const ACCOUNTS = 1000

const { values } = parseArgs({ options: { records: { type: 'string', default: '100000' } } })
const records = Number(values.records)
const charge = { credits: 1, operation: 'video_generation', metadata: { duration: 30, quality: 'hd', model: 'large' } }
const server = await startServer()
const print = (line: string) => process.stdout.write(`${line}\n`)

async function open (name: string, before = '') {
  const pool = openPool(await server.createDatabase(name))
  const ledger = createLedger(pool, { allowance: 1e12, timeout: 60_000 })
  await ledger.migrate()
  if (before !== '') await pool.query(before)
  let calls = 0

  /** Makes so many deducts, and returns how many it made per second. */
  async function deduct (count: number, keys: boolean, userId = () => `user${calls % ACCOUNTS}`) {
    const started = performance.now()
    let left = count
    await Promise.all(Array.from({ length: CALLERS }, async () => {
      while (left-- > 0) {
        calls++
        await ledger.deduct({ ...charge, userId: userId(), ...keys && { idempotencyKey: `job-${calls}-0123456789abcdef` } })
      }
    }))
    return Math.round(count / (performance.now() - started) * 1000)
  }
  return { pool, ledger, deduct, one: async (pool: pg.Pool, query: string) => (await pool.query(query)).rows[0] }
}

async function sizes () {
  for (const keys of [false, true]) {
    const { pool, deduct, one } = await open(`sizes_${keys}`)
    await deduct(records, keys)
    const { heap, total } = await one(pool, `
      select pg_relation_size('ai_credit_usage') as heap, pg_total_relation_size('ai_credit_usage') as total`)
    print(`${keys ? 'with' : 'without'} a key: ${Math.round(total / records)} bytes a usage record, ` +
      `of which ${Math.round(heap / records)} in the table`)
    if (keys) await pruning(pool, deduct)
    await pool.end()
  }
}

async function pruning (pool: pg.Pool, deduct: (count: number, keys: boolean) => Promise<number>) {
  const alone = await deduct(records / 4, true)
  const pruner = createLedger(pool, { timeout: 60_000 })
  const started = performance.now()
  let seconds = 0
  const pruned = pruner.prune({ before: new Date() }).then(done => {
    seconds = (performance.now() - started) / 1000
    return done
  })
  const beside = await deduct(records / 4, true)
  const { records: gone } = await pruned
  print(`pruning: ${Math.round(gone / seconds)} records a second beside ${beside} deducts a second (${alone} without)`)
}

async function hot () {
  for (const fillfactor of [100, 70]) {
    const { pool, deduct, one } = await open(`hot_${fillfactor}`, `
      alter table ai_credits set (fillfactor = ${fillfactor});
      alter table ai_credit_daily_usage set (fillfactor = ${fillfactor})`)
    await deduct(ACCOUNTS, false)
    const share = async (table: string) => (await one(pool, `
      select round(100.0 * n_tup_hot_upd / n_tup_upd, 1) as share from pg_stat_user_tables where relname = '${table}'`)).share
    const rates = [await deduct(records / 2, false), await deduct(records / 2, false, () => HOT)]
    await pool.query('select pg_stat_force_next_flush()').catch(() => {}) // since PostgreSQL 15
    await new Promise(resolve => setTimeout(resolve, 1500))
    print(`fillfactor ${fillfactor}: ${await share('ai_credits')} % of the updates of ai_credits are HOT, ` +
      `${await share('ai_credit_daily_usage')} % of those of ai_credit_daily_usage; ` +
      `${rates[0]} deducts a second on ${ACCOUNTS} accounts, ${rates[1]} on one`)
    await pool.end()
  }
}

async function partitions () {
  const plain = await open('plain')
  const partitioned = await open('partitioned')
  for (const { deduct } of [plain, partitioned]) await deduct(records, true)
  const started = performance.now()
  await partitioned.pool.query(partitionScript)
  print(`partitioning ${records} records: ${((performance.now() - started) / 1000).toFixed(1)} s`)
  await partitioned.pool.query('select ai_credit_usage_add_partitions(12)')
  const rates: [number[], number[]] = [[], []]
  for (let round = 0; round < 3; round++) {
    for (const [index, { deduct }] of [plain, partitioned].entries()) rates[index]!.push(await deduct(records / 10, true))
  }
  const [before, after] = rates.map(rates => rates.sort((a, b) => a - b)[1]!) as [number, number]
  print(`deducts with a key: ${before} a second on one table, ${after} on 14 partitions (${(after / before).toFixed(2)})`)
  for (const { pool } of [plain, partitioned]) await pool.end()
}

async function locked () {
  const { pool, ledger } = await open('locked')
  const times: Record<string, number[]> = {}
  const measure = async (name: string, call: () => Promise<unknown>) => {
    const started = performance.now()
    await call()
    ;(times[name] ??= []).push(performance.now() - started)
  }
  await ledger.balance('locked')
  for (const waiting of [0, 10, 40]) {
    const host = new pg.Client(pool.options)
    await host.connect()
    await host.query('begin')
    await host.query("select from ai_credits where user_id = 'locked' for no key update")
    const grants = Array.from({ length: waiting }, () => ledger.grant({ userId: 'locked', credits: 1 }))
    for (let round = 0; round < 200; round++) {
      await measure('deduct', () => ledger.deduct({ ...charge, userId: 'free' }))
      await measure('balance', () => ledger.balance('free'))
      await measure("the host's query", () => pool.query('select 1'))
    }
    await host.query('commit')
    await Promise.all(grants)
    await host.end()
    for (const [name, all] of Object.entries(times)) {
      all.sort((a, b) => a - b)
      print(`${waiting} grants wait for a locked account, ${name} beside them: ` +
        `median ${all[100]!.toFixed(1)} ms, longest ${all[199]!.toFixed(1)} ms`)
      delete times[name]
    }
  }
  await pool.end()
}

async function neglected () {
  const { pool, ledger } = await open('neglected')
  for (const [holds, grants] of [[8000, 0], [0, 8000], [5000, 5000]] as const) {
    const userId = `${holds} lapsed holds and ${grants} expired grants`
    await neglect(ledger, pool, [userId], holds, grants)
    const started = performance.now()
    await ledger.balance(userId)
    print(`${userId}: the next call takes ${Math.round(performance.now() - started)} ms`)
  }
  await pool.end()
}

await sizes()
await hot()
await partitions()
await locked()
await neglected()
await server.stop()
