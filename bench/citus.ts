import { createLedger } from '../src/index.js'
import type { Arguments } from './arguments.js'
import { charge } from './contenders/contender.js'
import { openPool, PLENTY } from './databases.js'
import { citusScripts, ledgerScripts } from './ledger-scripts.js'
import { runLoad } from './load.js'
import { describeMachine } from './machine.js'
import { table } from './report.js'
import { median } from './statistics.js'
import { Cluster, query } from './postgres/cluster.js'
import { randomUUID } from 'node:crypto'

const CALLERS = 256
const ACCOUNTS = 1000
const WARM_UP = 8 // seconds: each session of each node plans everything once

const apart = 'set citus.enable_create_database_propagation to off'

const loads = [
  { name: 'one account', user: () => 'hot' },
  { name: '1,000 accounts', user: () => `user ${Math.floor(Math.random() * ACCOUNTS)}` },
  { name: 'one account, with keys', user: () => 'hot', keys: true }
]

/**
 * Compares deducts on a Citus cluster, whose coordinator CITUS_DATABASE_URL names, with those on a database of the coordinator's server
 * that has no Citus.
 */
export async function measureCitus ({ json, rounds, seconds }: Arguments): Promise<void> {
  const coordinator = process.env.CITUS_DATABASE_URL
  if (coordinator === undefined) throw new Error('CITUS_DATABASE_URL is not set')
  const cluster = await Cluster.find(coordinator)
  const [plain, distributed] = [randomUUID(), randomUUID()].map(id => `bench_${id.replaceAll('-', '')}`) as [string, string]
  await cluster.create(distributed)
  await query(coordinator, apart, `create database ${plain}`)
  const machine = await describeMachine(cluster.at(plain))
  const sides = [await open(cluster.at(plain), ledgerScripts), await open(cluster.at(distributed), citusScripts)] as const
  const { rows: [{ version, nodes }] } = await sides[1].pool.query(
    'select citus_version() as version, (select count(*) from pg_dist_node where groupid > 0)::integer as nodes')
  const perSecond = loads.map(() => [[], []] as [number[], number[]])
  for (let round = 0; round < rounds; round++) {
    for (const [place, load] of loads.entries()) {
      for (const [side, { ledger }] of sides.entries()) {
        process.stderr.write(`round ${round + 1}: ${load.name}, ${side === 0 ? 'PostgreSQL' : 'Citus'}\n`)
        const call = () => ledger.deduct({ userId: load.user(), ...charge, ...load.keys && { idempotencyKey: randomUUID() } })
        await runLoad(CALLERS, round === 0 ? WARM_UP : seconds / 4, call)
        perSecond[place]![side]!.push((await runLoad(CALLERS, seconds, call)).perSecond)
      }
    }
  }
  const reconciled = (await sides[1].ledger.reconcile()).ok
  for (const { ledger, pool } of sides) {
    await ledger.close()
    await pool.end()
  }
  await cluster.drop(distributed)
  await query(coordinator, apart, `drop database ${plain} with (force)`)

  const result = loads.map(({ name }, place) => {
    const [alone, onCitus] = perSecond[place]!
    return { name, plain: median(alone), citus: median(onCitus), ratio: median(onCitus.map((calls, round) => calls / alone[round]!)) }
  })
  if (json) {
    process.stdout.write(`${JSON.stringify({ machine, version, nodes, rounds, seconds, reconciled, result })}\n`)
  } else {
    process.stdout.write(`${Object.entries(machine).map(entry => entry.join(': ')).join(', ')}\n${version}, ${nodes} workers\n\n`)
    process.stdout.write(table(['deducts per second, 256 callers', 'PostgreSQL', 'Citus', 'ratio'], result.map(
      ({ name, plain, citus, ratio }) => [name, Math.round(plain).toLocaleString('en'), Math.round(citus).toLocaleString('en'), ratio.toFixed(2)])))
    process.stdout.write(`\nreconciled: ${reconciled}\n`)
  }
}

async function open (connectionString: string, scripts: string[]) {
  const pool = openPool(connectionString)
  const client = await pool.connect()
  for (const script of scripts) await client.query(script)
  client.release(true)
  const ledger = createLedger(pool, { allowance: PLENTY })
  await Promise.all(Array.from({ length: ACCOUNTS }, (_, i) => ledger.balance(`user ${i}`)))
  await pool.query('vacuum analyze ai_credits')
  return { pool, ledger }
}
