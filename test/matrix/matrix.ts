// Runs the tests on every version of Node.js with every database, and prints a table of what passed.
//
// npm run test:matrix [-- --node=20,22 --database=16,pglite,pgbouncer --quick | --full]
//
// Without --full a cell runs the tests of the ledger and of the routes, which takes four minutes on two cores; with --quick it
// runs a few of these files. Binaries come from npm. PgBouncer is tested if it is installed.
import { spawn } from 'node:child_process'
import { mkdir, readdir, readFile, writeFile } from 'node:fs/promises'
import { delimiter, join } from 'node:path'
import { text } from 'node:stream/consumers'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { startPostgres } from '../../bench/postgres/postgres.js'
import { startPgbouncer } from '../helper/pgbouncer.js'
import { findNode } from './node.js'

const root = fileURLToPath(new URL('../../', import.meta.url))
const cache = join(root, 'node_modules', '.cache', 'fastify-ai-credits-matrix')

const { values: { node, database, quick, full } } = parseArgs({
  options: {
    node: { type: 'string', default: '20,22,24,26' },
    database: { type: 'string', default: '14,15,16,17,18,pglite,pgbouncer,partitioned' },
    quick: { type: 'boolean', default: false },
    full: { type: 'boolean', default: false }
  }
})

const FOLDERS = ['ledger', 'http', 'charging', 'database', 'upgrade']
const QUICK = ['ledger/deduct', 'ledger/holds', 'ledger/idempotency', 'database/migrate', 'ledger/prune', 'ledger/reconcile']
// These do not depend on versions, or take minutes.
const LONG = ['database/pglite', 'ledger/unavailable', 'http/options', 'http/openapi']
const PGBOUNCER = '18' // the PostgreSQL behind it

interface Result { passed: number, skipped: number, total: number, failures: string[], seconds: number }

const results = new Map<string, Result | string>()
await mkdir(cache, { recursive: true })
for (const version of node.split(',')) {
  for (const on of database.split(',')) {
    const result = await runCell(version, on)
    results.set(`${version} ${on}`, result)
    print(`Node ${version}, ${nameOf(on)}: ${describe(result)}`)
  }
}
print(`\n| | ${database.split(',').map(nameOf).join(' | ')} |\n|---|${'---|'.repeat(database.split(',').length)}`)
for (const version of node.split(',')) {
  print(`| Node ${version} | ${database.split(',').map(on => describe(results.get(`${version} ${on}`)!)).join(' | ')} |`)
}
if ([...results.values()].some(result => typeof result === 'object' && !ok(result))) process.exitCode = 1

async function runCell (version: string, on: string): Promise<Result | string> {
  const bin = await findNode(version, cache)
  if (on === 'pglite') return await runTests(bin, await files(/needs (a real server|no database)/), { TEST_PGLITE: '1', TEST_DATABASE_URL: '' })
  if (on === 'partitioned') {
    const beginOtherwise = /needs no database|originalTables|number6|sql\/index|dumpSchema|partitionScript/
    return await runTests(bin, await files(beginOtherwise), { TEST_PARTITIONED: '1' })
  }
  if (on !== 'pgbouncer') return await runTests(bin, await files(/needs no database/), { TEST_POSTGRES_VERSION: on })
  const server = await startPostgres({ version: PGBOUNCER })
  let bouncer: Awaited<ReturnType<typeof startPgbouncer>>
  try {
    bouncer = await startPgbouncer(server.connectionString)
    if (bouncer === undefined) return 'not installed'
    // Without the tests that use settings of the session, for instance a clock, or named statements.
    const unfit = /needs (a real server|no database)|Clocked|ledgerTest|onLedger|createLedger|Processes|buildHost/
    return await runTests(bin, await files(unfit), { TEST_DATABASE_URL: bouncer.connectionString, TEST_PREPARE: 'off' })
  } finally {
    await bouncer?.stop()
    await server.stop()
  }
}

/** Returns the test files of a cell, without those whose source excludes it. An empty list stands for all files. */
async function files (unfit: RegExp): Promise<string[]> {
  const found = await Promise.all(FOLDERS.map(async folder => (await readdir(join(root, 'test', folder))).map(name => join(folder, name))))
  const names = found.flat().filter(name => name.endsWith('.test.ts')).map(name => name.slice(0, -8))
  const chosen = names.filter(name => quick ? QUICK.includes(name) : full || !LONG.includes(name))
  const sources = await Promise.all(chosen.map(name => readFile(join(root, 'test', `${name}.test.ts`), 'utf8')))
  return chosen.filter((_, index) => !unfit.test(sources[index]!)).map(name => `test/${name}.test.ts`)
}

async function runTests (bin: string, tests: string[], settings: Record<string, string>): Promise<Result> {
  const started = performance.now()
  const env = { ...process.env, ...settings, PATH: `${bin}${delimiter}${process.env.PATH}` }
  const tap = join(root, 'node_modules', 'tap', 'dist', 'esm', 'run.mjs')
  // All files of all folders: only on a server, because tap's own choice is right there.
  const chosen = full && settings.TEST_POSTGRES_VERSION !== undefined ? [] : tests
  const child = spawn(join(bin, 'node'), [tap, '--disable-coverage', '--reporter=tap', '--timeout=600', ...chosen],
    { cwd: root, env, stdio: ['ignore', 'pipe', 'inherit'] })
  const output = await text(child.stdout!)
  await writeFile(join(cache, 'last-run.tap'), output)
  const [summary = ''] = /^# \{ total: .*/m.exec(output) ?? []
  const count = (of: string) => Number(new RegExp(`${of}: (\\d+)`).exec(summary)?.[1] ?? 0)
  return {
    passed: count('pass'),
    skipped: count('skip'),
    total: count('total'),
    failures: [...output.matchAll(/^ *not ok \d+ - (.*)$/gm)].map(([, name]) => name!),
    seconds: (performance.now() - started) / 1000
  }
}

function ok ({ passed, skipped, total, failures }: Result) {
  return failures.length === 0 && passed > 0 && passed + skipped === total
}

function describe (result: Result | string) {
  if (typeof result === 'string') return result
  const { passed, skipped, total, failures, seconds } = result
  return ok(result)
    ? `${passed} passed in ${seconds.toFixed(0)} s`
    : `FAILED ${total - passed - skipped} of ${total}: ${failures.join('; ') || 'the run itself'}`
}

function nameOf (on: string) {
  return { pglite: 'PGlite', partitioned: 'usage partitioned by month', pgbouncer: `PgBouncer, PostgreSQL ${PGBOUNCER}` }[on] ?? `PostgreSQL ${on}`
}

function print (line: string) {
  process.stdout.write(`${line}\n`)
}
