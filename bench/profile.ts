// Shows where the time of a load goes: functions of the process, waits of PostgreSQL, and parts of its statements.
// npm run bench:profile [-- --load=deduct|keys|pairs --accounts=hot|spread --callers=256 --seconds=3]
import { Session } from 'node:inspector/promises'
import { parseArgs } from 'node:util'
import pg from 'pg'
import { library, libraryPairs, libraryWithKeys } from './contenders/library.js'
import { charge } from './contenders/contender.js'
import { anyUser, HOT, startServer } from './databases.js'
import { runLoad } from './load.js'
import { table } from './report.js'

const BATCH = 128 // calls in the statement that is explained
const SAMPLE = 20 // milliseconds between two samples of the waits
const SHOWN = 25 // functions of the process that are listed

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

/** Counts things by name, and prints them with the most frequent first. */
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

/** Samples the work and the waits of a database's sessions. Returns a function that stops this and returns a table. */
async function watchWaits (connectionString: string) {
  const client = new pg.Client(connectionString)
  await client.connect()
  const tally = new Tally()
  let samples = 0
  let sampling: Promise<void> | undefined
  const sample = async () => {
    const { rows } = await client.query(`
      select coalesce(wait_event_type || ': ' || wait_event, 'working') as doing from pg_stat_activity
      where datname = current_database() and pid <> pg_backend_pid() and state = 'active'`)
    samples++
    for (const { doing } of rows) tally.add(doing, 1)
    sampling = undefined
  }
  const timer = setInterval(() => { sampling ??= sample() }, SAMPLE)
  return async () => {
    clearInterval(timer)
    await sampling
    await client.end()
    return tally.table('sessions of PostgreSQL at work, on average', samples)
  }
}

/** Profiles this process. Returns a function that stops this and returns a table. */
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

/** Runs one shared statement, and returns the plans of the queries inside it, from PostgreSQL's auto_explain. */
async function explain (connectionString: string) {
  const client = new pg.Client(connectionString)
  const plans: string[] = []
  client.on('notice', ({ message }) => plans.push(message!))
  await client.connect()
  await client.query("load 'auto_explain'")
  const key = (index: number) => values.load === 'keys' ? `"explained ${index} ${performance.now()}"` : 'null'
  const run = async () => {
    const hot = values.accounts === 'hot'
    const users = hot ? [HOT] : Array.from({ length: BATCH }, (_, index) => `user${index}`)
    const calls = Array.from({ length: BATCH }, (_, index) =>
      `[${hot ? 1 : index + 1},"deduct",${key(index)},1,"chat",${JSON.stringify(charge.metadata)}]`)
    await client.query({
      name: 'explained',
      text: 'select ai_credit_execute(7, $1, $2, $3, false, null)',
      values: [users, `[${calls}]`, '{"credits": 0}']
    })
  }
  for (let warmUp = 0; warmUp < 20; warmUp++) await run()
  await client.query(`
    set auto_explain.log_min_duration = 0; set auto_explain.log_nested_statements = on; set auto_explain.log_analyze = on;
    set auto_explain.log_buffers = on; set auto_explain.log_level = notice; set client_min_messages = notice`)
  plans.length = 0
  await run()
  await client.end()
  // Without the plans of ai_credit_hash: there is one for each key, and they would be most of the output.
  return plans.filter(plan => plan.startsWith('duration') && !/Query Text: $/m.test(plan)).join('\n\n')
}

const server = await startServer()
const connectionString = await server.createDatabase('profile')
const opened = await contender.open(connectionString)
await runLoad(Number(values.callers), 1, () => opened.call(user()))
const [waits, functions] = [await watchWaits(connectionString), await watchProcess()]
const { perSecond } = await runLoad(Number(values.callers), Number(values.seconds), () => opened.call(user()))
print(`${values.load}, ${values.accounts}, ${values.callers} callers: ` +
  `${Math.round(perSecond).toLocaleString('en')} calls per second while watched\n`)
print(await functions())
print(await waits())
print(await explain(connectionString))
await opened.close()
await server.stop()
