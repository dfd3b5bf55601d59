// Runs the tests on a Citus cluster: npm run test:citus [-- test/ledger/holds.test.ts … | --crashes]
//
// CITUS_DATABASE_URL names the coordinator, and a superuser. The tests reach the other nodes as Citus does. They create databases
// on all of them, with names of this run, and drop them. With --crashes the servers of the cluster crash after that, again and
// again: they end the sessions of everybody.
import { spawn } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import { once } from 'node:events'
import { readdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { createCitusTemplates } from '../helper/citus.js'

const root = fileURLToPath(new URL('../../', import.meta.url))
const ROOMS = ['ledger', 'model', 'database', 'charging', 'http', 'faults', 'citus']
const STAY_OUT = /^\/\/ (not on Citus: .+|needs no database|refused before the database is asked|about HTTP, not the database)$/m
const CRASHES = /^\/\/ crashes the cluster$/m

const { values: { crashes }, positionals } = parseArgs({
  options: { crashes: { type: 'boolean', default: false } },
  allowPositionals: true
})
const connectionString = process.env.CITUS_DATABASE_URL
if (connectionString) await runAll(connectionString)
else process.stdout.write('Nothing was tested on Citus: CITUS_DATABASE_URL names no cluster\n')

async function runAll (connectionString: string): Promise<void> {
  const run = randomUUID().slice(0, 8)
  const stop = new AbortController()
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => stop.abort())
  const drop = await createCitusTemplates(connectionString, run)
  try {
    const sources = await readAll(positionals.length > 0 ? positionals : await filesOfRooms())
    const chosen = [...sources].filter(([name, source]) => positionals.includes(name) || !STAY_OUT.test(source))
    const files = (crashing: boolean) => chosen.filter(([, source]) => CRASHES.test(source) === crashing).map(([name]) => name)
    const env = { ...process.env, TEST_CITUS: connectionString, TEST_CITUS_RUN: run }
    const passed = [await runTap(files(false), 2, env, stop.signal)]
    if (crashes || positionals.length > 0) passed.push(await runTap(files(true), 1, env, stop.signal))
    if (passed.includes(false)) process.exitCode = 1
  } finally {
    await drop()
  }
}

async function filesOfRooms (): Promise<string[]> {
  const found = await Promise.all(ROOMS.map(async room =>
    (await readdir(join(root, 'test', room))).map(name => `test/${room}/${name}`)))
  return found.flat().filter(name => name.endsWith('.test.ts'))
}

async function readAll (names: string[]): Promise<Map<string, string>> {
  return new Map(await Promise.all(names.map(async name => [name, await readFile(join(root, name), 'utf8')] as const)))
}

async function runTap (files: string[], jobs: number, env: NodeJS.ProcessEnv, signal: AbortSignal): Promise<boolean> {
  if (files.length === 0) return true
  if (signal.aborted) return false
  const tap = join(root, 'node_modules', 'tap', 'dist', 'esm', 'run.mjs')
  const reporter = process.stdout.isTTY ? 'terse' : 'tap' // what is terse redraws the screen
  const child = spawn(process.execPath,
    [tap, '--disable-coverage', '--timeout=600', `--reporter=${reporter}`, `--jobs=${jobs}`, ...files], { cwd: root, env, stdio: 'inherit' })
  signal.addEventListener('abort', () => child.kill('SIGTERM'))
  const [code] = await once(child, 'exit')
  return code === 0
}
