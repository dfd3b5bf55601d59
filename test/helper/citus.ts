import { randomUUID } from 'node:crypto'
import { citusScripts } from '../../bench/ledger-scripts.js'
import type { Queryable } from '../../src/index.js'
import { nodeClock, setFunctionsClock } from './clock-schema.js'
import { Cluster, query } from '../../bench/postgres/cluster.js'
import type { Template } from './templates.js'

/** The connection string of a Citus cluster's coordinator, if this run is on one. */
export const citus = process.env.TEST_CITUS

/** What the databases of this run are named after, if they are copies of its templates. */
const run = process.env.TEST_CITUS_RUN

/** Fewer than in use, as each is a table to be copied: two on each of four workers. */
const SHARDS = 8

let found: Promise<Cluster> | undefined

/** Returns the cluster of this run. */
export async function cluster (): Promise<Cluster> {
  found ??= Cluster.find(citus!)
  return await found
}

/** Creates a database on the cluster, with the ledger's tables unless `template` is undefined. */
export async function createOnCluster (template?: Template) {
  const nodes = await cluster()
  const name = `test_${run === undefined ? '' : `${run}_`}${randomUUID().replaceAll('-', '')}`
  if (run === undefined) await createWhole(nodes, name, template)
  else await nodes.copy(name, nameOf(run, template ?? 'empty'))
  return { connectionString: nodes.at(name), drop: () => nodes.drop(name) }
}

/**
 * Makes the databases that tests of a run get copies of. Creating one from nothing takes ten times as long as a copy. Returns a
 * function that drops them, and what tests have left behind.
 */
export async function createCitusTemplates (connectionString: string, run: string): Promise<() => Promise<void>> {
  const nodes = await Cluster.find(connectionString)
  const drop = async () => {
    await nodes.dropAll(`test_${run}_`)
    await nodes.dropAll(`template_${run}_`)
  }
  try {
    for (const template of ['empty', 'ledger', 'clocked'] as const) {
      const name = nameOf(run, template)
      if (template === 'empty') await nodes.create(name)
      else await nodes.copy(name, nameOf(run, template === 'ledger' ? 'empty' : 'ledger'))
      if (template === 'ledger') await addLedger(nodes, name)
      if (template === 'clocked') await addClock(nodes, name)
      await nodes.close(name)
    }
  } catch (error) {
    await drop()
    throw error
  }
  return drop
}

async function createWhole (nodes: Cluster, name: string, template: Template | undefined) {
  await nodes.create(name)
  if (template !== undefined) await addLedger(nodes, name)
  if (template === 'clocked') await addClock(nodes, name)
}

async function addLedger (nodes: Cluster, name: string) {
  await query(nodes.at(name), `set citus.shard_count to ${SHARDS}`, ...citusScripts)
}

async function addClock (nodes: Cluster, name: string) {
  await Promise.all(nodes.nodes.map(node => query(nodes.at(name, node), ...nodeClock)))
  await query(nodes.at(name), setFunctionsClock)
}

/** Lets a database of a template, whose days are those of UTC, have those of another time zone. No account may be there yet. */
export async function useTimeZone (db: Queryable, timeZone: string): Promise<void> {
  await db.query("update ai_credit_settings set value = $1 where name = 'time_zone'", [timeZone])
  await db.query(`create or replace function ai_credit_time_zone() returns text language sql immutable as $$ select '${timeZone}'::text $$`)
}

function nameOf (run: string, template: Template | 'empty'): string {
  return `template_${run}_${template}`
}
