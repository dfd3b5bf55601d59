// Shows that a deduct and a read of the history take equally long, however many usage records there are.
// npm run bench:growth [-- --json --rounds=3 --records=10000,1000000,10000000 --shared-buffers=128MB]
import { parseArgs } from 'node:util'
import type { FastifyInstance } from 'fastify'
import { charge } from './contenders/contender.js'
import { openGateway } from './contenders/library.js'
import { ACCOUNTS, anyUser, query, startServer } from './databases.js'
import { runLoad } from './load.js'
import { describeMachine } from './machine.js'
import { table } from './report.js'
import { median } from './statistics.js'

const CALLERS = 64
const SECONDS = 1
const RECENT = [20, 1_000_000] // usage records within the history's days, of the two accounts whose GET is compared
const DAYS = 30

const { values } = parseArgs({
  options: {
    json: { type: 'boolean', default: false },
    rounds: { type: 'string', default: '3' },
    records: { type: 'string', default: '10000,1000000,10000000' },
    'shared-buffers': { type: 'string', default: '128MB' } // PostgreSQL's own default
  }
})
const sizes = values.records.split(',').map(Number)
const recent = RECENT.map(records => Math.min(records, Math.max(...sizes)))

interface Measured {
  perSecond: number
  get: number
}

/** Opens a gateway on a new database with so many usage records, spread over all accounts and 30 days. */
async function openWith (records: number, createDatabase: (name: string) => Promise<string>) {
  const connectionString = await createDatabase(`${records} records`)
  const app = await openGateway(connectionString)
  await fill(connectionString, 'user', ACCOUNTS, Math.ceil(records / ACCOUNTS))
  return { app, connectionString, rounds: [] as Measured[] }
}

// Writes what the ledger itself would have written: the usage records in the order of each account, the daily usage, and
// the accounts.
async function fill (connectionString: string, prefix: string, accounts: number, each: number, days = DAYS, models = 5) {
  await query(connectionString, `
    insert into ai_credit_usage (
      user_id, seq, kind, credits_used, operation, metadata, created_at, total_after, used_after, held_after)
    select '${prefix}' || n, seq, 'deduct', 1, 'chat', jsonb_build_object('model', 'm' || seq % ${models}),
      now() - (${each} - seq) * ${days} / ${each} * interval '1 day', 1e15, seq, 0
    from generate_series(1, ${each}) seq, generate_series(0, ${accounts - 1}) n;
    insert into ai_credit_daily_usage (user_id, day, operation, metadata_hash, metadata, used_credits)
    select user_id, (created_at at time zone 'UTC')::date, operation, ai_credit_hash(metadata), metadata, sum(credits_used)
    from ai_credit_usage where user_id like '${prefix}%' group by 1, 2, 3, 4, 5;
    update ai_credits set seq = ${each}, used_credits = ${each}
    where user_id in (select '${prefix}' || n from generate_series(0, ${accounts - 1}) n)`)
  await query(connectionString, 'vacuum analyze')
  await query(connectionString, 'checkpoint')
}

const get = (app: FastifyInstance, user: () => string) => runLoad(1, SECONDS, async () => {
  const { statusCode } = await app.inject(`/api/credits?user_id=${user()}`)
  if (statusCode !== 200) throw new Error(`GET was answered with ${statusCode}`)
})

const server = await startServer({ shared_buffers: values['shared-buffers'] })
const machine = await describeMachine(await server.createDatabase('machine'))
const databases = []
for (const size of sizes) databases.push({ size, ...await openWith(size, server.createDatabase) })
const windows = recent.map(records => ({ records, p50: [] as number[] }))
const largest = databases.at(-1)!
for (const [index, { records }] of windows.entries()) {
  await query(largest.connectionString,
    `insert into ai_credits (user_id, total_credits, opening_total) values ('recent${index}0', 1e15, 1e15)`)
  // The history of each account has 20 entries: GET should take equally long, however many records they sum up.
  await fill(largest.connectionString, `recent${index}`, 1, records, RECENT[0], 1)
}

for (let round = 0; round < Number(values.rounds); round++) {
  process.stderr.write(`round ${round + 1}\n`)
  for (const { app, rounds } of round % 2 ? databases.toReversed() : databases) {
    const { perSecond } = await runLoad(CALLERS, SECONDS, () => app.credits.deduct({ userId: anyUser(), ...charge }))
    rounds.push({ perSecond, get: (await get(app, anyUser)).p50 })
  }
  for (const [index, { p50 }] of windows.entries()) p50.push((await get(largest.app, () => `recent${index}0`)).p50)
}

const reconciled = await Promise.all(databases.map(({ app }) => app.credits.reconcile('user0')))
for (const { app } of databases) await app.close()
await server.stop()

const [smallest] = databases
const result = {
  machine,
  sizes: databases.map(({ size, rounds }, index) => ({
    records: size,
    deductsPerSecond: median(rounds.map(({ perSecond }) => perSecond)),
    getP50: median(rounds.map(({ get }) => get)),
    deductRatio: median(rounds.map(({ perSecond }, round) => perSecond / smallest!.rounds[round]!.perSecond)),
    getRatio: median(rounds.map(({ get }, round) => get / smallest!.rounds[round]!.get)),
    reconciled: reconciled[index]!.ok
  })),
  windows: windows.map(({ records, p50 }) => ({
    records, getP50: median(p50), ratio: median(p50.map((time, round) => time / windows[0]!.p50[round]!))
  }))
}
if (values.json) {
  process.stdout.write(`${JSON.stringify(result)}\n`)
} else {
  process.stdout.write(`${Object.entries(machine).map(entry => entry.join(': ')).join(', ')}\n\n`)
  process.stdout.write(table(['usage records', 'deducts per second', 'ratio', 'GET p50 ms', 'ratio', 'reconciled'],
    result.sizes.map(({ records, deductsPerSecond, deductRatio, getP50, getRatio, reconciled }) => [
      records.toLocaleString('en'), Math.round(deductsPerSecond).toLocaleString('en'), deductRatio.toFixed(2),
      getP50.toFixed(3), getRatio.toFixed(2), String(reconciled)])))
  process.stdout.write(`\n${table(["the account's records in the window", 'GET p50 ms', 'ratio'], result.windows.map(
    ({ records, getP50, ratio }) => [records.toLocaleString('en'), getP50.toFixed(3), ratio.toFixed(2)]))}`)
}
