// Measures the library's shared statement with text and with binary parameters, one at a time and in the pipeline mode of
// `pg`. npm run bench:protocol [-- --rounds=5 --seconds=1]
import pg from 'pg'
import { ledgerScripts } from './ledger-scripts.js'
import { readArguments } from './arguments.js'
import { charge } from './contenders/contender.js'
import { anyUser, fillAccounts, HOT, query, startServer } from './databases.js'
import { table } from './report.js'
import { median } from './statistics.js'

const CALLS = 128 // in each statement
const VARCHAR = 1043 // the type's OID

const ways = {
  'text parameters': { binary: false, inFlight: 1 },
  'binary parameters': { binary: true, inFlight: 1 },
  'text, 2 statements in the pipeline': { binary: false, inFlight: 2 }
}

// Encodes a varchar[] in PostgreSQL's binary format: one dimension, no nulls, each element after its length.
function binaryArray (texts: string[]) {
  const head = Buffer.alloc(20)
  for (const [index, number] of [1, 0, VARCHAR, texts.length, 1].entries()) head.writeInt32BE(number, index * 4)
  return Buffer.concat([head, ...texts.flatMap(text => {
    const bytes = Buffer.from(text)
    const length = Buffer.alloc(4)
    length.writeInt32BE(bytes.length)
    return [length, bytes]
  })])
}

function parameters (hot: boolean, binary: boolean) {
  const users = hot ? [HOT] : [...new Set(Array.from({ length: CALLS }, anyUser))]
  const calls = Array.from({ length: hot ? CALLS : users.length }, (_, index) =>
    `[${hot ? 1 : index + 1},"deduct",null,${charge.credits},"${charge.operation}",${JSON.stringify(charge.metadata)}]`)
  const json = `[${calls}]`
  // The binary format of jsonb is a version byte and the text.
  const values = binary ? [binaryArray(users), Buffer.from(`\x01${json}`)] : [users, json]
  return { calls: calls.length, values: [...values, '{"credits": 0}'] }
}

async function measure (client: pg.Client, { binary, inFlight }: typeof ways[keyof typeof ways], hot: boolean, seconds: number) {
  const started = performance.now()
  let done = 0
  const sendInTurn = async () => {
    while (performance.now() - started < seconds * 1000) {
      const { calls, values } = parameters(hot, binary)
      await client.query({ name: `execute ${binary}`, text: 'select ai_credit_execute(7, $1, $2, $3, false, null)::varchar', values })
      done += calls
    }
  }
  await Promise.all(Array.from({ length: inFlight }, sendInTurn))
  return done / (performance.now() - started) * 1000
}

const { rounds, seconds } = readArguments()
const server = await startServer()
const connectionString = await server.createDatabase('protocol')
for (const script of ledgerScripts) await query(connectionString, script)
await query(connectionString, fillAccounts())
await query(connectionString, 'vacuum analyze')
const rows: string[][] = []
for (const hot of [true, false]) {
  const figures = new Map<string, number[]>(Object.keys(ways).map(name => [name, []]))
  for (let round = 0; round < rounds; round++) {
    for (const [name, way] of Object.entries(ways)) {
      const client = new pg.Client({ connectionString, ...{ pipeline: way.inFlight > 1 } })
      await client.connect()
      await measure(client, way, hot, seconds / 4)
      figures.get(name)!.push(await measure(client, way, hot, seconds))
      await client.end()
    }
  }
  const base = figures.get('text parameters')!
  for (const [name, all] of figures) {
    const ratio = median(all.map((figure, round) => figure / base[round]!))
    rows.push([hot ? 'one account' : '10,000 accounts', name, Math.round(median(all)).toLocaleString('en'), ratio.toFixed(2)])
  }
}
process.stdout.write(table(['accounts', 'sent as', 'calls per second', 'against text'], rows))
await server.stop()
