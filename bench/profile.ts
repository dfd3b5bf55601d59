// Shows where the time of a load goes: in the process, in PostgreSQL's waits, and in the parts of its statements.
// npm run bench:profile [-- --load=deduct|keys|pairs --accounts=hot|spread --callers=256 --seconds=3]
import { Session } from 'node:inspector/promises'
import { parseArgs } from 'node:util'
import pg from 'pg'
import { library, libraryPairs, libraryWithKeys } from './contenders/library.js'
import { charge } from './contenders/contender.js'
import { anyUser, HOT, startServer } from './databases.js'
import { runLoad } from './load.js'
import { table } from './report.js'

const BATCH = 128 // calls of the statement that is explained
const SAMPLE = 20 // milliseconds between two looks at the waits
const SHOWN = 25 // functions of the process

const { values } = parseArgs({
  options: {
    load: { type: 'string', default: 'deduct' },
    accounts: { type: 'string', default: 'hot' },
    callers: { type: 'string', default: '256' },
    seconds: { type: 'string', default: '3' }
  }
})
const contender = { deduct: library, keys: libraryWithKeys, pairs: libraryPairs }[values.load]!
const user = values.accounts === 'hot' ? () => HOT : anyUser
const print = (text: string) => process.stdout.write(`${text}\n`)
const percent = (share: number) => `${(share * 100).toFixed(1)} %`

/** How often each of some things was seen, the most frequent first. */
class Tally {
  private readonly counts = new Map<string, number>()

  add (name: string, count: number) {
    this.counts.set(name, (this.counts.get(name) ?? 0) + count)
  }

  table (what: string, total: number, limit = Infinity) {
    const sorted = [...this.counts].sort(([, a], [, b]) => b - a).slice(0, limit)
    return table([what, 'share'], sorted.map(([name, count]) => [name, percent(count / total)]))
  }
}

/** Looks at what the sessions of a database are doing, until it is stopped. */
async function watchWaits (connectionString: string) {
  const client = new pg.Client(connectionString)
  await client.connect()
  const tally = new Tally()
  let samples = 0
  let looking: Promise<void> | undefined
  const look = async () => {
    const { rows } = await client.query(`
      select coalesce(wait_event_type || ': ' || wait_event, 'working') as doing from pg_stat_activity
      where datname = current_database() and pid <> pg_backend_pid() and state = 'active'`)
    samples++
    for (const { doing } of rows) tally.add(doing, 1)
    looking = undefined
  }
  const timer = setInterval(() => { looking ??= look() }, SAMPLE)
  return async () => {
    clearInterval(timer)
    await looking
    await client.end()
    return tally.table('sessions of PostgreSQL at work, on average', samples)
  }
}

/** Profiles this process, until it is stopped. */
async function watchProcess () {
  const session = new Session()
  session.connect()
  await session.post('Profiler.enable')
  await session.post('Profiler.setSamplingInterval', { interval: 200 })
  await session.post('Profiler.start')
  return async () => {
    const { profile: { nodes, timeDeltas = [], samples = [] } } = await session.post('Profiler.stop')
    session.disconnect()
    const names = new Map(nodes.map(({ id, callFrame: { functionName, url } }) =>
      [id, `${functionName || '(anonymous)'} ${url.split('/').slice(-2).join('/')}`.trim()]))
    const tally = new Tally()
    for (const [index, id] of samples.entries()) tally.add(names.get(id)!, timeDeltas[index]!)
    return tally.table('function of the process, its own time', timeDeltas.reduce((sum, delta) => sum + delta, 0), SHOWN)
  }
}

/** One shared statement with the plans of the queries inside it, as PostgreSQL's auto_explain tells them. */
async function explain (connectionString: string) {
  const client = new pg.Client(connectionString)
  const plans: string[] = []
  client.on('notice', ({ message }) => plans.push(message!))
  await client.connect()
  await client.query("load 'auto_explain'")
  const key = (index: number) => values.load === 'keys' ? `"explained ${index} ${performance.now()}"` : 'null'
  const run = async () => {
    const users = Array.from({ length: values.accounts === 'hot' ? 1 : BATCH }, (_, index) => values.accounts === 'hot' ? HOT : `user${index}`)
    const calls = Array.from({ length: BATCH }, (_, index) =>
      `[${values.accounts === 'hot' ? 1 : index + 1},"deduct",${key(index)},1,"chat",${JSON.stringify(charge.metadata)}]`)
    await client.query({ name: 'explained', text: 'select ai_credit_execute(7, $1, $2, $3, $4)', values: [users, `[${calls}]`, '{"credits": 0}', 'UTC'] })
  }
  for (let warmUp = 0; warmUp < 20; warmUp++) await run()
  await client.query(`
    set auto_explain.log_min_duration = 0; set auto_explain.log_nested_statements = on; set auto_explain.log_analyze = on;
    set auto_explain.log_buffers = on; set auto_explain.log_level = notice; set client_min_messages = notice`)
  plans.length = 0
  await run()
  await client.end()
  // Those of ai_credit_hash, one for each key, would be most of it.
  return plans.filter(plan => plan.startsWith('duration') && !/Query Text: $/m.test(plan)).join('\n\n')
}

const server = await startServer()
const connectionString = await server.createDatabase('profile')
const opened = await contender.open(connectionString)
await runLoad(Number(values.callers), 1, () => opened.call(user()))
const [waits, functions] = [await watchWaits(connectionString), await watchProcess()]
const { perSecond } = await runLoad(Number(values.callers), Number(values.seconds), () => opened.call(user()))
print(`${values.load}, ${values.accounts}, ${values.callers} callers: ${Math.round(perSecond).toLocaleString('en')} calls per second while watched\n`)
print(await functions())
print(await waits())
print(await explain(connectionString))
await opened.close()
await server.stop()
