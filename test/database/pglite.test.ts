// not on Citus: about PGlite
// needs a real server
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import t from 'tap'
import { writeImage } from '../helper/pglite.js'

const folder = new URL('../', import.meta.url)
// Each kind of call, and the schema. All tests: npm run test:matrix -- --database=pglite
const files = [
  'allowances', 'budgets', 'budget-events', 'client', 'daily-usage', 'deduct', 'grants', 'history', 'holds', 'idempotency', 'ledger',
  'priced-charges', 'prune', 'reconcile', 'refunds', 'sample-data', 'settling', 'statement', 'terms'
].map(name => `ledger/${name}.test.ts`).concat('database/migrate.test.ts', 'database/schema.test.ts')
const marker = /^\/\/ needs a real server$/m

const timeout = 900_000
// The first sets the limit of this process, the second that of the test runner.
t.setTimeout(timeout)
t.comment(`timeout=${timeout}`)

// The behaviour of the ledger is the same on PGlite. All in this process: loading the code once more for each file takes longer than many of them do.
const image = join(t.testdir(), 'pglite.tar')
await writeImage(image)
Object.assign(process.env, { TEST_PGLITE: '1', TEST_PGLITE_IMAGE: image })
for (const name of await behaviourTests()) {
  t.comment(`test/${name}, on PGlite`)
  await import(new URL(name, folder).href)
}

// Without those that need more than one backend.
async function behaviourTests (): Promise<string[]> {
  const sources = await Promise.all(files.map(name => readFile(new URL(name, folder), 'utf8')))
  return files.filter((_, index) => !marker.test(sources[index]!))
}
