import { execFile } from 'node:child_process'
import { existsSync, readdirSync } from 'node:fs'
import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { delimiter, join } from 'node:path'
import { promisify } from 'node:util'
import { ACCOUNTS, HOT, query } from '../databases.js'
import type { Measurement } from '../load.js'
import { percentile } from '../statistics.js'
import { charge, type Contender } from './contender.js'
import { guardedStatement } from './guarded.js'
import { chargedByTables, createTables } from './hand-written.js'

const run = promisify(execFile)

/** Returns the path of pgbench; undefined if it is not installed. */
export function findPgbench (): string | undefined {
  const debian = '/usr/lib/postgresql'
  const folders = existsSync(debian) ? readdirSync(debian).map(version => join(debian, version, 'bin')) : []
  return [...(process.env.PATH ?? '').split(delimiter), ...folders].map(folder => join(folder, 'pgbench')).find(existsSync)
}

/** (e) PostgreSQL's own load generator, with the guarded statement. */
export const pgbench: Contender = {
  name: 'pgbench, guarded statement',
  async open (connectionString) {
    await query(connectionString, createTables)
    await query(connectionString, 'vacuum analyze')
    const folder = await mkdtemp(join(tmpdir(), 'bench-'))
    const literal = (value: unknown) => `'${typeof value === 'string' ? value : JSON.stringify(value)}'`
    const script = async (hot: boolean) => {
      const values = [':user', charge.credits, literal(charge.operation), literal(charge.metadata)]
      const sql = guardedStatement
        .replace(/\$(\d)/g, (_, n) => n === '1' ? ':user' : String(values[n - 1])).replace(/\s+/g, ' ')
      const file = join(folder, hot ? 'hot.sql' : 'spread.sql')
      const user = hot ? `'${HOT}'` : "'user' || :n"
      await writeFile(file, `${hot ? '' : `\\set n random(0, ${ACCOUNTS - 1})\n`}${sql.replaceAll(':user', `(${user})`)};\n`)
      return file
    }
    return {
      call: async () => { throw new Error('pgbench makes its own load') },
      async load (callers, seconds, hot) {
        const file = await script(hot)
        const { stdout } = await run(findPgbench()!, ['-n', '-M', 'prepared', '-c', String(callers), '-j', '1',
          '-T', String(Math.max(1, Math.round(seconds))), '-l', `--log-prefix=${join(folder, 'log')}`, '-f', file,
          connectionString])
        // pgbench prints no rate if no transaction ended in time.
        const [, perSecond = '0'] = /^tps = ([\d.]+)/m.exec(stdout) ?? []
        return await readLog(folder, Number(perSecond))
      },
      charged: () => chargedByTables(connectionString),
      close: () => rm(folder, { recursive: true })
    }
  }
}

// Each line of pgbench's log is a transaction. The fields are: client, number, latency in microseconds, …
async function readLog (folder: string, perSecond: number): Promise<Measurement> {
  const latencies: number[] = []
  for (const name of await readdir(folder)) {
    if (!name.startsWith('log')) continue
    const text = await readFile(join(folder, name), 'utf8')
    for (const line of text.split('\n')) if (line !== '') latencies.push(Number(line.split(' ')[2]) / 1000)
    await rm(join(folder, name))
  }
  const sorted = Float64Array.from(latencies).sort()
  return { calls: sorted.length, perSecond, p50: percentile(sorted, 0.5), p99: percentile(sorted, 0.99) }
}
