import pg from 'pg'
import { ledgerScripts, partitionScript } from '../../bench/ledger-scripts.js'
import { clockSchema, setFunctionsClock } from './clock-schema.js'

/** A template database with the ledger's tables. Tests on the run's own server get copies. `clocked` has the test's clock. */
export type Template = 'ledger' | 'clocked'

const fileCopySince = 150_000
let version: number | undefined

/** Whether this run tests usage records that are partitioned by month. */
export const partitioned = process.env.TEST_PARTITIONED !== undefined

/** The script that partitions the usage records by month, for psql. */
export const partitionFile = new URL('../../docs/partition-usage.sql', import.meta.url)

/** Makes the template databases on a new server, with partitioned usage records if this run tests those. */
export async function createTemplates (server: string): Promise<void> {
  for (const template of ['ledger', 'clocked'] as const) {
    await run(server, `create database ${nameOf(template)}`)
    const url = new URL(server)
    url.pathname = nameOf(template)
    const scripts = [...ledgerScripts]
    if (partitioned) scripts.push(partitionScript)
    if (template === 'clocked') scripts.push(clockSchema, setFunctionsClock)
    await run(url.href, ...scripts)
  }
}

/** Returns the clauses of `create database` that copy the template, if this server has it, and that make it fast. */
export async function copyOf (client: pg.Client, template: Template | undefined): Promise<string> {
  version ??= (await client.query("select current_setting('server_version_num')::integer as version")).rows[0].version
  const own = process.env.TEST_DATABASE_URL === undefined
  return (own && template ? ` template ${nameOf(template)}` : '') + (version! >= fileCopySince ? ' strategy file_copy' : '')
}

function nameOf (template: Template): string {
  return `template_${template}`
}

async function run (connectionString: string, ...scripts: string[]): Promise<void> {
  const client = new pg.Client({ connectionString })
  await client.connect()
  try {
    for (const script of scripts) await client.query(script)
  } finally {
    await client.end()
  }
}
